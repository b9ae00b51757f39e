"""What it costs to verify inputs: a store of given size is read for the first time, again, and after it was committed.

Usage: python benchmarks/verifying.py STORE [GIGABYTES]     (STORE: a new directory)

Each artifact has eight files of 32 MB, as token shards have. A reader is a stage with all of them as its inputs.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from storage.artifact import Input
from storage.draft import Draft
from storage.settings import Settings, identity
from storage.store import Request, Store

STAGE, VERSION = "bytes", 1
FILES, FILE_BYTES = 8, 32_000_000


class Numbered(Settings):
    """One of many."""

    number: int = identity(description="which")


@dataclass(frozen=True)
class Read:
    """What a stage reads."""

    parts: tuple[Input, ...] = ()


def run(config: Numbered, inputs: Read, draft: Draft) -> dict[str, Any]:
    """A writer writes its files; a reader writes one byte."""
    (draft.path / "part").mkdir(exist_ok=True)
    names = ["one"] if inputs.parts else [str(number) for number in range(FILES)]
    for name in names:
        data = b"x" if inputs.parts else os.urandom(1_000_000) * (FILE_BYTES // 1_000_000)
        (draft.path / "part" / name).write_bytes(data)
    draft.part("part", "part")
    return {}


def main() -> None:
    root, size = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 5.0
    count = max(1, round(size * 1e9 / (FILES * FILE_BYTES)))
    this = sys.modules[__name__]
    writer = Store(root)
    parts = [
        writer.ensure(Request(this, Numbered(number=number), Read())).artifact.part("part")
        for number in range(count)
    ]
    total = count * FILES * FILE_BYTES

    def read(number: int, what: str) -> None:
        store = Store(root)
        wall, cpu = time.perf_counter(), time.process_time()
        store.ensure(Request(this, Numbered(number=number), Read(tuple(parts))))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rate = (
            f"{total / 1e9 / cpu:.2f} GB per CPU second" if store.digests.hashed_bytes else "nothing hashed"
        )
        print(
            f"{what:<34} {store.digests.hashed_bytes / 1e9:6.2f} GB hashed, {wall:7.2f} s, {cpu:6.2f} CPU s, {rate}"
        )

    read(-1, "just committed")
    (root / ".digests").unlink()
    read(-2, "first read (nothing remembered)")
    read(-3, "second read, another process's")


if __name__ == "__main__":
    main()
