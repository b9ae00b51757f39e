"""Whether the slices before this one train on a text, or on one that has too much in common with it (containment.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from storage.artifact import Input
from storage.draft import Draft
from tasks.corpus.duplicates.containment import AlikeJob, HeldTexts, Pairs, alike_shard, read_pairs
from tasks.corpus.fates import Fates
from tasks.corpus.pieces import Piece
from tasks.corpus.shards import document_shards, read_rows


@dataclass(frozen=True)
class TrainedOn:
    """Tells it of rows of a slice, and of pieces of them. `trained`: the documents of the slices before."""

    draft: Draft
    trained: tuple[Input, ...]
    shards: Mapping[str, Path]
    fates: Fates
    looks: list[str] = field(default_factory=list)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """bool, one for each of `rows`. Reads all of the earlier slices."""
        if not self.trained or not len(rows):
            return np.zeros(len(rows), bool)
        chosen = np.unique(rows)
        return np.isin(rows, chosen[self._known(self._series(chosen))])

    def texts(self, rows: np.ndarray) -> Iterator[str]:
        """The texts of some rows of the slice (int64, ascending)."""
        for some in self._series(rows):
            yield from some

    def of_pieces(self, cuts: list[tuple[Piece, str]]) -> list[bool]:
        """Whether earlier slices train on a piece, or the rest of its document (the text beside it) repeats it."""
        if not cuts:
            return []
        scratch = self.draft.path / "scratch"
        known = np.zeros(len(cuts), bool)
        pieces = pl.Series([piece.of(text) for piece, text in cuts], dtype=pl.String)
        if self.trained:
            known[self._known([pieces])] = True
        rests = pl.Series([piece.rest(text) for piece, text in cuts], dtype=pl.String)
        pairs = HeldTexts.of([pieces], scratch).alike(rests)
        known[pairs.texts[pairs.texts == pairs.places]] = True
        return [bool(one) for one in known]

    def _series(self, rows: np.ndarray) -> Iterator[pl.Series]:
        chosen = np.zeros(len(self.fates.kinds), bool)
        chosen[rows] = True
        for path, own in zip(self.shards.values(), self.fates.files(chosen), strict=True):
            yield read_rows(path, np.flatnonzero(own))

    def _known(self, texts: Iterable[pl.Series]) -> np.ndarray:
        """The places of the texts that are alike with one of the earlier slices."""
        scratch, name = self.draft.path / "scratch", f"trained-{len(self.looks)}"
        self.looks.append(name)
        candidates = HeldTexts.of(texts, scratch)
        directory = scratch / f"candidates-{name}"
        candidates.save(directory)
        jobs = {
            f"{number:05d}-{shard}": AlikeJob(path, directory)
            for number, documents in enumerate(self.trained)
            for shard, path in document_shards(documents).items()
        }
        found = self.draft.scratch(name, jobs, alike_shard)
        return np.unique(Pairs.together([read_pairs(path) for path in found.values()]).places)
