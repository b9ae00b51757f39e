"""Decide which documents are copies of earlier ones, in document order. Only the texts of candidates are read.

Positions number all documents in order: first those kept of earlier slices, then those of this slice. Candidates have
equal hashes; they are found by sorting this slice's hashes and looking them up in the tables of earlier slices
(signatures.py). The decision is one pass over this slice's candidates. A document is compared with the first
`MOST_IN_GROUP` documents that share a band. This bounds the cost for pages of one template, which are too similar for
the bands to separate and too different to be dropped. The workers compute the candidates' shingles (shingle_sets.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

from tasks.corpus.documents import read_documents
from tasks.corpus.duplicates.minhash import MinHashConfig, jaccard
from tasks.corpus.duplicates.paragraphs import RepeatedLines
from tasks.corpus.duplicates.shingle_sets import Make, ShingleSets
from tasks.corpus.duplicates.signatures import KeptDocuments, SignatureTable

KEPT, EXACT, NEAR, EMPTIED = 0, 1, 2, 3
MOST_IN_GROUP = 64
"""A document is compared with at most this many kept documents (the first ones) for each value of a band."""


@dataclass(frozen=True)
class Sketched:
    """The documents of the current slice, with their hashes.

    `sketches`: memory-mapped tables with the columns exact, shingles and band_00 …, read one column at a time.
    `files`: the files of documents. `edges` (int64, shape (files + 1,)): the range of rows in each file.
    """

    sketches: tuple[pa.Table, ...]
    files: tuple[Path, ...]
    edges: np.ndarray
    ids: np.ndarray
    sources: pa.ChunkedArray

    @classmethod
    def of(cls, shards: Mapping[str, Path], sketches: Mapping[str, Path]) -> Sketched:
        """All documents of a slice, in order. `sketches`: the directories with `sketch.arrow`."""
        table = read_documents(shards.values(), ["id", "source"])
        sizes = [pq.read_metadata(path).num_rows for path in shards.values()]
        return cls(
            tuple(feather.read_table(sketches[name] / "sketch.arrow", memory_map=True) for name in shards),
            tuple(shards.values()),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            table["id"].to_numpy(),
            table["source"],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def values(self, name: str) -> np.ndarray:
        """One hash column: uint64 for a band, int64 for counts, uint64 of shape (documents, 2) for `exact`."""
        columns = [sketch[name] for sketch in self.sketches]
        if name == "exact":
            pairs = [hash_pairs(chunk) for column in columns for chunk in column.chunks]
            return np.concatenate([np.zeros((0, 2), np.uint64), *pairs])
        return np.concatenate([column.to_numpy() for column in columns]) if columns else np.zeros(0, np.int64)

    @cached_property
    def with_shingles(self) -> np.ndarray:
        """Which documents have a signature: bool, shape (documents,)."""
        return np.asarray(self.values("shingles") > 0)


def hash_pairs(column: pa.FixedSizeBinaryArray) -> np.ndarray:
    """Hashes of 16 bytes as uint64, shape (texts, 2)."""
    if not len(column):
        return np.zeros((0, 2), np.uint64)
    return np.frombuffer(column.buffers()[1], np.uint64).reshape(-1, 2)[column.offset :][: len(column)]


@dataclass
class Fates:
    """The decision on each document of a slice: kind (KEPT, EXACT, …), similarity, and the kept document it copies."""

    kinds: np.ndarray
    similarity: np.ndarray
    kept_document: dict[int, str] = field(default_factory=dict)
    compared: int = 0
    beyond_group: int = 0


def decide(
    current: Sketched,
    kept: KeptDocuments,
    exact: bool,
    near: MinHashConfig | None,
    edits: RepeatedLines,
    make: Make,
) -> Fates:
    """The fate of every document of `current`, given the documents kept earlier and the edits of the kept ones.

    Near-duplicates are compared with the edited text of kept documents. A document that the edits empty is never an
    original. `make` runs the jobs that compute shingles.
    """
    base = len(kept)
    fates = Fates(np.zeros(len(current), np.int8), np.full(len(current), np.nan))
    if not len(current):
        return fates
    copy_of = exact_copies(current.values("exact"), kept, edits.emptied) if exact else {}
    kept_of: dict[int, int] = dict(copy_of)
    if near is not None:
        taken = np.ones(len(current), bool)
        taken[[position - base for position in copy_of]] = False
        members = _candidates(current, kept, taken, near.bands)
        sets = ShingleSets(
            np.unique(members[:, 0]), current.files, current.edges, base, kept.places, edits, near.ngram, make
        )
        copies = _first_kept(members, sets, base, near.jaccard, fates, edits)
        for position, (first, similarity) in copies.items():
            kept_of[position] = first
            fates.kinds[position - base] = NEAR
            fates.similarity[position - base] = similarity
    for position, first in copy_of.items():
        own = position - base
        fates.kinds[own], fates.similarity[own] = EXACT, 1.0
        if first >= base and fates.kinds[first - base] == NEAR:  # a copy of a near-duplicate shares its fate
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
    values: np.ndarray,
    positions: np.ndarray,
    tables: Iterable[SignatureTable],
    rests: np.ndarray | None = None,
    most: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Members of groups of equal values that contain one of `values` and another one: positions, groups, rests.

    `rests`: further bits of the values; empty if there are none. `most`: the maximum taken of a group from each table.
    """
    distinct, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    wanted = counts > 1
    found_positions, found_groups, found_rests = [], [], []
    for table in tables:
        rows, at = table.find(distinct, most)
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


def exact_copies(mine: np.ndarray, kept: KeptDocuments, emptied: np.ndarray) -> dict[int, int]:
    """Map from each exact copy's position to that of the first document with the same text, skipping the `emptied`
    ones.

    mine: uint64, shape (documents, 2), the hashes of this slice's texts. emptied: int64, rows of it.
    """
    base = len(kept)
    places = np.arange(len(mine)) + base
    positions, groups, rests = _shared(mine[:, 0], places, kept.tables("exact.arrow"), mine[:, 1])
    order = np.lexsort((positions, rests, groups))
    positions, groups, rests = positions[order], groups[order], rests[order]
    begins = np.ones(len(positions), bool)
    begins[1:] = (groups[1:] != groups[:-1]) | (rests[1:] != rests[:-1])
    same = np.cumsum(begins) - 1
    stays = ~np.isin(positions, emptied + base)
    first = np.full(int(begins.sum()), np.iinfo(np.int64).max)
    np.minimum.at(first, same[stays], positions[stays])
    copies = (positions > first[same]) & (positions >= base)
    return dict(zip(positions[copies].tolist(), first[same][copies].tolist(), strict=True))


def _candidates(current: Sketched, kept: KeptDocuments, taken: np.ndarray, bands: int) -> np.ndarray:
    """Documents that share a band with another one: int64, shape (memberships, 2), rows (position, group), sorted."""
    able = np.flatnonzero(taken & current.with_shingles)
    positions, groups = [], []
    for band in range(bands):
        values = current.values(f"band_{band:02d}")[able]
        place, group, _ = _shared(
            values, able + len(kept), kept.tables("bands.arrow", band), most=MOST_IN_GROUP
        )
        positions.append(place)
        groups.append(group + band * len(able))
    members = np.stack([np.concatenate(positions), np.concatenate(groups)], axis=1)
    return members[np.lexsort((members[:, 1], members[:, 0]))]


def _first_kept(
    members: np.ndarray, sets: ShingleSets, base: int, threshold: float, fates: Fates, edits: RepeatedLines
) -> dict[int, tuple[int, float]]:
    """One pass in order: a document copies the first kept document in one of its groups that is similar enough.

    `members`: as returned by `_candidates`. Returns position → (position of the kept document, similarity). It is a
    loop over candidates, because each decision depends on the earlier ones.
    """
    kept_in: dict[int, list[int]] = {}
    copies: dict[int, tuple[int, float]] = {}
    emptied = set((edits.emptied + base).tolist())
    edges = np.flatnonzero(np.diff(members[:, 0], prepend=-1, append=-1))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        position = int(members[begin, 0])
        own_groups = members[begin:end, 1].tolist()
        if position >= base:
            own = sets.given(position)
            for other in sorted({kept for group in own_groups for kept in kept_in.get(group, ())}):
                its = sets.kept(other)
                if min(len(own), len(its)) < threshold * max(len(own), len(its)):
                    continue  # the similarity cannot reach the threshold
                fates.compared += 1
                similarity = jaccard(own, its)
                if similarity >= threshold:
                    copies[position] = (other, similarity)
                    break
        if position not in copies and position not in emptied:
            for group in own_groups:
                others = kept_in.setdefault(group, [])
                if len(others) < MOST_IN_GROUP:
                    others.append(position)
                else:
                    fates.beyond_group += position >= base
    return copies
