"""A segment's work directory: one trainer at a time, and one specification for ever."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import DamagedArtifact, StageFailed
from tasks.training.spec import Identity
from tasks.training.state import checkpoint as checkpoints
from tasks.training.state.recovery import RECORD, read_recovery
from tasks.training.state.sealed import WRITTEN, not_as_written, read_sealed, write_sealed

_LOCK_SECONDS = 600.0

Say = Callable[[str], None]
"""Takes a line for the trainer's log."""


def check_earlier_work(work: Path, identity: Identity, say: Say) -> None:
    """Raise ConfigError if another specification has worked in this directory before.

    Each checkpoint names its specification too, so a damaged file is written anew.
    """
    path = work / "identity.json"
    try:
        found = read_sealed(path)
    except FileNotFoundError:
        write_sealed(path, json.loads(identity.canonical))
    except DamagedArtifact as error:
        say(f"warning: {error} It is written anew.")
        write_sealed(path, json.loads(identity.canonical))
    else:
        checkpoints.check_identity(found, identity, work)


def distrust_damaged_work(work: Path, say: Say) -> None:
    """If what checkpoints go on from was damaged, remove them, so that the segment begins anew.

    That is the record of bad steps, which no checkpoint repeats, and states that were kept on the way.
    """
    try:
        read_recovery(work)
        problems = not_as_written(work, "kept") if (work / WRITTEN).exists() else []
    except DamagedArtifact as error:
        problems = [str(error)]
    if problems:
        say(f"warning: {work}: {problems[0]}; this segment begins anew.")
        checkpoints.remove(work / "checkpoints")
        shutil.rmtree(work / "kept", ignore_errors=True)
        for name in (RECORD, WRITTEN):
            (work / name).unlink(missing_ok=True)


@contextmanager
def held_alone(work: Path, stop: Callable[[], bool], say: Say) -> Iterator[bool]:
    """Lock the work directory, waiting for a trainer that is still leaving it. Yields False if asked to stop
    meanwhile.
    """
    work.mkdir(parents=True, exist_ok=True)
    with (work / "trainer.lock").open("w", encoding="utf-8") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    say(f"waiting for another trainer to leave {work}")
                    said = True
                if stop():
                    yield False
                    return
                if time.monotonic() > deadline:
                    raise StageFailed(f"Another trainer is still at work in {work}. End it first.") from None
                time.sleep(0.1)
        yield True
