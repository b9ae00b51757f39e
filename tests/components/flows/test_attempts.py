"""Two real attempts at one configuration, side by side: each a process of its own, on one run record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.runs import RunRecord, read_records
from storage.store import Store
from tests.support import ROOT

_STAGES = 40
_ATTEMPT = """
import sys, time
from pathlib import Path
from tests.support.runs import run_with
from tests.support import slow_stage
from tests.support.slow_stage import SlowConfig, SlowInputs
from flows.runs.run import RunAttempt
from flows.dag.call import Call
from flows.runs.stage_task import Builder
from flows.ui.console import Console
from flows.tracking.tracker import Tracked, Tracker
from storage.store import Request, Store
from storage.workers import Workers

name, home, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
store = Store(home / "store")
tracker = Tracker(Tracked("small", "", name, "", None, {}, {}), store, lambda message: None)
builder = Builder(store, Workers(1), Console(quiet=True))
attempt = RunAttempt.of(run_with([40960]), builder, tracker, None)
attempt.begin()
print("begun", flush=True)
input()
for number in range(count):
    builder.make(Call(Request(slow_stage, SlowConfig(letter=f"{name}-{number}"), SlowInputs()), number, None, None))
print("made", flush=True)
input()
attempt.end("completed")
"""


@pytest.fixture
def attempt(tmp_path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts an attempt, which says `begun` and `made`, and ends when it is told to."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "go").touch()

    def start(name: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _ATTEMPT, name, str(tmp_path), str(_STAGES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "ONWARD_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def says(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{word}\n"


def go_on(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def end(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=60)
    assert process.returncode == 0


def record(home: Path) -> RunRecord:
    (found,) = read_records(Store(home / "store"))
    return found


def made(home: Path) -> set[tuple[str, str]]:
    return {(artifact.stage, artifact.key) for artifact in Store(home / "store").artifacts()}


def pids(found: RunRecord) -> set[Any]:
    return {process["pid"] for process in found.processes.values()}


def test_attempts_beside_each_other_lose_nothing_of_their_record(tmp_path, attempt):
    one, two = attempt("one"), attempt("two")
    says(one, "begun"), says(two, "begun")
    go_on(one, two)
    says(one, "made"), says(two, "made")
    found = record(tmp_path)
    assert pids(found) == {one.pid, two.pid}
    assert len(made(tmp_path)) == 2 * _STAGES
    assert set(found.artifacts) == made(tmp_path), "each wrote the record at each stage, both at once"
    end(one)
    found = record(tmp_path)
    assert (found.state, pids(found)) == ("running", {two.pid}), "the other one is at work"
    assert set(found.artifacts) == made(tmp_path)
    end(two)
    found = record(tmp_path)
    assert (found.state, pids(found)) == ("completed", set())
    assert set(found.artifacts) == made(tmp_path)


def test_what_a_killed_attempt_made_stays_when_the_one_beside_it_ends(tmp_path, attempt):
    one, two = attempt("one"), attempt("two")
    says(one, "begun"), says(two, "begun")
    go_on(one, two)
    until = time.monotonic() + 60
    while len(made(tmp_path)) < _STAGES // 2:
        assert time.monotonic() < until
    one.send_signal(signal.SIGKILL)
    one.wait()
    says(two, "made")
    assert one.pid in pids(record(tmp_path)), "nobody has looked for it yet"
    kept = set(record(tmp_path).artifacts)
    end(two)
    found = record(tmp_path)
    assert (found.state, pids(found)) == ("completed", set())
    assert set(found.artifacts) == kept
    assert len(made(tmp_path) - kept) <= 1, "only a stage that was made, and not noted yet, as it was killed"
