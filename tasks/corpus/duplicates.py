"""Which documents are copies of earlier ones, decided in the order of the documents. Reads texts of candidates alone.

Positions number all documents in order: those kept of earlier slices first, then this slice's. Candidates are those of
equal hashes: found by sorting this slice's and looking them up in the tables of what was kept before (signatures.py).
The decision itself is one pass over the candidates of this slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.corpus.documents import read_documents
from tasks.corpus.minhash import MinHashConfig, jaccard, shingles
from tasks.corpus.shards import read_rows
from tasks.corpus.signatures import Kept, Table
from tasks.corpus.words import batches

KEPT, EXACT, NEAR, EMPTIED = 0, 1, 2, 3


@dataclass(frozen=True)
class Sketched:
    """The documents of the slice at hand, with their hashes.

    `sketches` are Parquet files with the columns exact, shingles and band_00 …, read a column at a time; `edges` (int64,
    shape (files + 1,)) says which of the rows lie in which of `files`, the files of documents.
    """

    sketches: tuple[Path, ...]
    files: tuple[Path, ...]
    edges: np.ndarray
    ids: np.ndarray
    sources: pa.ChunkedArray

    @classmethod
    def of(cls, shards: Mapping[str, Path], sketches: Mapping[str, Path]) -> Sketched:
        """All documents of a slice, in order; `sketches` are the directories with `sketch.parquet`."""
        table = read_documents(shards.values(), ["id", "source"])
        sizes = [pq.read_metadata(path).num_rows for path in shards.values()]
        return cls(
            tuple(sketches[name] / "sketch.parquet" for name in shards),
            tuple(shards.values()),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            table["id"].to_numpy(),
            table["source"],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def values(self, name: str) -> np.ndarray:
        """One hash column: uint64 for a band, int64 for counts, uint64 of shape (documents, 2) for `exact`."""
        columns = [pq.read_table(path, columns=[name], partitioning=None)[name] for path in self.sketches]
        if name == "exact":
            pairs = [_pairs(chunk) for column in columns for chunk in column.chunks]
            return np.concatenate([np.zeros((0, 2), np.uint64), *pairs])
        return np.concatenate([column.to_numpy() for column in columns]) if columns else np.zeros(0, np.int64)

    @cached_property
    def with_shingles(self) -> np.ndarray:
        """Which documents have a signature: bool, shape (documents,)."""
        return np.asarray(self.values("shingles") > 0)


def _pairs(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    if not len(column):
        return np.zeros((0, 2), np.uint64)
    return np.frombuffer(column.buffers()[1], np.uint64).reshape(-1, 2)[column.offset :][: len(column)]


@dataclass
class Fates:
    """What becomes of each document of a slice: kinds (KEPT, EXACT, …), similarity, and of which kept document."""

    kinds: np.ndarray
    similarity: np.ndarray
    kept_document: dict[int, str] = field(default_factory=dict)
    compared: int = 0


def decide(current: Sketched, kept: Kept, exact: bool, near: MinHashConfig | None) -> Fates:
    """The fate of every document of `current`, given what was kept before."""
    base = len(kept)
    fates = Fates(np.zeros(len(current), np.int8), np.full(len(current), np.nan))
    if not len(current):
        return fates
    copy_of = _exact_copies(current, kept) if exact else {}
    kept_of: dict[int, int] = dict(copy_of)
    if near is not None:
        taken = np.ones(len(current), bool)
        taken[[position - base for position in copy_of]] = False
        for position, (first, similarity) in _near_copies(current, kept, taken, near, fates).items():
            kept_of[position] = first
            fates.kinds[position - base] = NEAR
            fates.similarity[position - base] = similarity
    for position, first in copy_of.items():
        own = position - base
        fates.kinds[own], fates.similarity[own] = EXACT, 1.0
        if first >= base and fates.kinds[first - base] == NEAR:  # it shares the fate of what it is a copy of
            kept_of[position] = kept_of[first]
            fates.kinds[own], fates.similarity[own] = NEAR, fates.similarity[first - base]
    names = kept.names(np.unique([first for first in kept_of.values() if first < base]).astype(np.int64))
    for position, first in kept_of.items():
        fates.kept_document[position - base] = (
            names[first]
            if first < base
            else f"{current.ids[first - base]} of {current.sources[first - base].as_py()}"
        )
    return fates


def _shared(
    values: np.ndarray, positions: np.ndarray, tables: Iterable[Table], rests: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Members of groups of equal values that hold one of `values` and another: positions, group numbers, rests.

    `rests` are further bits of the values; empty where there are none.
    """
    distinct, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    wanted = counts > 1
    found_positions, found_groups, found_rests = [], [], []
    for table in tables:
        rows, at = table.find(distinct)
        wanted[at] = True
        found_positions.append(table.at(rows))
        found_groups.append(at)
        if table.rests is not None:
            found_rests.append(table.rests[rows])
    own = np.flatnonzero(wanted[group])
    if rests is not None:
        found_rests.append(rests[own])
    return (
        np.concatenate([*found_positions, positions[own]]),
        np.concatenate([*found_groups, group[own]]),
        np.concatenate([np.zeros(0, np.uint64), *found_rests]),
    )


def _exact_copies(current: Sketched, kept: Kept) -> dict[int, int]:
    """Position of each exact copy → position of the first document with that text."""
    mine, base = current.values("exact"), len(kept)
    places = np.arange(len(current)) + base
    positions, groups, rests = _shared(mine[:, 0], places, kept.tables("exact.arrow"), mine[:, 1])
    order = np.lexsort((positions, rests, groups))
    positions, groups, rests = positions[order], groups[order], rests[order]
    begins = np.ones(len(positions), bool)
    begins[1:] = (groups[1:] != groups[:-1]) | (rests[1:] != rests[:-1])
    first = positions[begins][np.cumsum(begins) - 1]
    copies = ~begins & (positions >= base)
    return dict(zip(positions[copies].tolist(), first[copies].tolist(), strict=True))


def _near_copies(
    current: Sketched, kept: Kept, taken: np.ndarray, config: MinHashConfig, fates: Fates
) -> dict[int, tuple[int, float]]:
    """Position of each near-duplicate → position of the kept document, and their similarity."""
    base = len(kept)
    able = np.flatnonzero(taken & current.with_shingles)
    positions, groups = [], []
    for band in range(config.bands):
        values = current.values(f"band_{band:02d}")[able]
        place, group, _ = _shared(values, able + base, kept.tables("bands.arrow", band))
        positions.append(place)
        groups.append(group + band * len(able))
    members = np.stack([np.concatenate(positions), np.concatenate(groups)], axis=1)
    members = members[np.lexsort((members[:, 1], members[:, 0]))]
    sets = _shingle_sets(np.unique(members[:, 0]), current, kept, config.ngram)
    return _first_kept(members, sets, base, config.jaccard, fates)


def _first_kept(
    members: np.ndarray, sets: Callable[[int], np.ndarray], base: int, threshold: float, fates: Fates
) -> dict[int, tuple[int, float]]:
    """One pass in order: a document is a copy of the first kept one in a group of its that is similar enough.

    members: int64, shape (memberships, 2), sorted: position, group. A loop over candidates, because each decision
    depends on those before it.
    """
    kept_in: dict[int, list[int]] = {}
    copies: dict[int, tuple[int, float]] = {}
    edges = np.flatnonzero(np.diff(members[:, 0], prepend=-1, append=-1))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        position = int(members[begin, 0])
        own_groups = members[begin:end, 1].tolist()
        if position >= base:
            own = sets(position)
            for other in sorted({kept for group in own_groups for kept in kept_in.get(group, ())}):
                its = sets(other)
                if min(len(own), len(its)) < threshold * max(len(own), len(its)):
                    continue  # the similarity cannot reach the threshold
                fates.compared += 1
                similarity = jaccard(own, its)
                if similarity >= threshold:
                    copies[position] = (other, similarity)
                    break
        if position not in copies:
            for group in own_groups:
                kept_in.setdefault(group, []).append(position)
    return copies


def _shingle_sets(
    positions: np.ndarray, current: Sketched, kept: Kept, ngram: int
) -> Callable[[int], np.ndarray]:
    """The shingle sets of the documents at these positions (ascending), read back from the files of documents."""
    sets: dict[int, np.ndarray] = {}

    def add(places: np.ndarray, texts: pl.Series) -> None:
        for offset, some in batches(texts):
            found = shingles(some, ngram, numbers=True)
            for i in range(len(some)):
                sets[int(places[offset + i])] = found.of(i)

    base = len(kept)
    for places, texts in kept.texts(positions[positions < base]):
        add(places, texts)
    own = positions[positions >= base] - base
    for file, low, high in zip(current.files, current.edges[:-1], current.edges[1:], strict=True):
        here = own[(own >= low) & (own < high)]
        if len(here):
            add(here + base, read_rows(file, here - low))
    return sets.__getitem__
