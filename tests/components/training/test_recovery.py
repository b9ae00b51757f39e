"""Steps that are bad by their own text: passed over, gone back from, the same bytes whatever died when."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from storage.errors import StageFailed
from tasks.training import loop
from tasks.training.state.recovery import RECORD
from tests.support.training.groups import train
from tests.support.training.trainers import Start
from tests.support.training.world import (
    Death,
    World,
    after_calls,
    journal_steps,
    outputs,
    poisoned_world,
    run_here,
)

BAD = range(6, 11)
CHANGES: dict[str, Any] = {
    "identity__kind": "pretrain",
    "identity__last_step": 14,
    "identity__sequences_per_step": 2,
    "identity__keep_every_tokens": 300,
}


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Five bad steps in a row, 6 to 10, and one by itself before."""
    return poisoned_world(tmp_path_factory.mktemp("poisoned"), [3, *BAD], per_step=2)


@pytest.fixture(scope="module")
def expected(poisoned: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What it leaves where there was no checkpoint to go back to but the start."""
    work = tmp_path_factory.mktemp("expected") / "work"
    code, said = run_here(poisoned.spec(work, **CHANGES, execution__checkpoint_every=1e9))
    assert code == loop.DONE
    assert any("not finite in steps 6 to 10; training goes back" in line for line in said)
    assert sum(": fresh, steps 1 to 14" in line for line in said) == 2
    return outputs(work)


def test_bad_steps_are_computed_once_passed_over_and_recorded(
    poisoned: World, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    plain = loop.take_step

    def taken(segment: loop.Segment) -> None:
        computed.append(segment.progress.step + 1)
        plain(segment)

    monkeypatch.setattr(loop, "take_step", taken)
    work = tmp_path / "work"
    code, _ = run_here(poisoned.spec(work, **CHANGES))
    assert code == loop.DONE
    assert computed == [*range(1, 11), 11, 12, 13, 14]  # it went back to a checkpoint among the bad steps
    table = pq.read_table(work / "journal" / "journal.parquet").to_pydict()
    assert table["step"] == list(range(1, 15))
    assert [step for step, bad in zip(table["step"], table["skipped"], strict=True) if bad] == [3, *BAD]
    assert [step for step, back in zip(table["step"], table["rolled_back"], strict=True) if back] == [10]
    result = json.loads((work / "result.json").read_text())
    assert result["skipped_steps"] == 6 and result["rollbacks"] == [[6, 10]]
    assert outputs(work) == expected


@pytest.mark.parametrize("stopped_after", [2, 5, 7, 9, 10, 12])
def test_where_it_was_stopped_and_what_it_went_back_to_changes_no_byte(
    poisoned: World, tmp_path: Path, expected: dict[str, str], stopped_after: int
) -> None:
    spec = poisoned.spec(tmp_path, **CHANGES, execution__checkpoint_every=1e9)
    assert run_here(spec, after_calls(stopped_after + 1))[0] == loop.RESUMABLE
    assert run_here(spec)[0] == loop.DONE
    assert outputs(tmp_path) == expected
    assert journal_steps(tmp_path) == list(range(1, 15))


def test_with_newer_checkpoints_damaged_the_record_still_holds(
    poisoned: World, tmp_path: Path, expected: dict[str, str]
) -> None:
    spec = poisoned.spec(tmp_path, **CHANGES, execution__keep_last=100)
    assert run_here(spec, after_calls(14))[0] == loop.RESUMABLE
    for path in (tmp_path / "checkpoints").iterdir():
        if int(path.name[5:]) > 4:
            (path / "model.safetensors").unlink()
    assert run_here(spec)[0] == loop.DONE
    assert outputs(tmp_path) == expected


DEATHS = {
    "before the record": Death("tasks.training.loop", "record", 1),
    "after the record": Death("tasks.training.loop", "record", 1, "after"),
    "on the way back": Death("tasks.training.loop", "open_segment", 2),
    "while passing over": Death("tasks.training.loop", "pass_over", 3, "after"),
    "in a checkpoint among the bad steps": Death("tasks.training.state.checkpoint", "commit_directory", 10),
}


@pytest.mark.parametrize("moment", DEATHS)
def test_killed_at_any_moment_of_it(
    poisoned: World, tmp_path: Path, expected: dict[str, str], start_trainer: Start, moment: str
) -> None:
    every = 1e-9 if "checkpoint" in moment else 1e9
    spec = poisoned.spec(tmp_path / "work", **CHANGES, execution__checkpoint_every=every)
    process = start_trainer(spec, DEATHS[moment])
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    process = start_trainer(spec)
    process.join(120)
    assert process.exitcode == 0
    assert outputs(tmp_path / "work") == expected
    assert journal_steps(tmp_path / "work") == list(range(1, 15))


def test_ten_in_a_row_end_it_with_the_reason(tmp_path: Path) -> None:
    world = poisoned_world(tmp_path / "world", range(4, 14), per_step=2)
    spec = world.spec(tmp_path / "work", **CHANGES)
    for _ in range(2):
        with pytest.raises(
            StageFailed, match=r"5 steps in a row, the last one 13 .*gone back.* 1 time .*sequence 16 on"
        ):
            run_here(spec)
    assert not (tmp_path / "work" / "result.json").exists()


def test_a_segment_that_ends_amid_bad_steps_leaves_no_model(tmp_path: Path) -> None:
    world = poisoned_world(tmp_path / "world", range(10, 15), per_step=2)
    for _ in range(2):
        with pytest.raises(StageFailed, match=r"5 steps in a row, the last one 14"):
            run_here(world.spec(tmp_path / "work", **CHANGES))
    assert not (tmp_path / "work" / "export").exists()


def test_the_fourth_way_back_is_not_gone(tmp_path: Path) -> None:
    bad = [step for first in (2, 8, 14, 20) for step in range(first, first + 5)]
    world = poisoned_world(tmp_path / "world", bad, per_step=2)
    spec = world.spec(tmp_path / "work", **CHANGES | {"identity__last_step": 26})
    with pytest.raises(StageFailed, match=r"the last one 24 .* 3 times"):
        run_here(spec)
    assert len(json.loads((tmp_path / "work" / RECORD).read_text())["groups"]) == 3
    code, _ = run_here(world.spec(tmp_path / "fewer", **CHANGES | {"identity__last_step": 22}))
    assert code == loop.DONE
    result = json.loads((tmp_path / "fewer" / "result.json").read_text())
    assert result["rollbacks"] == [[2, 6], [8, 12], [14, 18]] and result["skipped_steps"] == 18


def test_where_the_record_cannot_be_read_training_begins_anew(
    poisoned: World, tmp_path: Path, expected: dict[str, str]
) -> None:
    spec = poisoned.spec(tmp_path, **CHANGES)
    assert run_here(spec, after_calls(13))[0] == loop.RESUMABLE
    (tmp_path / RECORD).write_text("{")
    code, said = run_here(spec)
    assert code == loop.DONE and outputs(tmp_path) == expected
    assert any("begins anew" in line for line in said)


@pytest.mark.slow
def test_several_processes_go_back_together(poisoned: World, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    changes = CHANGES | {"execution__micro_batch": 1}
    (work / "spec.json").write_text(json.dumps(poisoned.spec(work, **changes)))
    train(work)
    result = json.loads((work / "result.json").read_text())
    assert result["rollbacks"] == [[6, 10]] and result["skipped_steps"] == 6
    assert journal_steps(work) == list(range(1, 15))
