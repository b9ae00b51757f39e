"""What an attempt at a run has for MLflow, kept beside the store first: what a server missed is published from here.

One file for each attempt, `<store>/.tracking/<attempt>.jsonl`: a line of what identifies it, then a line for each event.
Its process holds a lock on the file while it lives; a file that nobody holds is an attempt that ended with the server away,
or was killed. It is gone once everything in it is published; what was refused is kept in it for a few runs more. No event
holds more than names, keys and numbers: what they stand for is in the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.lock import Lock

DIRECTORY = ".tracking"
_TOLD = "told"
_KEY = re.compile(r'"([0-9a-f]{64})"')

Event = dict[str, Any]
"""Plain JSON; `event` names what happened, `at` is when, in milliseconds since 1970."""


class Account:
    """An attempt's events, in order. Adding one never fails a run: without disk space MLflow only learns less."""

    def __init__(self, path: Path, head: Event, lock: Lock, lines: list[Event]) -> None:
        self.path = path
        self.head = head
        self.events: list[Event] = [line for line in lines if line.get("event") != _TOLD]
        """All that happened."""
        self.left = _left(lines)
        """What the server has not got."""
        self.told = len(lines) - len(self.events)
        """How often it was told all, and some was refused."""
        self._lock = lock
        self._writing = threading.Lock()

    @classmethod
    def begin(cls, store: Path, head: Event) -> Account:
        """A new account; `head` has the attempt's id as `attempt`. Raises OSError where it cannot be written."""
        path = store / DIRECTORY / f"{head['attempt']}.jsonl"
        unborn = path.with_suffix(".new")  # until it is locked and has its first line, nobody looks at it
        lock = Lock(unborn)
        lock.acquire()
        account = cls(unborn, head, lock, [])
        account._append(head)
        unborn.rename(path)
        account.path = path
        return account

    def add(self, event: str, **facts: Any) -> Event:
        """Note an event; returns it."""
        noted = {"event": event, "at": int(time.time() * 1000), **facts}
        with contextlib.suppress(OSError):
            self._append(noted)
        return noted

    def _append(self, line: Event) -> None:
        with self._writing, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def settle(self) -> None:
        """Everything is published: nothing is left of it."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def keep(self, left: list[Event]) -> None:
        """All was told, and this was refused: the next attempts try that again. The file's age stays, by which accounts
        are told in order."""
        with contextlib.suppress(OSError):
            before = self.path.stat()
            self._append({"event": _TOLD, "left": left})
            os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def leave(self) -> None:
        """Leave it to the next attempt in this store."""
        self._lock.release()


def left_behind(store: Path) -> Iterator[Account]:
    """Accounts of attempts that no process is at work on any more, oldest first; each is held until settled or left."""
    found = sorted((store / DIRECTORY).glob("*.jsonl"), key=_age)
    for path in found:
        lock = Lock(path)
        if not lock.try_acquire():
            continue
        lines = _lines(path)
        if not lines or "attempt" not in lines[0]:  # another has just settled it, or it was torn at birth
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            lock.release()
            continue
        yield Account(path, lines[0], lock, lines[1:])


def heads(store: Path) -> Iterator[Event]:
    """What identifies each attempt of which something may not be published yet, at work or gone."""
    for path in sorted((store / DIRECTORY).glob("*.jsonl")):
        yield from _lines(path)[:1]


def unpublished(store: Path) -> dict[str, set[str]]:
    """Keys of artifacts that each account still has to tell of, by its MLflow's address: publishing reads them.

    Raises OSError where an account cannot be read.
    """
    found: dict[str, set[str]] = {}
    for path in sorted((store / DIRECTORY).glob("*.jsonl")):
        if lines := _whole(path.read_bytes()):
            keys = found.setdefault(str(lines[0].get("uri", "")), set())
            keys.update(_KEY.findall(json.dumps(_left(lines[1:]))))
    return found


def _left(lines: list[Event]) -> list[Event]:
    """Of the lines after the first: what was refused when all was told last, or everything."""
    told: list[list[Event]] = [line["left"] for line in lines if line.get("event") == _TOLD]
    return told[-1] if told else lines


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _lines(path: Path) -> list[Event]:
    with contextlib.suppress(OSError):
        return _whole(path.read_bytes())
    return []


def _whole(content: bytes) -> list[Event]:
    """Whole lines; one that was torn by a kill is left out."""
    found: list[Event] = []
    for line in content.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
