"""A fastText classifier as tables (Joulin et al. 2016), to tell for many texts at once which are sure of a label.

The library reads one text at a time, byte by byte. It adds up a row of numbers for each word and each run of 2 to 4 letters
in it, takes the mean, and goes from the root of a binary tree of labels to a leaf; each turn is a logistic function of the
mean. A batch of texts has ten times fewer distinct words than words, so here the rows of a distinct word are added up once.

The library adds in single precision and in the order of the text, which no sum of counted words repeats to the last bit. So
`Certainty` comes with a bound for what rounding can do: a text whose score is above a limit by more than that is above it
by the library's own reckoning. All others are for the library to say.

Only what lid.176.ftz is made of is read: version 12, supervised, a hierarchical softmax, letter runs, rows in product
quantization with their norms apart, and no quantized output.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.corpus.rules.pieces import Pieces
from tasks.corpus.rules.spans import Flat
from tasks.corpus.words import flat_bytes, hash_ranges

_MAGIC, _VERSION = 793712314, 12
_HIERARCHICAL, _SUPERVISED = 1, 3
_LABEL = "__label__"
_END = "</s>"
_FNV_BASIS, _FNV_PRIME = np.uint32(2166136261), np.uint32(16777619)
_LOG_OFFSET = 1e-5
"""What the library adds before it takes a logarithm."""
_UNIT = 2.0**-24
"""Half the distance between 1 and the next number in single precision."""
_MARKS = np.zeros(256, bool)
_MARKS[[0, 28, 29, 30, 31]] = True
"""NUL parts words for the library and not for Python's `str.split`; the separators of files, records and the like do so
for Python alone."""


@dataclass(frozen=True)
class Certainty:
    """Of each text: the score of the label without rounding, and the factor by which rounding may change it. float64,
    shape (texts,). A factor of infinity: the text has words that are not known here."""

    scores: np.ndarray
    factors: np.ndarray

    def above(self, limit: float) -> np.ndarray:
        """Which texts have a score of `limit` or more for sure: bool."""
        return np.asarray(self.scores >= limit * self.factors)


@dataclass(frozen=True, eq=False)
class Tables:
    """The tables of a model file.

    rows: float32, shape (rows, dimensions): those of the words, then those of the letter runs. words: the hashes of the
    words, sorted; word_rows: the row of each. runs: int32, shape (buckets,), the row of a hashed letter run, or −1.
    turns: float32, shape (labels − 1, dimensions), of the tree. paths: for each label its turns and their directions
    (+1: right, −1: left). run_letters: the least and the largest number of letters in a run.
    """

    rows: np.ndarray
    words: np.ndarray
    word_rows: np.ndarray
    runs: np.ndarray
    turns: np.ndarray
    paths: dict[str, tuple[np.ndarray, np.ndarray]]
    run_letters: tuple[int, int]
    end_row: int

    @classmethod
    def read(cls, path: Path) -> Tables:
        """Read a model file. Raises ValueError if it is of another kind than described above."""
        file = _File(path.read_bytes())
        magic, version = file.take("ii")
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError(f"{path}: no fastText model of version {_VERSION}")
        dimensions, _, _, _, _, word_runs, loss, kind, buckets, least, most, _ = file.take("12i")
        file.take("d")
        if (word_runs, loss, kind) != (1, _HIERARCHICAL, _SUPERVISED) or not 0 < least <= most:
            raise ValueError(f"{path}: no classifier by words and letter runs with a hierarchical softmax")
        size, words, _ = file.take("iii")
        _, pruned = file.take("qq")
        names, counts = [], []
        for _ in range(size):
            names.append(file.string())
            counts.append(file.take("qb")[0])
        pairs = file.array("<i4", 2 * pruned).reshape(-1, 2)
        runs = np.full(buckets, -1, np.int32)
        runs[pairs[:, 0]] = pairs[:, 1] + words
        rows = file.quantized()
        if file.take("?")[0] or rows.shape[1] != dimensions:
            raise ValueError(f"{path}: a quantized output is not read here")
        turns = file.array("<f4", int(np.prod(shape := file.take("qq")))).reshape(shape)
        hashes = hash_ranges(*_edges(pl.Series([name.decode() for name in names[:words]])))
        order = np.argsort(hashes)
        labels = [name.decode().removeprefix(_LABEL) for name in names[words:]]
        paths = dict(zip(labels, _paths(counts[words:]), strict=True))
        end = names.index(_END.encode())
        return cls(rows, hashes[order], order, runs, turns, paths, (least, most), end)

    def certainty(self, pieces: Pieces, flat: Flat, label: str) -> Certainty:
        """How sure a batch of texts is of a label. `pieces`: between white space. `flat`: the texts' bytes."""
        columns = self._columns(label)
        own = self._sums(pieces.distinct, pieces.hashes, columns)
        first = pieces.spans.first
        total = np.stack([_totals(column[pieces.codes], first) for column in own.T], axis=1)
        total += columns[self.end_row]
        counts = total[:, -1]
        logits = total[:, :-2] / counts[:, None]
        chances = 1 / (1 + np.exp(-logits)) + _LOG_OFFSET
        slack = (counts + 64) * _UNIT
        slip = np.where(slack < 0.5, slack / (1 - np.minimum(slack, 0.5)), np.inf) * total[:, -2] / counts
        slip += (8 * _UNIT / chances).sum(
            axis=1
        ) + 1e-4  # the library takes a turn's chance from 1 for the other turn
        slip = np.where(self._strange(pieces, flat), np.inf, slip)
        return Certainty(np.prod(chances, axis=1), np.exp(np.minimum(slip, 700.0)))

    @cache  # noqa: B019
    def _columns(self, label: str) -> np.ndarray:
        """What each row adds to the logits of the label's turns, to their largest possible size, and to the count.

        The tables live as long as the process, and few labels are asked."""
        turns, directions = self.paths[label]
        weights = self.turns[turns].astype(np.float64) * directions[:, None]
        logits = self.rows.astype(np.float64) @ weights.T
        largest = np.abs(self.rows).astype(np.float64) @ np.abs(weights).sum(axis=0)
        return np.column_stack([logits, largest, np.ones(len(largest))])

    def _strange(self, pieces: Pieces, flat: Flat) -> np.ndarray:
        """Which texts the library may cut otherwise, or hold a label or the end of a text: bool, shape (texts,)."""
        named = pieces.distinct.str.contains(f"^({_LABEL}|{_END}$)").to_numpy()
        strange = pieces.spans.count(named[pieces.codes]) > 0
        strange[flat.text_of(np.flatnonzero(_MARKS[flat.buffer]))] = True
        return strange

    def _sums(self, pieces: pl.Series, hashes: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The sums of the columns over the rows of each piece: float64, shape (pieces, columns)."""
        at = np.minimum(np.searchsorted(self.words, hashes), len(self.words) - 1)
        known = self.words[at] == hashes
        owner, rows = self._runs(pieces)
        found = np.empty((len(pieces), columns.shape[1]))
        for number, column in enumerate(columns.T):
            found[:, number] = np.bincount(owner, column[rows], minlength=len(pieces))
        found[known] += columns[self.word_rows[at[known]]]
        return found

    def _runs(self, pieces: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """(piece, row) of every run of letters in `<piece>`, as far as the model has a row for it."""
        wide = pieces.str.len_bytes() != pieces.str.len_chars()
        if not wide.any():
            return self._runs_of_bytes(pieces)
        owners, rows = [], []
        for some, runs in ((~wide, self._runs_of_bytes), (wide, self._runs_of_letters)):
            owner, row = runs(pieces.filter(some))
            owners.append(some.arg_true().to_numpy().astype(np.int64)[owner])
            rows.append(row)
        return np.concatenate(owners), np.concatenate(rows)

    def _runs_of_bytes(self, pieces: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """`_runs` where each letter is one byte."""
        buffer, edges = flat_bytes(pl.select("<" + pieces + ">").to_series())
        owner = np.repeat(np.arange(len(pieces)), np.diff(edges))
        room = np.repeat(edges[1:], np.diff(edges)) - np.arange(len(buffer))
        codes = buffer.astype(np.uint32)
        hashes = (codes ^ _FNV_BASIS) * _FNV_PRIME
        owners, found = [], []
        least, most = self.run_letters
        for letters in range(1, most + 1):
            if letters > 1:
                hashes = (hashes[: len(hashes) - 1] ^ codes[letters - 1 :]) * _FNV_PRIME
            if letters >= least:
                rows = self._row_of(hashes)
                real = np.flatnonzero((rows >= 0) & (room[: len(rows)] >= letters))
                owners.append(owner[real])
                found.append(rows[real])
        return np.concatenate(owners), np.concatenate(found)

    def _runs_of_letters(self, pieces: pl.Series) -> tuple[np.ndarray, np.ndarray]:
        """`_runs` of letters of any number of bytes, which are hashed as signed numbers."""
        buffer, edges = flat_bytes(pl.select("<" + pieces + ">").to_series())
        letters = np.flatnonzero((buffer & 0xC0) != 0x80)
        owner = np.searchsorted(edges, letters, side="right") - 1
        room = np.searchsorted(letters, edges[1:])[owner] - np.arange(len(letters))
        signed = buffer.view(np.int8).astype(np.int32).view(np.uint32)
        starts = np.append(letters, len(buffer))
        longest = int(np.diff(starts).max(initial=1))
        hashes = np.full(len(letters), _FNV_BASIS)
        owners, found = [], []
        least, most = self.run_letters
        for taken in range(most):
            inside = np.flatnonzero(room > taken)
            letter = inside + taken
            hashed = (hashes[inside] ^ signed[letters[letter]]) * _FNV_PRIME
            for byte in range(1, longest):
                longer = np.flatnonzero(starts[letter + 1] - starts[letter] > byte)
                hashed[longer] = (hashed[longer] ^ signed[letters[letter[longer]] + byte]) * _FNV_PRIME
            hashes[inside] = hashed
            if taken + 1 >= least:
                rows = self._row_of(hashed)
                real = rows >= 0
                owners.append(owner[inside[real]])
                found.append(rows[real])
        return np.concatenate(owners), np.concatenate(found)

    def _row_of(self, hashes: np.ndarray) -> np.ndarray:
        buckets = np.uint32(len(self.runs))
        return self.runs[hashes - hashes // buckets * buckets]  # quicker than a remainder


def _totals(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(total[first[1:]] - total[first[:-1]])


class _File:
    """The fields of a model file, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def string(self) -> bytes:
        begin, self._at = self._at, self._data.index(b"\0", self._at) + 1
        return self._data[begin : self._at - 1]

    def array(self, kind: str, count: int) -> np.ndarray:
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at += values.nbytes
        return values

    def quantized(self) -> np.ndarray:
        """A matrix in product quantization: float32."""
        if not self.take("?")[0]:
            raise ValueError("the rows are not quantized")
        normed, rows, dimensions, size = self.take("?qqi")
        codes = self.array("u1", size).reshape(rows, -1)
        matrix = _decoded(codes, *self._centroids())[:, :dimensions]
        if normed:
            matrix = matrix * _decoded(self.array("u1", rows)[:, None], *self._centroids())
        return matrix

    def _centroids(self) -> tuple[np.ndarray, int]:
        dimensions, _, width, last = self.take("iiii")
        if width != last:
            raise ValueError("parts of unequal width are not read here")
        return self.array("<f4", dimensions * 256), width


def _decoded(codes: np.ndarray, centroids: np.ndarray, width: int) -> np.ndarray:
    parts = centroids.reshape(codes.shape[1], 256, width)
    return np.concatenate([parts[number][codes[:, number]] for number in range(codes.shape[1])], axis=1)


def _edges(words: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    buffer, edges = flat_bytes(words)
    return buffer, edges[:-1], edges[1:]


def _paths(counts: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each label's turns in the tree of Huffman's code over the labels' counts, built as the library builds it."""
    leaves = len(counts)
    weights = [*counts, *[10**15] * (leaves - 1)]
    parent, right = [-1] * len(weights), [False] * len(weights)
    leaf, node = leaves - 1, leaves
    for made in range(leaves, len(weights)):
        children = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                children.append(leaf)
                leaf -= 1
            else:
                children.append(node)
                node += 1
        weights[made] = sum(weights[child] for child in children)
        for child in children:
            parent[child] = made
        right[children[1]] = True
    paths = []
    for label in range(leaves):
        turns, directions = [], []
        while parent[label] >= 0:
            turns.append(parent[label] - leaves)
            directions.append(1.0 if right[label] else -1.0)
            label = parent[label]
        paths.append((np.array(turns), np.array(directions)))
    return paths
