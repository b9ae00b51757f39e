"""Damage between the verification of a training's inputs and its commit: made again within the same run, the same bytes.

The store, the trainer's process and its files are real; a byte is written in place, under the memory map.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from flows.config import load_config
from flows.dag.healing import healed
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from storage.errors import DamagedArtifact
from storage.store import Ensured, Store
from storage.workers import Workers
from tasks.models import train, trainer
from tests.support.begun import begin
from tests.support.driver import builder
from tests.support.small import write_config


def flip(path: Path) -> None:
    """Change a byte in place: the same inode, which who has mapped the file sees."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        at = path.stat().st_size // 2
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


@dataclass
class Home:
    """A store in which all before the first budget is there."""

    path: Path
    config: Path
    said: list[str] = field(default_factory=list)

    @property
    def store(self) -> Store:
        return Store(self.path / "store")

    def run(self) -> dict[str, str]:
        """Until the trunk of the first budget. Returns its digests, by part."""
        run = load_config(self.config)

        def say(event: str, *words: str) -> None:
            self.said += [" ".join(words)] if event == "warn" else []

        with Workers(1) as workers:
            build = builder(self.store, workers, say)
            adapt(Requests(run, self.store, warn=lambda line: None), build, until="train", slices=None)
        return trunk(self.store)


def trunk(store: Store) -> dict[str, str]:
    """The digests of the first trunk, by part."""
    found = [one for one in store.artifacts("train") if one.manifest.config["kind"] == "trunk"]
    first = min(found, key=lambda one: int(one.manifest.config["first_step"]))
    return {name: part.digest for name, part in first.manifest.parts.items()}


@pytest.fixture
def home(tmp_path: Path, reference_run: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    begin(reference_run, tmp_path)
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path, write_config(tmp_path, budgets=("8K",)))


@pytest.fixture(scope="module")
def calm(reference_run: Path) -> dict[str, str]:
    return trunk(Store(reference_run / "store"))


HIT: tuple[Callable[[dict[str, Any]], Path], ...] = (
    lambda paths: Path(max(paths["shards"].values())),
    lambda paths: Path(paths["start"], "model.safetensors"),
)
"""By the paths of the trainer's specification: what the trainer itself finds, and what is found after its end."""


@pytest.mark.slow
def test_what_was_damaged_after_it_was_verified_is_made_again_in_the_same_run(
    home: Home, calm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte is changed when the flow has verified all, right before each of the first trainers starts."""
    original, started, left = trainer.start, list[trainer.Process](), list(HIT)

    def start(*arguments: Any) -> trainer.Process:
        spec = json.loads(Path(arguments[0][-1]).read_bytes())
        if left and spec["identity"]["kind"] == "trunk":
            flip(left.pop(0)(spec["paths"]))
        started.append(original(*arguments))
        return started[-1]

    monkeypatch.setattr(trainer, "start", start)
    assert home.run() == calm
    assert [process.returncode for process in started] == [76, 0, 0, 0], "the third makes the base again"
    told = [line for line in home.said if "set aside as" in line and "made again first" in line]
    assert [line.split(" is damaged: ")[1].split("/")[0] for line in told] == ["tokenize", "train"], home.said


@pytest.mark.slow
def test_what_a_trainer_finished_is_compared_before_it_is_committed(
    home: Home, calm: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed between the trainer's end and the commit, and a byte rots (all kinds: test_damaged_work.py)."""
    original = trainer.run_trainer
    starts: list[Path] = []

    def counted(work: Path, **named: Any) -> None:
        starts.append(work)
        original(work, **named)

    def killed(work: Path, **named: Any) -> None:
        original(work, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run_trainer", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            home.run()
        if not home.said:
            flip(next((home.path / "store" / ".work").glob("train-*/trunk/model.safetensors")))
    assert (
        len(home.said) == 1
        and "made again from the newest checkpoint: trunk/model.safetensors" in home.said[0]
    )
    monkeypatch.setattr(train, "run_trainer", counted)
    assert home.run() == calm
    assert not starts and len(home.said) == 1, "it is whole: committed without a trainer"


def test_damage_that_is_gone_is_worth_one_more_try(tmp_path: Path) -> None:
    """A bit may flip in memory alone: what the stage met is not on the disk."""
    store, tries, said = Store(tmp_path), [], list[str]()
    call: Any = object()
    done: Any = object()

    def ask(times: int) -> Callable[[Any], Ensured]:
        def once(_: Any) -> Ensured:
            tries.append(1)
            if len(tries) <= times:
                raise DamagedArtifact("a.arrow was altered.")
            return done  # type: ignore[no-any-return]

        return once

    assert healed(call, ask(1), list, store, said.append) is done
    assert said == ["a.arrow was altered. All that it reads is sound now, so it is asked for once more"]
    tries.clear()
    with pytest.raises(DamagedArtifact, match="altered"):
        healed(call, ask(2), list, store, said.append)
