"""Which documents are copies of earlier ones, decided in the order of the documents. Reads texts of candidates alone.

Positions number all documents in order: those kept in earlier slices first, then this slice's. Candidates come from
sorting (equal hashes); the decision itself is one pass over the candidates of this slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.corpus.documents import read_documents
from tasks.corpus.minhash import MinHashConfig, jaccard, shingles
from tasks.corpus.shards import read_rows
from tasks.corpus.words import batches

KEPT, EXACT, NEAR = 0, 1, 2


@dataclass(frozen=True)
class Seen:
    """Documents with their hashes: of the slice at hand, or the kept ones of an earlier slice.

    `hashes` are Parquet files with the columns exact, shingles and band_00 …, read a column at a time; `edges` (int64,
    shape (files + 1,)) says which of the rows lie in which of `files`, the files of documents.
    """

    hashes: tuple[Path, ...]
    files: tuple[Path, ...]
    edges: np.ndarray
    rows: np.ndarray
    ids: np.ndarray
    sources: pa.ChunkedArray

    @classmethod
    def of_slice(cls, shards: Mapping[str, Path], sketches: Mapping[str, Path]) -> Seen:
        """All documents of a slice, in order; `sketches` are the directories with `sketch.parquet`."""
        table = read_documents(shards.values(), ["id", "source"])
        sizes = [pq.read_metadata(path).num_rows for path in shards.values()]
        return cls(
            tuple(sketches[name] / "sketch.parquet" for name in shards),
            tuple(shards.values()),
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            np.concatenate([*(np.arange(size) for size in sizes), np.zeros(0, np.int64)]),
            table["id"].to_numpy(),
            table["source"],
        )

    @classmethod
    def of_link(cls, link: Input) -> Seen:
        """The kept documents of an earlier slice, from its `signatures` part."""
        path = next(path for path in link.paths if path.suffix == ".parquet")
        table = pq.read_table(path, columns=["id", "source", "file", "row"], partitioning=None)
        names = table["file"].to_numpy(zero_copy_only=False).astype(str)
        starts = np.flatnonzero(np.concatenate([np.ones(len(names[:1]), bool), names[1:] != names[:-1]]))
        return cls(
            (path,),
            tuple(link.root / str(names[start]) for start in starts),
            np.concatenate([starts, [len(names)]]),
            table["row"].to_numpy().astype(np.int64),
            table["id"].to_numpy(),
            table["source"],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def columns(self) -> list[str]:
        """Names of the hash columns."""
        return pq.read_schema(self.hashes[0]).names if self.hashes else []

    def column(self, name: str) -> pa.ChunkedArray:
        """One hash column of all documents."""
        return pa.chunked_array(
            [
                chunk
                for path in self.hashes
                for chunk in pq.read_table(path, columns=[name], partitioning=None)[name].chunks
            ],
            type=pq.read_schema(self.hashes[0]).field(name).type if self.hashes else pa.int64(),
        )

    def values(self, name: str) -> np.ndarray:
        """One hash column as numpy: uint64 for a band, int64 for counts, uint64 of shape (documents, 2) for `exact`."""
        column = self.column(name).combine_chunks()
        if name != "exact":
            return column.to_numpy()
        if not len(column):
            return np.zeros((0, 2), np.uint64)
        return np.frombuffer(column.buffers()[1], np.uint64).reshape(-1, 2)[column.offset :][: len(column)]

    @cached_property
    def with_shingles(self) -> np.ndarray:
        """Which documents have a signature: bool, shape (documents,)."""
        return self.values("shingles") > 0


@dataclass
class Fates:
    """What becomes of each document of a slice: kinds (KEPT, EXACT, NEAR), similarity, and of which kept document."""

    kinds: np.ndarray
    similarity: np.ndarray
    kept_document: dict[int, str] = field(default_factory=dict)
    compared: int = 0


def decide(current: Seen, earlier: Sequence[Seen], exact: bool, near: MinHashConfig | None) -> Fates:
    """The fate of every document of `current`, given what was kept before."""
    starts = np.concatenate([[0], np.cumsum([len(seen) for seen in [*earlier, current]])]).astype(np.int64)
    base = int(starts[-2])
    fates = Fates(np.zeros(len(current), np.int8), np.full(len(current), np.nan))
    if not len(current):
        return fates
    copy_of = _exact_copies(current, earlier, starts) if exact else {}
    kept_of: dict[int, int] = dict(copy_of)
    if near is not None:
        taken = np.ones(len(current), bool)
        taken[[position - base for position in copy_of]] = False
        similar = _near_copies(current, earlier, starts, taken, near, fates)
        for position, (kept, similarity) in similar.items():
            kept_of[position] = kept
            fates.kinds[position - base] = NEAR
            fates.similarity[position - base] = similarity
    for position, first in copy_of.items():
        own = position - base
        fates.kinds[own], fates.similarity[own] = EXACT, 1.0
        if first >= base and fates.kinds[first - base] == NEAR:  # it shares the fate of what it is a copy of
            kept_of[position] = kept_of[first]
            fates.kinds[own], fates.similarity[own] = NEAR, fates.similarity[first - base]
    for position, kept in kept_of.items():
        fates.kept_document[position - base] = _name_of(kept, [*earlier, current], starts)
    return fates


def _name_of(position: int, seen: Sequence[Seen], starts: np.ndarray) -> str:
    where = int(np.searchsorted(starts, position, side="right")) - 1
    row = position - int(starts[where])
    return f"{seen[where].ids[row]} of {seen[where].sources[row].as_py()}"


def _shared(
    current: np.ndarray, positions: np.ndarray, earlier: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Members of groups of equal values that hold one of `current` and another: their positions and group numbers.

    Sorting is of the current slice alone; earlier ones are looked up one after the other.
    """
    distinct, group, counts = np.unique(current, return_inverse=True, return_counts=True)
    groups = np.flatnonzero(counts > 1)
    found_positions, found_groups = [], []
    for values, places in earlier:
        at = np.minimum(np.searchsorted(distinct, values), max(len(distinct) - 1, 0))
        hit = distinct[at] == values if len(distinct) else np.zeros(len(values), bool)
        found_positions.append(places[hit])
        found_groups.append(at[hit])
        groups = np.union1d(groups, at[hit])
    own = np.isin(group, groups)
    return (
        np.concatenate([*found_positions, positions[own]]),
        np.concatenate([*found_groups, group[own]]).astype(np.int64),
    )


def _exact_copies(current: Seen, earlier: Sequence[Seen], starts: np.ndarray) -> dict[int, int]:
    """Position of each exact copy → position of the first document with that text."""
    mine = current.values("exact")
    base = int(starts[-2])
    others: dict[int, np.ndarray] = {}

    def of_earlier() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for seen, start in zip(earlier, starts, strict=False):
            values = seen.values("exact")
            others[int(start)] = values[:, 1]
            yield values[:, 0], np.arange(len(seen)) + int(start)

    positions, groups = _shared(mine[:, 0], np.arange(len(current)) + base, of_earlier())
    first: dict[tuple[int, int], int] = {}
    copies: dict[int, int] = {}
    for position, group in zip(positions.tolist(), groups.tolist(), strict=True):  # candidates only, in order
        where = int(starts[np.searchsorted(starts, position, side="right") - 1])
        rest = int(mine[position - base, 1] if position >= base else others[where][position - where])
        kept = first.setdefault((group, rest), position)
        if kept != position and position >= base:
            copies[position] = kept
    return copies


def _near_copies(
    current: Seen,
    earlier: Sequence[Seen],
    starts: np.ndarray,
    taken: np.ndarray,
    config: MinHashConfig,
    fates: Fates,
) -> dict[int, tuple[int, float]]:
    """Position of each near-duplicate → position of the kept document, and their similarity."""
    base = int(starts[-2])
    able = np.flatnonzero(taken & current.with_shingles)
    positions, groups, next_group = [], [], 0
    for band in range(config.bands):
        name = f"band_{band:02d}"
        place, group = _shared(current.values(name)[able], able + base, _bands(earlier, starts, name))
        positions.append(place)
        groups.append(group + next_group)
        next_group += len(able)
    members = np.unique(np.stack([np.concatenate(positions), np.concatenate(groups)], axis=1), axis=0)
    sets = _shingle_sets(np.unique(members[:, 0]), [*earlier, current], starts, config.ngram)
    return _first_kept(members, sets, base, config.jaccard, fates)


def _bands(earlier: Sequence[Seen], starts: np.ndarray, name: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for seen, start in zip(earlier, starts, strict=False):
        able = np.flatnonzero(seen.with_shingles)
        yield seen.values(name)[able], able + int(start)


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
    positions: np.ndarray, seen: Sequence[Seen], starts: np.ndarray, ngram: int
) -> Callable[[int], np.ndarray]:
    """The shingle sets of the documents at these positions, read back from the files of documents."""
    sets: dict[int, np.ndarray] = {}
    for part, start in zip(seen, starts, strict=False):
        for file, low, high in zip(part.files, part.edges[:-1], part.edges[1:], strict=True):
            wanted = positions[(positions >= start + low) & (positions < start + high)]
            if not len(wanted):
                continue
            for offset, texts in batches(read_rows(file, part.rows[wanted - start])):
                found = shingles(texts, ngram, numbers=True)
                for i in range(len(texts)):
                    sets[int(wanted[offset + i])] = found.of(i)
    return sets.__getitem__
