"""The trainer process as its parent sees it: start it, alone or under torchrun; follow it; ask it to stop; end it.

Invariants: the trainer does not outlive its parent for long, and while it lives it holds the descriptors lent to it
(the work directory's lock among them). It watches a pipe whose other end is here. A single process is asked to stop by
SIGTERM. Under torchrun the end of the pipe is the request: after a signal, torchrun kills its processes within 30 s,
which may cut a checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from storage.atomic import write_bytes
from storage.errors import DamagedArtifact, Interrupted, StageFailed
from tasks.training.process import launch, restart
from tasks.training.state.sealed import RESULT

RESUMABLE = 75
"""Exit code: the trainer stopped on request, with a checkpoint. Under torchrun the code is 0, and there is no result."""
SPEC, LOG = "spec.json", "trainer.log"

_GRACE_SECONDS = 120.0
_OF_A_FAULT = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_LOST = "lost the others"
"""In the words of a trainer whose other processes are gone (tasks/training/process/processes.py)."""
_ENDED_ONE = "ended one of its processes"
_TORCHRUN_SECONDS = 45.0
_ROOT = Path(__file__).resolve().parents[2]

Process = subprocess.Popen[bytes]


def run_trainer(
    work: Path,
    *,
    processes: int = 1,
    nodes: int = 1,
    rendezvous: str | None = None,
    held: tuple[int, ...] = (),
    follow: Callable[[Process], None],
    warn: Callable[[str], None],
) -> None:
    """Run the trainer over `work`/spec.json to its end. `follow` returns when the process has ended.

    `held`: descriptors that the trainer holds too. Raises StageFailed with the trainer's last words, DamagedArtifact if
    it met damaged bytes, Interrupted if it was asked to stop. If `follow` raises, the trainer is stopped first.
    """
    several = processes * nodes > 1
    reader, writer = os.pipe()
    end = _End(writer)
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(end.close)
        spec = _tell_pipe(work / SPEC, None if several else reader)
        run = cleanup.enter_context(_met(work, processes, nodes, rendezvous, warn))
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tasks.training", str(spec)]
        if several:
            command = launch.torchrun(spec, processes, nodes=nodes, address=rendezvous, run=run)
            environment = launch.environment(reader, nodes, environment)
        log = cleanup.enter_context((work / LOG).open("ab"))
        begun = log.seek(0, os.SEEK_END)
        process = start(command, environment, log, (reader, *held))
        os.close(reader)
        cleanup.callback(_forget_failures, work)
        with _stopped_cleanly(process, end if several else None):
            follow(process)
    _judge(process.returncode, work, begun)


def start(command: list[str], environment: dict[str, str], log: Any, held: tuple[int, ...]) -> Process:
    """Start a process group of its own, which holds the descriptors `held`."""
    return subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=held,
        start_new_session=True,
    )


def end_by_force(process: Process) -> None:
    """Send a signal, so that torchrun ends its processes. If that takes too long, SIGKILL it and each of them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TORCHRUN_SECONDS)
            return
        groups = [process.pid, *_children(process.pid)]
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
    process.wait()


class _End:
    """The parent's end of the pipe; closed once."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _tell_pipe(path: Path, descriptor: int | None) -> Path:
    spec = json.loads(path.read_bytes()) | {"parent_fd": descriptor}
    path.write_text(json.dumps(spec, indent=1), encoding="utf-8")
    return path


@contextlib.contextmanager
def _stopped_cleanly(process: Process, end: _End | None) -> Iterator[None]:
    """On any exception: ask the trainer to stop, give it time for its checkpoint, then end it by force."""
    try:
        yield
    finally:
        if process.poll() is None:
            if end is not None:
                end.close()
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                end_by_force(process)


@contextlib.contextmanager
def _met(
    work: Path, processes: int, nodes: int, rendezvous: str | None, warn: Callable[[str], None]
) -> Iterator[str]:
    """Wait until every other machine has announced that it joins (join.py). Yields the name of this start."""
    run = secrets.token_hex(8)
    if nodes == 1:
        yield run
        return
    call = {"id": run, "address": rendezvous, "nodes": nodes, "processes": processes}
    try:
        write_bytes(work / launch.RENDEZVOUS, json.dumps(call).encode())
        warn(
            f"waiting for {nodes - 1} other machine(s); on each, with this run's store as STORE and N from 1 to "
            f"{nodes - 1}: python -m tasks.training.join STORE N"
        )
        while not all(launch.joined(work, run, node).exists() for node in range(1, nodes)):
            time.sleep(0.2)
        yield run
    finally:
        (work / launch.RENDEZVOUS).unlink(missing_ok=True)
        for node in range(1, nodes):
            launch.joined(work, run, node).unlink(missing_ok=True)


def _forget_failures(work: Path) -> None:
    for path in work.glob(f"{restart.MARKER}*"):
        path.unlink(missing_ok=True)


def _judge(code: int | None, work: Path, begun: int) -> None:
    if code == RESUMABLE or (code == 0 and not (work / RESULT).exists()):
        raise Interrupted("the trainer was asked to stop")
    if code:
        words, said = _last_words(work / LOG, begun)
        code = said if said and code == 1 else code
        if code == launch.DAMAGED:
            raise DamagedArtifact(f"the trainer found damaged bytes: {words}")
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise StageFailed(f"the trainer {how}: {words}", passing=_may_pass(code, words))


def _may_pass(code: int, words: str) -> bool | None:
    """Whether the same again may succeed: after a signal from outside, a full disk or the loss of a process."""
    if code < 0:
        return True if -code not in _OF_A_FAULT else None
    if code == launch.MACHINE or _LOST in words or _ENDED_ONE in words:
        return True
    return False if "error:" in words else None


def _last_words(log: Path, begun: int) -> tuple[str, int | None]:
    """The last error of the first process, or of another, and the signal that ended one; else the last lines.

    With it, the code that a process gave for its failure, which torchrun hides.
    """
    time.sleep(0.05)
    with log.open("rb") as file:
        file.seek(begun)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("trainer: error:")]
    errors = errors or [line for line in lines if re.match(r"trainer \d+: error:", line)]
    signals = [found[1] for line in lines if (found := re.search(r"Signal \d+ \((SIG\w+)\) received", line))]
    killed = [f"({name} {_ENDED_ONE})" for name in signals if name != "SIGTERM"]  # torchrun's own
    codes = [
        found[1]
        for line in lines
        if (found := re.fullmatch(rf"trainer[ 0-9]*: {launch.CODE_SAID}(\d+)", line))
    ]
    words = " ".join([*errors[-1:], *killed[-1:]] or [" / ".join(lines[-3:])])[-1500:]
    return words, int(codes[-1]) if codes else None


def _children(pid: int) -> list[int]:
    with contextlib.suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children()]
    return []
