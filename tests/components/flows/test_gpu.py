"""One run at a time on a device, with real processes and a device that no machine has."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from flows.machine.gpu import Gpu
from tests.support import ROOT

_HOLD = """
import sys, time
from pathlib import Path
from flows.machine.gpu import Gpu
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
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
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


@pytest.mark.parametrize(
    ("device", "visible", "count", "names"),
    [
        ("auto", None, 1, ("0",)),
        ("cuda", None, 3, ("0", "1", "2")),
        ("auto", "3,1,2", 2, ("3", "1")),
        ("auto", "GPU-5a/1, GPU-6b", 2, ("GPU-5a-1", "GPU-6b")),
        ("cuda:1", "3,1", 1, ("1",)),
        ("cuda:2", None, 1, ("2",)),
        ("cpu", "3,1", 2, ()),
    ],
)
def test_a_run_takes_every_device_that_it_computes_on(tmp_path, monkeypatch, device, visible, count, names):
    import torch

    from storage.lock import Lock

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = Gpu(tmp_path, device, "a run", count)
    assert gpu.names() == names
    with gpu.held(lambda who: None) as held:
        assert len(held) == len(names)
        assert {path.name for path in tmp_path.iterdir()} == {f"gpu-{name}.lock" for name in names}
        assert not any(Lock(tmp_path / f"gpu-{name}.lock").try_acquire() for name in names)
    for name in names:
        lock = Lock(tmp_path / f"gpu-{name}.lock")
        assert lock.try_acquire()
        lock.release()


@pytest.mark.parametrize("visible", ["0,1", "1,0"])
def test_devices_are_taken_in_one_order_so_that_no_two_runs_wait_for_each_other(
    tmp_path, monkeypatch, visible
):
    import torch

    from storage.lock import Lock

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    second = Lock(tmp_path / "gpu-1.lock")
    assert second.try_acquire()
    waits, entered = threading.Event(), threading.Event()

    def take() -> None:
        with Gpu(tmp_path, "auto", "a run", 2).held(lambda who: waits.set()):
            entered.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert waits.wait(5), "for the second device"
    assert not Lock(tmp_path / "gpu-0.lock").try_acquire(), "and has the first by then, however it sees them"
    second.release()
    assert entered.wait(5)
    thread.join(5)
