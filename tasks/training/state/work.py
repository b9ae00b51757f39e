"""A segment's work directory: one trainer at a time, and one specification for ever."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import StageFailed
from tasks.training.spec import Identity
from tasks.training.state import checkpoint as checkpoints

_LOCK_SECONDS = 600.0

Say = Callable[[str], None]
"""Takes a line for the trainer's log."""


def check_earlier_work(work: Path, identity: Identity) -> None:
    """Raise ConfigError if another specification has worked in this directory before."""
    path = work / "identity.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        checkpoints.write_json(path, json.loads(identity.canonical))
        return
    checkpoints.check_identity(found, identity, work)


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
