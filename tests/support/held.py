"""Shards that the tests hold back with files, run in real workers; and a run of its own process that can be killed.

Usage: python -m tests.support.held EXECUTOR WORK GATES SHARD…
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from storage.draft import Draft
from storage.workers import Workers


def make(job: tuple[str, str], directory: Path) -> dict[str, Any]:
    """The first to make a shard says so with `<shard>.begun` and waits for `<shard>.go`; any other is quick."""
    gates, name = Path(job[0]), job[1]
    (directory / "first.txt").write_text(f"first of {name}")
    try:
        (gates / f"{name}.begun").open("x").write(str(os.getpid()))
        while not (gates / f"{name}.go").exists():
            time.sleep(0.05)
    except FileExistsError:
        pass
    (directory / "second.txt").write_text(f"second of {name}")
    return {"rows": 2, "pid": os.getpid()}


def die(_: int) -> None:
    """What a worker does that runs out of memory."""
    os._exit(9)


def jobs(gates: Path, names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """A job for each shard."""
    return {name: (str(gates), name) for name in names}


if __name__ == "__main__":
    executor, work, gates, *names = sys.argv[1:]
    from tests.support import held  # by its own name, so that workers find it

    with Workers(executor=executor) as workers:
        Draft(Path(work), workers=workers).shards("letters", jobs(Path(gates), tuple(names)), held.make)
