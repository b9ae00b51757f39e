"""`onward verify`: reads every byte of every artifact. It moves nothing, unless it is asked to set aside what is damaged.

It looks only where artifacts of the known stages lie, `<stage>/<16 hex digits>`. Runs may go on meanwhile: an artifact
that is being committed, made again or collected is no damage. So what looks damaged is looked at again, under its lock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage.lock import Lock
from storage.runs import shared_lock
from storage.store import Store
from tasks import stages


@dataclass
class Verified:
    """What was found. `damaged`: problems by artifact (`stage/key`); `aside`: the new names of what was set
    aside: it, and what of 0.1.0 may have been made of its bytes."""

    read: int = 0
    damaged: dict[str, list[str]] = field(default_factory=dict)
    aside: dict[str, list[str]] = field(default_factory=dict)


def verify(store: Store, *, repair: bool = False, known: Iterable[str] = stages.NAMES) -> Verified:
    """Read all artifacts of the `known` stages. With `repair`, damaged ones are set aside, if no process is making them."""
    found = Verified()
    with _no_collection(store):
        for path in list(store.places(known)):
            problems = _problems(store, path)
            found.read += path.is_dir()
            if not problems:
                continue
            with _held(store, path) as held:
                problems = _problems(store, path)  # it may have been made again meanwhile, or be gone
                if not problems:
                    continue
                name = str(path.relative_to(store.root))
                found.damaged[name] = problems
                if repair and held:
                    found.aside[name] = store.damage.set_aside_with_children(path)
    return found


def _problems(store: Store, path: Path) -> list[str]:
    """What is wrong with the artifact in this directory; nothing if it is gone, or another has taken its place."""
    try:
        before = path.stat()
    except FileNotFoundError:
        return []
    found = store.damage.problems(path)
    with contextlib.suppress(FileNotFoundError):
        return found if os.path.samestat(before, path.stat()) else []
    return []


@contextlib.contextmanager
def _held(store: Store, path: Path) -> Iterator[bool]:
    """Whether nobody is making this artifact while the block runs; False too where no lock can be taken."""
    lock = Lock(store.work_of(path.parent.name, path.name).with_suffix(".lock"))
    held = False
    with contextlib.suppress(OSError):  # a store that cannot be written to
        held = lock.try_acquire()
    try:
        yield held
    finally:
        lock.release()


@contextlib.contextmanager
def _no_collection(store: Store) -> Iterator[None]:
    """No artifact is collected meanwhile. A store that cannot be written to is not collected anyway."""
    lock = shared_lock(store)
    with contextlib.suppress(OSError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
