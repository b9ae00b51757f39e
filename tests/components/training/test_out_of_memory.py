"""Real trainers with too little memory for their micro-batch: they go on with a smaller one and say so."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.errors import StageFailed
from tasks.models.train import warnings_of
from tasks.training import loop
from tasks.training import step as steps
from tasks.training.device.out_of_memory import AT_STEP, go_smaller, is_out_of_memory, smaller
from tests.support import ROOT
from tests.support.training.groups import losses, train
from tests.support.training.world import (
    World,
    after_calls,
    journal_steps,
    llama_config,
    make_corpus,
    outputs,
    run_here,
    save_model,
    trainer_main,
)

SEQUENCES = 192
CHANGES: dict[str, Any] = {
    "identity__last_step": 3,
    "identity__sequences_per_step": SEQUENCES,
    "identity__schedule__peak": 1e-3,
    "execution__checkpoint_every": 1e9,
}


@pytest.fixture(scope="module")
def world(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Steps of many sequences for a model that holds far more of them than weights."""
    root = tmp_path_factory.mktemp("many")
    manifest, shards, sequences = make_corpus(root, documents=520)
    assert sequences >= 3 * SEQUENCES
    deep = llama_config(hidden_size=64, intermediate_size=512, num_hidden_layers=8)
    return replace(
        world, export=save_model(deep, root / "deep"), manifest=manifest, shards=shards, sequences=sequences
    )


def limited_main(spec: str, spare_mib: int) -> None:
    """The trainer with so much memory more than it has when its model is loaded, from then on."""
    plain = loop.open_segment

    def opened(*args: Any) -> loop.Segment:
        segment = plain(*args)
        if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_DATA, (_data_bytes() + (spare_mib << 20),) * 2)
        return segment

    loop.open_segment = opened
    said = os.open(Path(spec).with_name("said.txt"), os.O_WRONLY | os.O_CREAT)
    os.dup2(said, sys.stderr.fileno())  # the fork server's own is that of the test that began it
    trainer_main(spec)


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) << 10
    raise AssertionError


def run_limited(spec: dict[str, Any], spare_mib: int) -> tuple[int | None, str]:
    """Exit code of a trainer process with so much memory to spare, and what it said."""
    work = Path(spec["paths"]["work"])
    work.mkdir(parents=True)
    path = work / "spec.json"
    path.write_text(json.dumps(spec))
    process = multiprocessing.get_context("forkserver").Process(
        target=limited_main, args=(str(path), spare_mib)
    )
    process.start()
    process.join(240)
    return process.exitcode, (work / "said.txt").read_text()


def test_a_trainer_out_of_memory_ends_with_the_losses_of_a_smaller_micro_batch(
    world: World, tmp_path: Path
) -> None:
    spec = world.spec(tmp_path / "short", **CHANGES, execution__micro_batch=SEQUENCES)
    code, said = run_limited(spec, 320)
    assert code == 0, said
    facts = json.loads((tmp_path / "short" / "execution.json").read_text())
    assert facts["micro_batch"] < SEQUENCES and [entry["micro_batch"] for entry in facts["before"]] == [
        SEQUENCES // 2**times for times in range(len(facts["before"]))
    ]
    assert all(AT_STEP in entry for entry in facts["before"])
    assert f"goes on from the newest checkpoint with micro_batch {facts['micro_batch']}" in said
    assert "stays" not in said
    small = tmp_path / "small"
    code, _ = run_here(world.spec(small, **CHANGES, execution__micro_batch=facts["micro_batch"]))
    assert code == loop.DONE
    np.testing.assert_allclose(losses(tmp_path / "short"), losses(small), rtol=1e-5)
    if all(entry[AT_STEP] == 1 for entry in facts["before"]):
        assert outputs(tmp_path / "short") == outputs(small)


def test_it_goes_on_from_the_newest_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An allocation that no machine can give, in the third step, at the larger micro-batch alone."""
    plain = steps._forward_backward

    def hungry(segment: loop.Segment, *rest: Any) -> torch.Tensor:
        if segment.progress.step == 2 and segment.execution["micro_batch"] > 24:
            torch.empty(1 << 60)
        return plain(segment, *rest)

    monkeypatch.setattr(steps, "_forward_backward", hungry)
    changes = CHANGES | {"execution__checkpoint_every": 1e-9}
    code, said = run_here(world.spec(tmp_path, **changes, execution__micro_batch=SEQUENCES))
    assert code == loop.DONE
    facts = json.loads((tmp_path / "execution.json").read_text())
    assert facts["micro_batch"] == 24
    assert [(entry["micro_batch"], entry[AT_STEP]) for entry in facts["before"]] == [
        (192, 3),
        (96, 3),
        (48, 3),
    ]
    assert sum("resumed from step 2" in line for line in said) == 3
    assert journal_steps(tmp_path) == [1, 2, 3]


def test_killed_after_it_went_smaller_it_stays_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, asked = steps._forward_backward, iter(range(1_000_000))

    def hungry(segment: loop.Segment, *rest: Any) -> torch.Tensor:
        if next(asked) == 0:
            torch.empty(1 << 60)
        return plain(segment, *rest)

    monkeypatch.setattr(steps, "_forward_backward", hungry)
    spec = world.spec(tmp_path, **CHANGES, execution__micro_batch=4)
    assert run_here(spec, after_calls(3))[0] == loop.RESUMABLE
    code, said = run_here(spec)
    assert code == loop.DONE and any("micro-batch 2" in line for line in said)
    assert not any("stays" in line for line in said)


def test_what_takes_less_than_the_least_is_a_clear_failure(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: Any) -> torch.Tensor:
        return torch.empty(1 << 60)

    monkeypatch.setattr(steps, "_forward_backward", hungry)
    with pytest.raises(
        StageFailed, match=r"Out of memory at step 1 .*micro-batch of one.*packing.sequence_length"
    ):
        run_here(world.spec(tmp_path, **CHANGES, execution__micro_batch=2))
    facts = json.loads((tmp_path / "execution.json").read_text())
    assert (facts["micro_batch"], facts["gradient_checkpointing"]) == (1, "full")


def test_a_model_that_does_not_fit_at_all_is_a_clear_failure(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.training.segment.make_optimizer", lambda *_: torch.empty(1 << 60))
    with pytest.raises(StageFailed, match="before the first step.*whatever the micro-batch"):
        run_here(world.spec(tmp_path, **CHANGES))


def test_less_is_half_then_checkpointing_then_nothing() -> None:
    execution: dict[str, Any] = {"micro_batch": 5, "gradient_checkpointing": "selective"}
    found = []
    now: dict[str, Any] | None = execution
    while now is not None:
        found.append((now["micro_batch"], now["gradient_checkpointing"]))
        last, now = now, smaller(now, 7)
    assert found == [(5, "selective"), (2, "selective"), (1, "selective"), (1, "full")]
    assert [entry["micro_batch"] for entry in last["before"]] == [5, 2, 1]


def test_two_processes_that_run_out_together_write_one_change(tmp_path: Path) -> None:
    path = tmp_path / "execution.json"
    execution = {"micro_batch": 8, "gradient_checkpointing": False}
    path.write_text(json.dumps(execution))
    for _ in range(2):
        go_smaller(path, execution, 3, MemoryError("no"))
    facts = json.loads(path.read_text())
    assert facts["micro_batch"] == 4 and len(facts["before"]) == 1


def test_the_manifest_says_what_changed_on_the_way() -> None:
    plain = {"micro_batch": 2, "gradient_checkpointing": "none", "processes": 2}
    assert list(warnings_of(plain, {})) == []
    earlier = [
        {"processes": 1, "threads": 2, "sharding": "none"},
        {"micro_batch": 4, "gradient_checkpointing": "none", AT_STEP: 7},
    ]
    processes, memory, back = warnings_of(plain | {"before": earlier}, {"rollbacks": [[3, 7]]})
    assert "trained by 1, then 2 processes" in processes
    assert "micro-batch 4 (checkpointing none) until step 7; went on with micro-batch 2" in memory
    assert back.startswith("steps 3 to 7 had no finite loss")


def test_what_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60)
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(
        OSError(28, "full")
    )


@pytest.mark.slow
def test_of_several_processes_one_leaves_and_all_go_on_smaller(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module found before the trainer's own start makes process 1 ask for too much, once, under torchrun."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1' and os.environ.get('TORCHELASTIC_RESTART_COUNT') == '0':\n"
        "    import torch\n"
        "    from tasks.training import step\n"
        "    plain = step._forward_backward\n"
        "    def hungry(segment, *rest):\n"
        "        if segment.progress.step == 2:\n"
        "            torch.empty(1 << 60)\n"
        "        return plain(segment, *rest)\n"
        "    step._forward_backward = hungry\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    work = tmp_path / "work"
    work.mkdir()
    changes = CHANGES | {"execution__checkpoint_every": 1e-9, "execution__micro_batch": 16}
    (work / "spec.json").write_text(json.dumps(world.spec(work, **changes)))
    train(work)
    facts = json.loads((work / "execution.json").read_text())
    assert facts["micro_batch"] == 8 and facts["processes"] == 2
    assert [(entry["micro_batch"], entry[AT_STEP]) for entry in facts["before"]] == [(16, 3)]
    assert journal_steps(work) == [1, 2, 3]
    log = (work / "trainer.log").read_text()
    assert "trainer 1: warning: In process 1: out of memory at step 3" in log and "started again" in log


def _compiled_by(error: Exception) -> BaseException:
    """What torch.compile raises where its backend fails with `error`."""

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        raise error

    torch.compiler.reset()
    with pytest.raises(Exception) as found:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    return found.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (ValueError("no such kernel"), False),
    ],
)
def test_out_of_memory_while_compiling_is_recognised(error: Exception, expected: bool) -> None:
    raised = _compiled_by(error)
    assert type(raised) is not type(error), "torch.compile raises an error of its own"
    assert is_out_of_memory(raised) is expected


def test_the_cause_of_an_error_counts_and_what_was_decided_about_it_does_not() -> None:
    chained = RuntimeError("the step failed")
    chained.__cause__ = torch.OutOfMemoryError("2 GiB")
    assert is_out_of_memory(chained)
    decided = StageFailed("out of memory at a micro-batch of one sequence")
    decided.__cause__ = torch.OutOfMemoryError("2 GiB")
    assert not is_out_of_memory(decided)
