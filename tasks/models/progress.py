"""Progress of a segment, read from the files that the trainer writes: its journal and the names of its checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NewestCheckpoint:
    """The step of a segment's newest checkpoint, and the checkpoint's age."""

    step: int
    age_seconds: float


def newest_checkpoint(work: Path) -> NewestCheckpoint | None:
    """The checkpoint from which training in this work directory would continue, judged by names. None without one."""
    found: list[tuple[int, float]] = []
    for path in (work / "checkpoints").glob("step-*"):
        with contextlib.suppress(OSError, ValueError):
            step = int(path.name.removeprefix("step-"))
            found.append((step, (path / "manifest.json").stat().st_mtime))
    if not found:
        return None
    step, written = max(found)
    return NewestCheckpoint(step, max(0.0, time.time() - written))


def tokens_at(journal: Path, step: int) -> int | None:
    """Tokens seen at a step, or at the last logged step before it. Reads the whole journal."""
    tokens = None
    with contextlib.suppress(OSError, ValueError, KeyError):
        for line in journal.read_bytes().split(b"\n")[:-1]:
            row = json.loads(line)
            if int(row["step"]) > step:
                break
            tokens = int(row["tokens"])
    return tokens


def last_row(journal: Path) -> dict[str, Any] | None:
    """The newest complete line. Reads only the file's last bytes."""
    try:
        with journal.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().split(b"\n")[:-1]
        row: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError):
        return None
    return row if "step" in row else None
