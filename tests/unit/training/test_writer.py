"""A checkpoint written beside the steps: of the moment it was begun at, durable before it counts, its failure told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tasks.training import loop
from tasks.training.read_spec import parse_spec
from tasks.training.state import checkpoint as checkpoints
from tasks.training.state.writer import Writer
from tests.support.training.world import World, journal_steps, outputs, run


class Gate:
    """A disk that takes its time: `save_checkpoint` waits until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        plain = checkpoints.save_checkpoint

        def slow(*args: Any) -> Path:
            self.reached.set()
            assert self.open.wait(30)
            return plain(*args)

        monkeypatch.setattr(checkpoints, "save_checkpoint", slow)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "checkpoints", 2, None, lambda _: None)
    yield made
    made.close()


def files(value: float) -> dict[str, dict[str, torch.Tensor]]:
    return {name: {"x": torch.full((5,), value)} for name in (checkpoints.MODEL, checkpoints.OPTIMIZER)}


def state(step: int) -> dict[str, Any]:
    return {"step": step, "journal": {"bytes": 0}}


def test_it_holds_what_was_when_it_began(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    live, moment = files(1.0), state(3)
    writer.begin(live, moment, lambda: None)
    live[checkpoints.MODEL]["x"].fill_(2.0)
    moment["step"] = 4
    gate.open.set()
    writer.wait()
    found = tmp_path / "checkpoints" / "step-00000003"
    assert load_file(found / checkpoints.MODEL)["x"].tolist() == [1.0] * 5
    assert json.loads((found / checkpoints.STATE).read_text())["step"] == 3


def test_it_counts_once_it_is_durable_and_not_before(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KempnerForge#102: `latest` moved before the save was durable."""
    synced: list[int] = []
    gate = Gate(monkeypatch)
    writer.begin(files(1.0), state(1), lambda: synced.append(1))
    assert gate.reached.wait(30)
    assert synced == [1] and writer.durable_step is None
    gate.open.set()
    writer.wait()
    assert writer.durable_step == 1
    newest = checkpoints.newest_checkpoint(tmp_path / "checkpoints", print, lambda _: True)
    assert newest is not None and newest.step == 1


def test_one_is_under_way_at_most_and_the_next_waits(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    writer.begin(files(1.0), state(1), lambda: None)
    second = threading.Thread(target=writer.begin, args=(files(2.0), state(2), lambda: None))
    second.start()
    assert gate.reached.wait(30)
    second.join(0.2)
    assert second.is_alive()
    gate.open.set()
    second.join(30)
    writer.wait()
    for step in (1, 2):
        found = load_file(tmp_path / "checkpoints" / f"step-{step:08d}" / checkpoints.MODEL)
        assert found["x"].tolist() == [float(step)] * 5


def test_host_memory_is_used_again(writer: Writer) -> None:
    writer.begin(files(1.0), state(1), lambda: None)
    writer.wait()
    before = {key: buffer.data_ptr() for key, buffer in writer._buffers.items()}
    writer.begin(files(2.0), state(2), lambda: None)
    assert {key: buffer.data_ptr() for key, buffer in writer._buffers.items()} == before


def test_a_write_that_fails_ends_training_at_the_next_step(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    quiet = outputs(run(world, tmp_path / "quiet"))
    plain, calls = checkpoints.save_file, iter(range(1, 1000))

    def full(*args: Any) -> None:
        if next(calls) == 6:
            Path(args[1]).write_bytes(b"half of it")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        plain(*args)

    with monkeypatch.context() as context:
        context.setattr(checkpoints, "save_file", full)
        with pytest.raises(SafetensorError, match="No space left"):
            run(world, tmp_path / "work")
    assert [path.name for path in sorted((tmp_path / "work" / "checkpoints").iterdir())] == [
        "step-00000001",
        "step-00000002",
    ]
    assert journal_steps(tmp_path / "work")[-1] <= 5
    assert outputs(run(world, tmp_path / "work")) == quiet


def test_a_failure_that_comes_with_another_is_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted = threading.Event()

    def full(*_: Any) -> None:
        assert interrupted.wait(60), "the write fails while the loop is being left, not before"
        raise OSError(28, "No space left on device")

    def stop() -> bool:
        interrupted.set()
        raise KeyboardInterrupt

    said: list[str] = []
    spec = parse_spec(world.spec(tmp_path))
    monkeypatch.setattr(checkpoints, "save_file", full)
    asked = iter([False, stop])
    with pytest.raises(KeyboardInterrupt):
        loop.train(spec, lambda: bool((answer := next(asked)) and answer()), said.append)
    assert any("the last checkpoint could not be written" in line for line in said)
