"""What `decontaminate` decides of each document of a slice: kept, held out, or dropped, and why. Nothing is read here.

A decision stays: what is dropped is neither held out nor dropped for another reason, and what is held out stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tasks.corpus.documents import dropped_table
from tasks.corpus.duplicates.comparison import hash_pairs
from tasks.corpus.duplicates.containment import Pairs
from tasks.corpus.holdout import not_trained_on

KEPT, QUESTION, HELD_OUT, COPY = 0, 1, 2, 3
REASONS = {QUESTION: "benchmark_overlap", HELD_OUT: "held_out_overlap", COPY: "copy_after_filter"}


@dataclass(frozen=True)
class Fates:
    """The documents of a slice with the decisions so far. The arrays change; they have one entry for each document.

    documents: id, source and bytes, and what was computed of each text. edges: int64, the range of rows of each file.
    kinds: int8. values: float64. details: text. held: bool.
    """

    documents: pa.Table
    edges: np.ndarray
    kinds: np.ndarray
    values: np.ndarray
    details: np.ndarray
    held: np.ndarray

    @classmethod
    def of(cls, documents: pa.Table, rows: Sequence[int]) -> Fates:
        """All kept, but those in which a question was `matched`. `rows`: of each file."""
        matched = documents["matched"].to_numpy()
        details = np.array(documents["detail"].to_pylist(), object)
        kinds = np.where(matched > 0, QUESTION, KEPT).astype(np.int8)
        edges = np.cumsum([0, *rows]).astype(np.int64)
        return cls(documents, edges, kinds, matched.astype(float), details, np.zeros(len(kinds), bool))

    @property
    def bytes(self) -> np.ndarray:
        """Bytes of each text: int64."""
        return np.asarray(self.documents["bytes"].to_numpy())

    @property
    def gone(self) -> np.ndarray:
        """Which documents are dropped: bool."""
        return np.asarray(self.kinds != KEPT)

    @property
    def stays(self) -> np.ndarray:
        """Which documents are trained on: bool."""
        return np.asarray((self.kinds == KEPT) & ~self.held)

    @property
    def hashes(self) -> np.ndarray:
        """Hashes of the whole texts: uint64, shape (documents, 2)."""
        chunks = [hash_pairs(chunk) for chunk in self.documents["exact"].chunks]
        return np.concatenate([np.zeros((0, 2), np.uint64), *chunks])

    def files(self, mask: np.ndarray) -> list[np.ndarray]:
        """A mask, file by file."""
        return [mask[low:high] for low, high in zip(self.edges[:-1], self.edges[1:], strict=True)]

    def drop_overlaps(self, pairs: Pairs, names: Callable[[], Sequence[str]]) -> None:
        """Drop documents that share too much with a held-out text. `names`: of the texts that `pairs` numbers."""
        best = pairs.best()
        if len(best.texts):
            held = names()
            self._drop(best.texts, HELD_OUT, best.shares, [held[place] for place in best.places.tolist()])

    def drop_copies(self, copies: Mapping[int, tuple[int | None, str]]) -> None:
        """Drop copies: row → the row of the document that stays, if it is of this slice, and its name."""
        rows = np.array([row for row in copies if self.kinds[row] == KEPT], np.int64)
        self._drop(rows, COPY, np.ones(len(rows)), [copies[row][1] for row in rows.tolist()])

    def hold_out(
        self,
        fraction: float,
        trained_on: Callable[[np.ndarray], np.ndarray],
        left_out: np.ndarray | None = None,
    ) -> int:
        """Choose what is held out. Returns how many were passed over.

        `trained_on`: of some rows (int64), whether earlier slices train on their text. left_out: bool, documents that are
        not held out whole.
        """
        clean = np.flatnonzero((self.kinds == KEPT) & ~(False if left_out is None else left_out))
        hashes = self.documents["hash"].to_numpy()[clean]
        held, passed_over = not_trained_on(
            hashes, self.bytes[clean], fraction, lambda places: trained_on(clean[places])
        )
        self.held[clean[held]] = True
        return passed_over

    def call_held_out(self, copies: Mapping[int, tuple[int | None, str]]) -> None:
        """Name held-out texts as the reason of what was dropped as their copy."""
        for row, (first, _) in copies.items():  # few
            if self.kinds[row] == COPY and first is not None and self.held[first]:
                self.kinds[row] = HELD_OUT

    def reasons(self) -> np.ndarray:
        """The reasons of what is dropped, in order."""
        return np.array([REASONS[int(kind)] for kind in self.kinds[self.gone]], str)

    def dropped(self, stage: str) -> pa.Table:
        """The rows of `dropped.parquet`."""
        gone = self.documents.select(["id", "source"]).filter(pa.array(self.gone))
        values, details = self.values[self.gone], self.details[self.gone].tolist()
        return dropped_table(
            gone["id"], gone["source"], stage, self.reasons().tolist(), values, pa.array(details, pa.string())
        )

    def most_by_one(self) -> tuple[str, int]:
        """The held-out text for which most documents are dropped, and their number; the first of equals."""
        names, counts = np.unique(self.details[self.kinds == HELD_OUT].astype(str), return_counts=True)
        return (str(names[np.argmax(counts)]), int(counts.max())) if len(names) else ("", 0)

    def _drop(self, rows: np.ndarray, kind: int, values: np.ndarray, details: Sequence[str]) -> None:
        open_ = (self.kinds[rows] == KEPT) & ~self.held[rows]
        rows = rows[open_]
        self.kinds[rows], self.values[rows] = kind, values[open_]
        self.details[rows] = np.array(details, object)[open_]
