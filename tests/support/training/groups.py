"""A trainer of several processes as its parent starts it, and what the system shows of them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tasks.models import trainer
from tasks.training.process import launch
from tests.support import ROOT
from tests.support.training.world import World

STEPS = 70
CHANGES: dict[str, Any] = {
    "identity__kind": "pretrain",
    "identity__last_step": STEPS,
    "identity__sequences_per_step": 2,
    "identity__schedule__peak": 1e-3,  # higher, and rounding grows from step to step
    "execution__micro_batch": 1,
    "identity__keep_every_tokens": 2000,
    "execution__checkpoint_every": 0.1,
}


def started(world: World, work: Path, **changes: Any) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    (work / trainer.SPEC).write_text(json.dumps(world.spec(work, **(CHANGES | changes))))
    return work


def train(
    work: Path, processes: int = 2, follow: Callable[[trainer.Process], Any] | None = None, **how: Any
) -> None:
    trainer.run_trainer(
        work,
        processes=processes,
        follow=follow or (lambda process: process.wait()),
        warn=lambda _: None,
        **how,
    )


def losses(work: Path) -> np.ndarray:
    lines = (work / "journal.jsonl").read_text().splitlines()
    return np.array([json.loads(line)["loss"] for line in lines])


def wait_until(true: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def at_work(work: Path) -> list[int]:
    """Processes whose command names this directory."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if str(work) in " ".join(process.info["cmdline"] or ())
    ]


def ranks_of(torchrun: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [child.pid for child in psutil.Process(torchrun).children()]
    return []


def in_a_group(directory: Path, check: str) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun that each call ranks.py with the name of what to check."""
    command = launch.torchrun(directory / "spec.json", 2)
    command[command.index("--max-restarts") + 1] = "0"
    reader, writer = os.pipe()
    module = command.index("-m", command.index("torch.distributed.run"))
    answer = subprocess.run(
        [*command[:module], "-m", "tests.support.training.ranks", check],
        env=launch.environment(reader) | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    os.close(reader)
    os.close(writer)
    return answer
