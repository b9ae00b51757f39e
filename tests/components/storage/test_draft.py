"""Shards by worker processes, and what happens where one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from storage.draft import Draft
from storage.errors import StageFailed
from storage.workers import Workers
from tests.support import ROOT
from tests.support import letters_stage as stages


def test_the_first_failure_is_raised(tmp_path):
    with Workers(2) as workers, pytest.raises(TypeError):
        Draft(tmp_path, workers=workers).shards("letters", {"a": ("x", "many")}, stages.make_letters)


_POOL = """
import sys, time
from storage.workers import Workers
def slow(seconds):
    time.sleep(seconds)
if __name__ == "__main__":
    with Workers(2) as workers:
        list(workers.run([("a", time.sleep, (60,)), ("b", time.sleep, (60,))]))
"""


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(_POOL)
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    until = time.monotonic() + 60
    while len(children := psutil.Process(parent.pid).children()) < 3:  # two workers and the resource tracker
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(1.0)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 10
    while left := [child for child in children if child.is_running()]:
        assert time.monotonic() < until, f"outlived their parent: {left}"
        time.sleep(0.05)


def test_a_worker_that_is_killed_fails_the_stage_with_what_to_do():
    with Workers(2) as workers:
        with pytest.raises(StageFailed, match="worker process died"):
            list(workers.run([("a", os.kill, (0, 0)), ("b", os._exit, (9,))]))
        assert dict(workers.run([("a", len, ("abc",))])) == {"a": 3}
