"""Extracts a folder in a store of its own, a file a shard: says `begun` with the first, and `resumed` if some were there.

Usage: python -m tests.support.extracting FOLDER STORE
"""

from __future__ import annotations

import sys
from pathlib import Path

from storage.store import Making, Request, Store
from tasks.corpus.reading.digests import FileDigests
from tasks.corpus.reading.hub import Remembered
from tasks.corpus.reading.sources import IngestConfig, SourceConfig
from tasks.documents import extract
from tasks.documents.shelves import shelves_of


def main(folder: Path, place: Path) -> None:
    """As a process."""
    extract.SHARD_BYTES = 1
    source = SourceConfig(name="notes", role="domain", weight=1, files=("**",))
    shelves = shelves_of(IngestConfig.of(source, slice_bytes=10**9, seed=0), source, folder, Remembered(None))
    assert shelves is not None
    inputs = extract.extract_inputs(shelves, 0, FileDigests(None))
    told: list[int] = []

    def progress(done: int, total: int | None, unit: str) -> None:
        if not told:
            sys.stdout.write("resumed\n" if done else "")
        if done and 0 in told and len(told) == 1:
            sys.stdout.write("begun\n")
        sys.stdout.flush()
        told.append(done)

    request = Request(extract, extract.ExtractConfig(name="notes"), inputs)
    Store(place).ensure(request, Making(progress=progress))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
