"""The rule of this tier: no process is started and no socket is connected or bound. A test that does it fails."""

from __future__ import annotations

import multiprocessing.util
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import urllib3.util.connection  # noqa: F401 (binds a socket when it is imported, to see whether there is IPv6)

from storage.provenance import git_commit
from tests.support.foreign import foreign, trace  # noqa: F401

EVENTS = (
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "socket.bind",
    "socket.connect",
    "subprocess.Popen",
)
"""What Python tells its audit hooks of, whichever library does it."""

_running: pytest.Item | None = None
_done: list[str] = []


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if _running is None or event not in EVENTS:
        return
    _done.append(f"{event}{arguments[:2]!r}"[:300])
    pytest.fail(_words())


def _words() -> str:
    return (
        f"a test of tests/unit/ starts no process and no server, but this one did: {'; '.join(_done)}. "
        "It belongs into tests/components/, or tests/system/ (tests/README.md)"
    )


def _spawn(*arguments: Any) -> Any:
    _forbid("os.spawn", arguments)
    return _spawnv(*arguments)


git_commit()  # asks git once a process, and remembers the answer
sys.addaudithook(_forbid)
_spawnv = (
    multiprocessing.util.spawnv_passfds
)  # what multiprocessing starts its processes with tells no audit hook
multiprocessing.util.spawnv_passfds = _spawn


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Fixtures keep to the rule too."""
    return (yield from _watched(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Also where the test, or a thread of it, swallowed what it was told."""
    return (yield from _watched(item))


def _watched(item: pytest.Item) -> Iterator[None]:
    global _running
    _running = item
    _done.clear()
    try:
        result = yield
    finally:
        _running = None
    if _done:
        pytest.fail(_words())
    return result
