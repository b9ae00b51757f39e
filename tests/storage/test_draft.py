"""Shards: committed one by one, by any number of workers; a worker leaves when its parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import stages

from storage.draft import Draft
from storage.errors import OnwardError, StageFailed
from storage.workers import Workers

HERE = Path(__file__).parent


def test_shards_that_are_committed_are_not_made_again(tmp_path):
    jobs = {"a": ("x", 1), "b": ("y", 2)}
    Draft(tmp_path).shards("letters", jobs, stages.make_letters)
    before = (tmp_path / "letters/a/letters.txt").stat().st_mtime_ns
    stats = Draft(tmp_path).shards("letters", {**jobs, "c": ("z", 3)}, stages.make_letters)
    assert stats == {"a": {"rows": 1}, "b": {"rows": 2}, "c": {"rows": 3}}
    assert (tmp_path / "letters/a/letters.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("harm", ["truncate", "no record", "torn record"])
def test_a_shard_that_is_not_whole_is_made_again(tmp_path, harm):
    Draft(tmp_path).shards("letters", {"a": ("x", 5)}, stages.make_letters)
    record = tmp_path / "letters/a/.shard.json"
    if harm == "truncate":
        (tmp_path / "letters/a/letters.txt").write_text("x")
    elif harm == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:-5])
    Draft(tmp_path).shards("letters", {"a": ("x", 5)}, stages.make_letters)
    assert (tmp_path / "letters/a/letters.txt").read_text() == "xxxxx"


def test_scratch_survives_a_crash_and_is_in_no_part(tmp_path):
    draft = Draft(tmp_path)
    made = draft.scratch("measure", {"a": ("x", 2)}, stages.make_letters)
    assert (made["a"] / "letters.txt").read_text() == "xx"
    again = Draft(tmp_path)
    assert again.scratch("measure", {"a": ("x", 2)}, stages.make_letters) == made
    again.shards("letters", {"a": ("y", 1)}, stages.make_letters)
    parts, _ = again.finish()
    assert [entry.path for entry in parts["letters"].files] == ["letters/a/letters.txt"]


@pytest.mark.parametrize("name", ["..", "A", "a/b", "", ".hidden", "a b"])
def test_a_shard_cannot_leave_its_part(tmp_path, name):
    with pytest.raises(OnwardError, match="cannot name a shard"):
        Draft(tmp_path).shards("letters", {name: ("x", 1)}, stages.make_letters)


def test_the_first_failure_is_raised(tmp_path):
    with Workers(2) as workers, pytest.raises(TypeError):
        Draft(tmp_path, workers=workers).shards("letters", {"a": ("x", "many")}, stages.make_letters)


def test_progress_counts_shards(tmp_path):
    seen = []
    draft = Draft(tmp_path, progress=lambda done, total, unit: seen.append((done, total, unit)))
    draft.shards("letters", {"a": ("x", 1), "b": ("x", 1)}, stages.make_letters)
    assert seen == [(done, 2, "shards of letters") for done in range(3)]


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
    root = HERE.parents[1]
    parent = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(root)})
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
