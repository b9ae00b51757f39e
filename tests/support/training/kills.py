"""Trainers killed or left alone, and what is waited for meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.training.trainers import Start


def wait_for(condition: Callable[[], Any], process: BaseProcess, seconds: float = 180.0) -> bool:
    """Poll fast; False when the process ended first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        if not process.is_alive():
            return False
    return True


def kill(process: BaseProcess) -> None:
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):  # it may have ended at that moment
        os.kill(process.pid, signal.SIGKILL)
    process.join(30)


def finish(start: Start, spec: dict[str, Any]) -> None:
    process = start(spec)
    process.join(300)  # a machine of half the speed, and other tests beside
    assert process.exitcode == 0


def journal_steps_safely(work: Path) -> list[int]:
    """As journal_steps, of whole lines only: the trainer may be writing one."""
    path = work / "journal.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["step"] for line in path.read_text().split("\n")[:-1] if line]
