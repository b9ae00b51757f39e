"""Worker processes that are left alone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
import pytest

from storage.errors import Interrupted, StageFailed
from storage.workers import Workers


def _sleep(directory: str) -> None:
    (Path(directory) / str(os.getpid())).touch()
    time.sleep(300)


@pytest.mark.slow
def test_abandoned_workers_are_gone_in_seconds_and_whoever_waits_for_them_is_told(tmp_path):
    told: list[BaseException] = []
    workers = Workers(2)

    def wait() -> None:
        try:
            list(workers.run((str(number), _sleep, (str(tmp_path),)) for number in range(4)))
        except Interrupted as error:
            told.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    workers.abandon()
    thread.join(10)
    assert len(told) == 1
    with pytest.raises(Interrupted):
        list(workers.run([("late", _sleep, (str(tmp_path),))]))
    workers.close()
    until = time.monotonic() + 10
    while any(_running(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


def _signalled(directory: str, name: str) -> int:
    """Hang up on this worker, as a closed terminal does to a whole process group, and end its work nevertheless."""
    for number in (signal.SIGHUP, signal.SIGINT):
        os.kill(os.getpid(), number)
    (Path(directory) / name).touch()
    return os.getpid()


def test_a_closed_terminal_and_ctrl_c_leave_workers_to_their_parent(tmp_path):
    """In a process of its own: who starts the keeper of semaphores decides what ends it, and here another test may have."""
    program = f"from {__name__} import _hang_up_on_all; _hang_up_on_all({str(tmp_path)!r})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


def _hang_up_on_all(directory: str) -> None:
    with Workers(2) as workers:
        made = dict(workers.run((name, _signalled, (directory, name)) for name in ("a", "b")))
        tracker = resource_tracker._resource_tracker._pid
        os.kill(tracker, signal.SIGHUP)
        again = dict(workers.run([("c", _signalled, (directory, "c"))]))
        assert _running(tracker)
    assert set(made) == {"a", "b"} and set(again) == {"c"}


def _running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def test_a_system_without_semaphores_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /dev/shm is read-only or not there (seen with it mounted so)."""

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refused)
    with (
        Workers(2) as workers,
        pytest.raises(StageFailed, match=r"make /dev/shm writable, or set corpus\.execution\.workers: 1"),
    ):
        list(workers.run([("a", len, ("abc",))]))
    with Workers(1) as workers:
        assert list(workers.run([("a", len, ("abc",))])) == [("a", 3)]
