"""Processes by pid and start time, and the attempts of a run record that are at work."""

from __future__ import annotations

import os
import subprocess
import sys

from flows.processes import alive, at_work, start_ticks


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
