"""What a command does where nobody reads it: closed pipes, a full device, streams that are not there. And hang-ups."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from flows.machine.processes import on_hangup
from tasks.training.process.stop import Stop
from tests.support.small import ONWARD, environment


def onward(home: Path, *arguments: str, redirect: str = "") -> subprocess.CompletedProcess[str]:
    line = " ".join([*ONWARD, *arguments, redirect])
    return subprocess.run(
        ["bash", "-c", line], env=environment(home), cwd=home, capture_output=True, text=True, timeout=120
    )


def test_a_reader_that_leaves_ends_a_command_without_a_word(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*ONWARD, "--version"],
        env=environment(tmp_path),
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    answer = onward(tmp_path, "--version", redirect="> /dev/full")
    assert answer.returncode == 1
    assert answer.stderr == "standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", ">&-", "2>&-", "2> /dev/full"])
def test_closed_streams_change_no_exit_code(tmp_path: Path, closed: str) -> None:
    answer = onward(tmp_path, "--version", redirect=closed)
    assert answer.returncode == 0 and answer.stderr == ""
    answer = onward(tmp_path, "why", "baking", "none.yaml", redirect=closed)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict", "utf-16"])
def test_answers_are_utf8_whatever_python_is_told(tmp_path: Path, encoding: str) -> None:
    """A plan has a × in it: it ended with a traceback."""
    name = "größe-×"
    done = subprocess.run(
        [*ONWARD, "gc", "--config", f"{name}.yaml"],
        env={**environment(tmp_path), "PYTHONIOENCODING": encoding},
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    said = done.stdout.decode() + done.stderr.decode()
    assert done.returncode == 2 and name in said and "Traceback" not in said


@pytest.mark.parametrize("how", ["PYTHONOPTIMIZE=2", "LC_ALL=C PYTHONUTF8=0 PYTHONOPTIMIZE=2"])
def test_python_without_docstrings_is_started_with_them(tmp_path: Path, how: str) -> None:
    """transformers and mlflow build their classes from docstrings: a run under -OO failed in the base model."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: print(sys.flags.optimize, sys.flags.utf8_mode))\n"
    )
    line = f"{how} PYTHONPATH={tmp_path}:$PYTHONPATH {' '.join(ONWARD)} --version"
    done = subprocess.run(
        ["bash", "-c", line],
        env=environment(tmp_path),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1].startswith("0 "), done.stdout + done.stderr


def test_a_hang_up_is_a_request_to_stop_and_stays_ignored_under_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    asked = list[str]()
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        on_hangup(lambda: asked.append("stop"))
        signal.raise_signal(signal.SIGHUP)
        assert asked == ["stop"]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        on_hangup(lambda: asked.append("stop"))
        others = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
        Stop().on_signals()
        signal.signal(signal.SIGTERM, others[0])
        signal.signal(signal.SIGINT, others[1])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stop = Stop()
        stop.on_signals()
        signal.signal(signal.SIGTERM, others[0])
        signal.signal(signal.SIGINT, others[1])
        signal.raise_signal(signal.SIGHUP)
        assert stop() and stop.reason == "SIGHUP"
    finally:
        signal.signal(signal.SIGHUP, before)
