"""The events of an attempt for MLflow, kept beside the store first. What a server missed is published from here.

Each attempt has one file, `<store>/.tracking/<attempt>.jsonl`: one line that identifies the attempt, then one line for
each event. Its process holds a lock on the file while it lives. If nobody holds a file, its attempt was killed or ended
while the server was away. The file is deleted once everything in it is published; refused events stay in it for a few
more runs. An event holds only names, keys and numbers; the data they refer to is in the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.lock import Lock

DIRECTORY = ".tracking"
_TOLD = "told"
_CHECK = "check"
"""The field of a line that holds a checksum of the others."""
_KEY = re.compile(r'"([0-9a-f]{64})"')

Event = dict[str, Any]
"""Plain JSON. `event` names what happened, and `at` is the time in milliseconds since 1970."""


class Account:
    """An attempt's events, in order. Adding one never fails a run: without disk space, only MLflow learns less."""

    def __init__(self, path: Path, head: Event, lock: Lock, lines: list[Event]) -> None:
        self.path = path
        self.head = head
        self.events: list[Event] = [line for line in lines if line.get("event") != _TOLD]
        """All events."""
        self.left = _left(lines)
        """The events that the server does not have."""
        self.told = len(lines) - len(self.events)
        """How often all events were sent and some were refused."""
        self._lock = lock
        self._writing = threading.Lock()

    @classmethod
    def begin(cls, store: Path, head: Event) -> Account:
        """Begin an account. `head` has the attempt's id as `attempt`. Raises OSError if it cannot be written."""
        path = store / DIRECTORY / f"{head['attempt']}.jsonl"
        unborn = path.with_suffix(".new")  # nobody looks at it until it is locked and has its first line
        lock = Lock(unborn)
        lock.acquire()
        account = cls(unborn, head, lock, [])
        account._append(head)
        unborn.rename(path)
        account.path = path
        return account

    def add(self, event: str, **facts: Any) -> Event:
        """Record an event and return it."""
        noted = {"event": event, "at": int(time.time() * 1000), **facts}
        with contextlib.suppress(OSError):
            self._append(noted)
        return noted

    def _append(self, line: Event) -> None:
        with self._writing, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, _CHECK: _check_of(line)}, ensure_ascii=False) + "\n")

    def settle(self) -> None:
        """Delete the account, because everything is published."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._lock.release()

    def keep(self, left: list[Event]) -> None:
        """Keep only the refused events `left`, so that the next attempts try them again.

        The file's age stays, because accounts are published in the order of age.
        """
        with contextlib.suppress(OSError):
            before = self.path.stat()
            self._append({"event": _TOLD, "left": left})
            os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def leave(self) -> None:
        """Leave the account to the next attempt in this store."""
        self._lock.release()


def left_behind(store: Path) -> Iterator[Account]:
    """Accounts of attempts without a live process, oldest first. Each is locked until it is settled or left."""
    found = sorted((store / DIRECTORY).glob("*.jsonl"), key=_age)
    for path in found:
        lock = Lock(path)
        if not lock.try_acquire():
            continue
        lines = _lines(path)
        if not lines or "attempt" not in lines[0]:  # just settled by another process, or cut off at birth
            with contextlib.suppress(OSError):
                if path.exists() and damaged_lines(
                    path
                ):  # whose it was cannot be told; its run tells it again
                    path.rename(path.with_suffix(".damaged"))
                path.unlink(missing_ok=True)
            lock.release()
            continue
        yield Account(path, lines[0], lock, lines[1:])


def heads(store: Path) -> Iterator[Event]:
    """The first line of each account that may hold unpublished events, of live and ended attempts."""
    for path in sorted((store / DIRECTORY).glob("*.jsonl")):
        yield from _lines(path)[:1]


def unpublished(store: Path) -> dict[str, set[str]]:
    """Keys of artifacts that each account has not published yet, by its MLflow's address. Publishing will read them.

    Raises OSError if an account, or a line of one, cannot be read.
    """
    found: dict[str, set[str]] = {}
    for path in sorted((store / DIRECTORY).glob("*.jsonl")):
        if damaged_lines(path):
            raise OSError(
                f"{path} is not what was written: start its run again, which tells MLflow anew, and remove the file"
            )
        if lines := _whole(path.read_bytes()):
            keys = found.setdefault(str(lines[0].get("uri", "")), set())
            keys.update(_KEY.findall(json.dumps(_left(lines[1:]))))
    return found


def _left(lines: list[Event]) -> list[Event]:
    """The unpublished events: what was refused the last time all were sent, or every event. No first line in `lines`."""
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
    """Complete lines. A line that a kill cut off is left out, and one that is not what was written."""
    found: list[Event] = []
    for line in content.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            event = json.loads(line)
            if event.pop(_CHECK, None) in (None, _check_of(event)):  # none in a line that 0.1.0 wrote
                found.append(event)
    return found


def damaged_lines(path: Path) -> int:
    """How many complete lines of an account are not what was written. Raises OSError if it cannot be read."""
    content = path.read_bytes()
    return content.count(b"\n") - len(_whole(content))


def _check_of(line: Event) -> str:
    return f"{zlib.crc32(json.dumps(line, sort_keys=True).encode()):08x}"
