"""The shingles of documents that may be copies. Workers compute them file by file; they are read back memory-mapped.

The sets stay on disk during the comparison, so the system can evict their pages when memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from tasks.corpus.duplicates.minhash import shingles
from tasks.corpus.duplicates.paragraphs import RepeatedLines, without_lines
from tasks.corpus.shards import read_rows
from tasks.corpus.words import batches

GIVEN, AS_KEPT = "given.arrow", "kept.arrow"
_SCHEMA = pa.schema({"shingles": pa.large_list(pa.uint64())})


@dataclass(frozen=True)
class ShingleJob:
    """Documents whose shingles are computed. `pieces`: files of documents and rows of them (packed int64, ascending).

    A second set is computed without the lines `lines`, for the documents numbered `edited` (int64, packed, ascending,
    with repeats). Then there is only one piece.
    """

    pieces: tuple[tuple[Path, bytes], ...]
    ngram: int
    edited: bytes = b""
    lines: bytes = b""


Make = Callable[[dict[str, ShingleJob]], dict[str, Path]]
"""Runs `shingle_shard` for each job; returns the jobs' directories by name."""


def shingle_shard(job: ShingleJob, directory: Path) -> dict[str, Any]:
    """Shard function: the sets of all documents in `given.arrow`; those of edited documents in `kept.arrow`.

    One column, shingles: for each document uint64, ascending, without repeats.
    """
    pieces = (
        read_rows(path, np.frombuffer(rows, np.int64)) for path, rows in job.pieces
    )  # one in memory at a time
    rows = _write_sets(directory / GIVEN, pieces, job.ngram)
    edited, which = np.unique(np.frombuffer(job.edited, np.int64), return_inverse=True)
    if len(edited):
        ((path, own),) = job.pieces
        texts = read_rows(path, np.frombuffer(own, np.int64)[edited])
        left = without_lines(texts, which, np.frombuffer(job.lines, np.int64))
        _write_sets(directory / AS_KEPT, [left], job.ngram)
    return {"rows": rows}


class ShingleSets:
    """The sets of the documents at `positions` (int64, ascending): those kept earlier, then those of this slice.

    The first `base` documents were kept earlier. `earlier` finds them: for each link of the chain it yields their
    positions and the (file, rows) of their texts, in the same order. This slice's documents are in `files`, divided by
    `edges` (int64, shape (files + 1,)). `edits`: the lines removed from them.
    """

    def __init__(
        self,
        positions: np.ndarray,
        files: tuple[Path, ...],
        edges: np.ndarray,
        base: int,
        earlier: Callable[[np.ndarray], Iterator[tuple[np.ndarray, list[tuple[Path, np.ndarray]]]]],
        edits: RepeatedLines,
        ngram: int,
        make: Make,
    ) -> None:
        jobs: dict[str, ShingleJob] = {}
        given: dict[str, np.ndarray] = {}
        kept: dict[str, np.ndarray] = {}
        for number, (places, pieces) in enumerate(earlier(positions[positions < base])):
            name = f"earlier-{number:05d}"
            jobs[name] = ShingleJob(tuple((path, rows.tobytes()) for path, rows in pieces), ngram)
            given[name] = places
        own = positions[positions >= base] - base
        for number, (path, low, high) in enumerate(zip(files, edges[:-1], edges[1:], strict=True)):
            here = own[slice(*np.searchsorted(own, [low, high]))]
            if not len(here):
                continue
            at, lines = edits.of(here)
            stays = ~np.isin(here[at], edits.emptied)
            name = f"own-{number:05d}"
            jobs[name] = ShingleJob(
                ((path, (here - low).tobytes()),), ngram, at[stays].tobytes(), lines[stays].tobytes()
            )
            given[name], kept[name] = here + base, here[np.unique(at[stays])] + base
        self._given: dict[int, np.ndarray] = {}
        self._kept: dict[int, np.ndarray] = {}
        for name, directory in make(jobs).items() if jobs else ():
            self._given.update(zip(given[name].tolist(), _read_sets(directory / GIVEN), strict=True))
            if len(kept.get(name, ())):
                self._kept.update(zip(kept[name].tolist(), _read_sets(directory / AS_KEPT), strict=True))

    def given(self, position: int) -> np.ndarray:
        """The shingles of a document before its edits: uint64, ascending, without repeats."""
        return self._given[position]

    def kept(self, position: int) -> np.ndarray:
        """The shingles of a document after its edits."""
        found = self._kept.get(position)
        return self._given[position] if found is None else found


def _write_sets(path: Path, pieces: Iterable[pl.Series], ngram: int) -> int:
    """Write one set per text. Returns the number of sets."""
    rows = 0
    with pa.ipc.new_file(str(path), _SCHEMA) as writer:
        for some in (some for texts in pieces for _, some in batches(texts)):
            rows += len(some)
            found = shingles(some, ngram)
            sets = [found.of(i) for i in range(len(some))]
            edges = np.concatenate([[0], np.cumsum([len(one) for one in sets])]).astype(np.int64)
            lists = pa.LargeListArray.from_arrays(pa.array(edges), pa.array(np.concatenate(sets)))
            writer.write_batch(pa.record_batch([lists], schema=_SCHEMA))
    return rows


def _read_sets(path: Path) -> Iterator[np.ndarray]:
    with pa.memory_map(str(path)) as file:  # the arrays keep the pages mapped
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            lists = reader.get_batch(number).column(0)
            values, edges = lists.values.to_numpy(), lists.offsets.to_numpy()
            for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                yield values[begin:end]
