"""A damaged checkpoint is never used and never costs more than the way back to the one before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.training.loop import DONE, RESUMABLE
from tests.support.training.world import World, after_calls, outputs, run_here


def flip(name: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        data = bytearray((checkpoint / name).read_bytes())
        data[-7] ^= 1
        (checkpoint / name).write_bytes(data)

    return damage


def cut(checkpoint: Path) -> None:
    data = (checkpoint / "optimizer.safetensors").read_bytes()
    (checkpoint / "optimizer.safetensors").write_bytes(data[: len(data) // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a flipped bit in the weights": flip("model.safetensors"),
    "a flipped bit in the optimizer": flip("optimizer.safetensors"),
    "a flipped bit in the state": flip("state.json"),
    "a flipped bit in the manifest": flip("manifest.json"),
    "a truncated file": cut,
    "a missing manifest": lambda checkpoint: (checkpoint / "manifest.json").unlink(),
    "a missing file": lambda checkpoint: (checkpoint / "state.json").unlink(),
}


@pytest.fixture(scope="module")
def begun(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A work directory stopped after step 5 with the checkpoints of 4 and 5, and what it must end with."""
    root = tmp_path_factory.mktemp("begun")
    assert run_here(world.spec(root / "whole", identity__kind="pretrain"))[0] == DONE
    assert run_here(world.spec(root / "work", identity__kind="pretrain"), after_calls(6))[0] == RESUMABLE
    names = sorted(path.name for path in (root / "work" / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]
    return root / "work", outputs(root / "whole")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(
    world: World, tmp_path: Path, begun: tuple[Path, dict[str, str]], damage: str
) -> None:
    work = tmp_path / "work"
    shutil.copytree(begun[0], work)
    DAMAGES[damage](work / "checkpoints" / "step-00000005")
    code, said = run_here(world.spec(work, identity__kind="pretrain"))
    assert code == DONE
    assert "set aside as damaged-step-00000005" in said[0]
    assert "resumed from step 4" in said[1]
    assert (work / "checkpoints" / "damaged-step-00000005").is_dir()
    assert outputs(work) == begun[1]


def test_with_all_damaged_it_starts_afresh(
    world: World, tmp_path: Path, begun: tuple[Path, dict[str, str]]
) -> None:
    work = tmp_path / "work"
    shutil.copytree(begun[0], work)
    for checkpoint in (work / "checkpoints").iterdir():
        cut(checkpoint)
    code, said = run_here(world.spec(work, identity__kind="pretrain"))
    assert code == DONE and "fresh" in said[2]
    assert outputs(work) == begun[1]


def test_a_journal_altered_before_the_mark_costs_the_checkpoints_after(
    world: World, tmp_path: Path, begun: tuple[Path, dict[str, str]]
) -> None:
    work = tmp_path / "work"
    shutil.copytree(begun[0], work)
    lines = (work / "journal.jsonl").read_text().splitlines(keepends=True)
    lines[4] = lines[4].replace('"step": 5', '"step": 6')
    (work / "journal.jsonl").write_text("".join(lines))
    code, said = run_here(world.spec(work, identity__kind="pretrain"))
    assert code == DONE and "journal was altered" in said[0] and "resumed from step 4" in said[1]
    assert outputs(work) == begun[1]


def test_what_a_killed_writer_left_is_cleared(
    world: World, tmp_path: Path, begun: tuple[Path, dict[str, str]]
) -> None:
    work = tmp_path / "work"
    shutil.copytree(begun[0], work)
    half = work / "checkpoints" / ".tmp-step-00000006"
    shutil.copytree(work / "checkpoints" / "step-00000005", half)
    (half / "manifest.json").unlink()
    (work / ".tmp-export").mkdir()
    with (work / "journal.jsonl").open("a") as file:
        file.write('{"step": 6, "tok')
    code, said = run_here(world.spec(work, identity__kind="pretrain"))
    assert code == DONE and "resumed from step 5" in said[0]
    assert not list(work.rglob(".tmp-*"))
    assert outputs(work) == begun[1]


def test_the_newest_are_kept(world: World, tmp_path: Path) -> None:
    assert run_here(world.spec(tmp_path, execution__keep_last=3))[0] == DONE
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000006", "step-00000007", "step-00000008"]
    state = json.loads((tmp_path / "checkpoints" / names[-1] / "state.json").read_text())
    assert state["step"] == 8 and state["next_sequence"] == 32 and state["execution"]["micro_batch"] == 2
