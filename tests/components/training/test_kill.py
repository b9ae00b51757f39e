"""Real trainer processes, killed with a real SIGKILL at random moments and asked to stop: the same bytes in the end."""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.training.kills import finish, journal_steps_safely, kill, wait_for
from tests.support.training.narrow import ALL, changes_of, wide
from tests.support.training.trainers import Start
from tests.support.training.world import Death, World, journal_steps, outputs

STEPS = 30
CHANGES: dict[str, Any] = {
    "identity__kind": "pretrain",
    "identity__last_step": STEPS,
    "identity__keep_every_tokens": 900,
}
PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "states": "fp32", "averaged": False, "pulled": False},
    "bf16": {"precision": "bf16", "states": "fp32", "averaged": False, "pulled": False},
    "narrow": ALL,
}
CHECKPOINT = "tasks.training.state.checkpoint"
PHASES = {  # of the third checkpoint; each writes two files of tensors and hashes three
    "before the journal is durable": Death("tasks.training.state.journal", "Journal.sync", 3),
    "half of the weights are written": Death(CHECKPOINT, "save_file", 5, "half"),
    "the optimizer's state is not": Death(CHECKPOINT, "save_file", 6),
    "nothing is hashed": Death(CHECKPOINT, "sha256_file", 7),
    "all is there, not renamed": Death(CHECKPOINT, "commit_directory", 3),
    "renamed, the oldest not removed": Death(CHECKPOINT, "commit_directory", 3, "after"),
    "the oldest is being removed": Death(CHECKPOINT, "shutil.rmtree", 1),
}
SEEN = ("checkpoints/.tmp-*/state.json", ".tmp-export", "export", "trunk")
"""Files whose appearance is a moment: a checkpoint half there, the export being made, made, and the trunk."""
MATRIX = list(zip((*PHASES, *SEEN), itertools.cycle(PRECISIONS)))
"""Every moment, in the precisions by turns."""


@pytest.fixture(scope="module")
def world(world: World) -> World:
    """One whose model is quantised where that is asked for."""
    return wide(world)


@pytest.fixture(scope="module")
def undisturbed(
    world: World, start_trainer: Start, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    """By precision: what a process that nobody disturbs leaves; it writes no checkpoint but the last."""

    @functools.cache
    def ends_with(precision: str) -> dict[str, str]:
        work = tmp_path_factory.mktemp("undisturbed") / "work"
        finish(start_trainer, specification(world, work, precision, execution__checkpoint_every=1e9))
        return outputs(work)

    return ends_with


def specification(world: World, work: Path, precision: str, **more: Any) -> dict[str, Any]:
    """Of a training of thirty steps that keeps checkpoints on its way."""
    return world.spec(work, **changes_of(world, **PRECISIONS[precision], **(CHANGES | more)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_killed_again_and_again_at_random_moments(
    world: World,
    precision: str,
    undisturbed: Callable[[str], dict[str, str]],
    start_trainer: Start,
    tmp_path: Path,
) -> None:
    work = tmp_path / "work"
    spec = specification(world, work, precision)
    chance = random.Random(5)
    killed = 0
    for _ in range(5):
        process = start_trainer(spec)
        target = (journal_steps(work) or [0])[-1] + chance.randint(1, 4)
        alive = wait_for(lambda target=target: (journal_steps_safely(work) or [0])[-1] >= target, process)
        time.sleep(chance.random() * 0.03)
        killed += alive
        kill(process)
        assert not (work / "result.json").exists()
    assert killed >= 3
    finish(start_trainer, spec)
    assert outputs(work) == undisturbed(precision)
    assert journal_steps(work) == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("moment", "precision"), MATRIX)
def test_killed_twice_at_a_moment_it_ends_with_the_same_bytes(
    world: World,
    undisturbed: Callable[[str], dict[str, str]],
    start_trainer: Start,
    tmp_path: Path,
    moment: str,
    precision: str,
) -> None:
    """In a phase of a checkpoint that is written beside the steps, or while a file is seen to appear."""
    work = tmp_path / "work"
    spec = specification(
        world, work, precision, **({"execution__checkpoint_every": 0.05} if moment in SEEN else {})
    )
    for _ in range(2):
        if moment in PHASES:
            dies(start_trainer, spec, PHASES[moment])
        else:
            process = start_trainer(spec)
            wait_for(lambda: list(work.glob(moment)), process)
            kill(process)
    finish(start_trainer, spec)
    assert outputs(work) == undisturbed(precision)
    assert journal_steps(work) == list(range(1, STEPS + 1))
    assert not list(work.rglob(".tmp-*"))


def dies(start: Start, spec: dict[str, Any], death: Death) -> None:
    process = start(spec, death)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_again_and_again_across_two_budgets(
    world: World, start_trainer: Start, tmp_path: Path, precision: str
) -> None:
    """Trunk to the first branch point, branch to the first budget, trunk to the next: killed in each, in all phases."""
    decay = {"kind": "wsd", "peak": 1e-2, "warmup_steps": 3, "decay_from": 9, "decay_to": 14}
    segments: dict[str, dict[str, Any]] = {
        "trunk": {"identity__last_step": 9},
        "branch": {"identity__kind": "decay", "identity__last_step": 14, "identity__schedule": decay},
        "next": {"identity__last_step": 18},
    }
    found: dict[str, dict[str, dict[str, str]]] = {}
    for root in ("quiet", "killed"):
        found[root] = {}
        for name, changes in segments.items():
            work = tmp_path / root / name
            spec = world.spec(work, **changes, identity__precision=precision)
            if name != "trunk":
                spec["identity"]["first_step"] = 9
                spec["paths"] |= {"start": str(tmp_path / root / "trunk" / "trunk"), "start_kind": "trunk"}
            for death in list(PHASES.values())[1::2] if root == "killed" else ():
                dies(start_trainer, spec, replace(death, call=death.call - 2 * (death.name == "save_file")))
            finish(start_trainer, spec)
            found[root][name] = outputs(work)
    assert found["killed"] == found["quiet"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_checkpoints_and_says_resumable(
    world: World, start_trainer: Start, tmp_path: Path, how: signal.Signals
) -> None:
    work = tmp_path / "work"
    spec = world.spec(work, identity__last_step=STEPS, execution__checkpoint_every=1e9)
    process = start_trainer(spec)
    assert wait_for(lambda: journal_steps_safely(work), process)
    os.kill(process.pid or 0, how)
    process.join(60)
    assert process.exitcode == 75
    steps = journal_steps(work)
    assert [path.name for path in (work / "checkpoints").iterdir()] == [f"step-{steps[-1]:08d}"]
    finish(start_trainer, spec)
    assert journal_steps(work) == list(range(1, STEPS + 1))


def test_a_second_trainer_waits_for_the_first_to_leave(
    world: World, start_trainer: Start, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    spec = world.spec(work, identity__last_step=STEPS)
    first = start_trainer(spec)
    assert wait_for(lambda: journal_steps_safely(work), first)
    second = start_trainer(spec)
    first.join(60)
    second.join(60)
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert journal_steps(work) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_the_command_leaves_when_its_parent_dies(world: World, tmp_path: Path) -> None:
    """`python -m tasks.training` itself, its imports, its words on standard error and the parent's pipe."""
    reader, writer = os.pipe()
    work = tmp_path / "work"
    spec = world.spec(
        work, identity__last_step=world.sequences // 4, parent_fd=reader, execution__checkpoint_every=1e9
    )
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "tasks.training", str(path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, pass_fds=(reader,))
    os.close(reader)
    deadline = time.monotonic() + 120
    while not journal_steps_safely(work) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.close(writer)
    _, words = process.communicate(timeout=60)
    assert process.returncode in (75, 0)
    assert all(line.startswith("trainer: ") for line in words.splitlines()), words
    if process.returncode == 75:
        assert "left because of the parent is gone" in words
    found = "[m for m in ('pydantic', 'prefect', 'mlflow') if m in sys.modules]"
    code = f"import sys, tasks.training.loop; print({found})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_failure_is_exit_code_one_with_its_reason(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.training.__main__ import main

    path = tmp_path / "spec.json"
    path.write_text(json.dumps(world.spec(tmp_path / "work", identity__precision="fp8")))
    monkeypatch.setattr("tasks.training.process.stop.Stop.on_signals", lambda _: None)
    assert main([str(path)]) == 1
    assert main([]) == 2
    assert "identity.precision must be bf16, fp32 or bf16_weights" in capfd.readouterr().err


def test_a_full_disk_is_said_plainly(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    from tasks.training.__main__ import main
    from tasks.training.process import launch
    from tasks.training.state import checkpoint

    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    path = tmp_path / "spec.json"
    path.write_text(json.dumps(world.spec(tmp_path / "work")))
    monkeypatch.setattr("tasks.training.process.stop.Stop.on_signals", lambda _: None)
    with monkeypatch.context() as context:
        context.setattr(checkpoint, "save_file", full)
        assert main([str(path)]) == launch.MACHINE
    assert "the disk is full" in capfd.readouterr().err
    assert main([str(path)]) == 0
