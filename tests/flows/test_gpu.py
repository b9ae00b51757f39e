"""One run at a time on a device, with real processes and a device that no machine has."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.gpu import Gpu

_HOLD = """
import sys, time
from pathlib import Path
from flows.gpu import Gpu
with Gpu(Path(sys.argv[1]), "fake", "the first run").held(lambda who: None):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that has the device; ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _HOLD, str(tmp_path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_run_says_who_has_the_device_and_goes_on_when_that_one_is_killed(tmp_path, holder):
    first = holder()
    told: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with Gpu(tmp_path, "fake", "the second run").held(told.append):
            entered.set()

    thread = threading.Thread(target=second, daemon=True)
    thread.start()
    assert not entered.wait(1.5)
    assert told == [f"gpu-fake is taken by the first run, process {first.pid}"]
    first.send_signal(signal.SIGKILL)
    assert entered.wait(5)
    thread.join(5)


def test_while_a_child_holds_the_device_nobody_else_does(tmp_path):
    from storage.lock import Lock

    with Gpu(tmp_path, "fake", "a run").held(lambda who: None) as held:
        child = subprocess.Popen(["sleep", "600"], pass_fds=held)
    try:
        assert not Lock(tmp_path / "gpu-fake.lock").try_acquire()
    finally:
        child.kill()
        child.wait()
    assert Lock(tmp_path / "gpu-fake.lock").try_acquire()


def test_on_the_cpu_nothing_is_locked(tmp_path):
    with Gpu(tmp_path, "cpu", "a run").held(lambda who: None) as held:
        assert held == ()
    assert list(tmp_path.iterdir()) == []
