"""Processes by pid and start time, and the attempts of a run record that are at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from flows.machine import processes
from flows.machine.processes import alive, at_work, start_ticks, stop_group
from flows.services import supervisor


def process(pid: int, host: str | None = None) -> dict[str, object]:
    return {"pid": pid, "host": host or os.uname().nodename, "started": start_ticks(pid)}


def test_only_attempts_whose_process_is_gone_are_not_at_work():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    attempts = {"here": process(os.getpid()), "child": process(child.pid), "there": process(1, "elsewhere")}
    assert set(at_work(attempts)) == {"here", "child", "there"}
    child.kill()
    child.wait()
    assert set(at_work(attempts)) == {"here", "there"}, "a process of another machine is not ours to judge"


def test_a_pid_that_is_used_again_is_another_process():
    assert alive(os.getpid(), start_ticks(os.getpid()))
    assert not alive(os.getpid(), "1")


_DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"


@pytest.fixture
def deaf(monkeypatch):
    """A process in a group of its own that takes no SIGTERM, on a kernel that does not carry out SIGKILL, as for one
    that waits for a device."""
    child = subprocess.Popen(
        [sys.executable, "-c", _DEAF],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PREFECT__FLOW_RUN_ID": "one", "PREFECT_API_URL": "http://of-this-test/api"},
    )
    assert child.stdout is not None and child.stdout.readline() == b"\n"
    kill, killpg = os.kill, os.killpg
    for name, real in (("kill", kill), ("killpg", killpg)):
        monkeypatch.setattr(
            os, name, lambda to, number, real=real: number == signal.SIGKILL or real(to, number)
        )
    for module in (processes, supervisor):
        monkeypatch.setattr(module, "KILLED_SECONDS", 0.5)
    yield child
    killpg(child.pid, signal.SIGKILL)
    child.wait()


def test_a_group_that_outlives_a_sigkill_is_told_of_and_not_waited_for_for_ever(deaf, capfd):
    began = time.monotonic()
    assert not stop_group(deaf.pid, 0.2)
    assert time.monotonic() - began < 10
    assert f"process group {deaf.pid} is still there" in capfd.readouterr().err


def test_nor_is_a_flow_that_outlives_it(deaf, monkeypatch):
    monkeypatch.setattr(supervisor, "FLOW_GRACE_SECONDS", 0.2)
    said: list[str] = []
    supervisor._end_processes("http://of-this-test/api", said.append)
    assert len(said) == 1 and f"process {deaf.pid} is still there" in said[0]
