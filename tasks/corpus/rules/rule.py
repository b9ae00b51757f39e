"""The definition of a rule, and the batch of texts that rules measure. Columns that several rules need are computed
once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import polars as pl

from tasks.corpus.rules.english import BatchPieces
from tasks.corpus.rules.pieces import Pieces
from tasks.corpus.rules.spans import Flat, Spans, plain_space, split_lines, split_spaces

T = TypeVar("T")


class TextBatch:
    """Texts, and what rules measure of them. Every array has one value per text unless it says otherwise."""

    def __init__(self, texts: pl.Series, meta: pl.Series | None = None) -> None:
        self.texts = texts
        self.meta = meta
        self._made: dict[Any, Any] = {}

    def once(self, make: Callable[[TextBatch], T]) -> T:
        """The result of `make` for this batch. It is computed at the first call."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def forget(self) -> None:
        """Let go of what `once` made. Some of it holds the batch itself: such circles stay until Python looks for them,
        and large arrays do not make it look."""
        self._made.clear()

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def characters(self) -> np.ndarray:
        """Characters in each text, at least 1, so that it can be a divisor."""
        return np.maximum(self.texts.str.len_chars().to_numpy().astype(np.int64), 1)

    @cached_property
    def flat(self) -> Flat:
        """The bytes of the texts."""
        return Flat.of(self.texts)

    @cached_property
    def plain(self) -> np.ndarray:
        """The same bytes, in which ASCII spaces and newlines replace all non-ASCII white space: uint8."""
        return plain_space(self.flat.buffer)

    @cached_property
    def spans(self) -> Spans:
        """The pieces between white space."""
        return split_spaces(self.plain, self.flat.edges)

    @cached_property
    def between(self) -> Pieces:
        """The pieces between white space, each distinct one once."""
        return Pieces.of(self.plain, self.spans)

    @cached_property
    def pieces(self) -> BatchPieces:
        """The pieces between white space, cut into words."""
        return BatchPieces.of(self.between)

    @cached_property
    def lines(self) -> BatchLines:
        """The lines between newlines."""
        return BatchLines.of(split_lines(self.flat.buffer, self.flat.edges), self.spans)

    @cached_property
    def broken_lines(self) -> BatchLines:
        """The lines between line breaks of every kind, as in `str.splitlines`. A text that ends in a break has an
        empty last line."""
        if self.plain is self.flat.buffer:
            return self.lines
        return BatchLines.of(split_lines(self.plain, self.flat.edges), self.spans)


@dataclass(frozen=True)
class BatchLines:
    """The lines of a batch, and the range of pieces between white space in each: low to high (exclusive), int64."""

    spans: Spans
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, lines: Spans, pieces: Spans) -> BatchLines:
        """From `lines` and `pieces` of the same buffer."""
        return cls(
            lines, np.searchsorted(pieces.starts, lines.starts), np.searchsorted(pieces.starts, lines.ends)
        )

    @property
    def written(self) -> np.ndarray:
        """Which lines are not blank: bool, shape (lines,)."""
        return self.high > self.low


Value = Callable[[TextBatch, float], np.ndarray]


@dataclass(frozen=True)
class Rule:
    """A rule. It keeps texts whose value is at least `limit` (if `least`), or at most `limit`.

    `value` takes the batch and the limit. A costly rule may return the limit itself for texts that a bound already
    clears.
    """

    name: str
    limit: float
    least: bool
    value: Value

    @property
    def threshold(self) -> str:
        """The condition, in words."""
        return f"at {'least' if self.least else 'most'} {self.limit:g}"

    def at(self, limit: float) -> Rule:
        """The same rule with another limit."""
        return replace(self, limit=limit)

    def measure(self, batch: TextBatch) -> tuple[np.ndarray, np.ndarray]:
        """Each text's value (float64) and whether it is kept (bool), both of shape (texts,)."""
        values = self.value(batch, self.limit).astype(np.float64)
        return values, values >= self.limit if self.least else values <= self.limit


def at_least(name: str, least: float, value: Callable[[TextBatch], np.ndarray]) -> Rule:
    """A rule that keeps texts whose value is `least` or more."""
    return Rule(name, least, True, lambda batch, limit: value(batch))


def at_most(name: str, most: float, value: Callable[[TextBatch], np.ndarray]) -> Rule:
    """A rule that keeps texts whose value is `most` or less."""
    return Rule(name, most, False, lambda batch, limit: value(batch))


@dataclass(frozen=True)
class Edited:
    """Texts as edited by a family of rules, and how often each rule changed something: int64, shape (texts,)."""

    texts: pl.Series
    counts: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """Rules that measure the same texts, and optionally an edit of the texts that they keep.

    `edit` takes the batch and which texts to keep (bool, shape (texts,)). It returns only those, in their order.
    `by_line`: the edit writes every line anew, so it takes the texts as the rules measured them, with even lines. Any other
    edit takes them as they are written.
    """

    rules: tuple[Rule, ...]
    edit: Callable[[TextBatch, np.ndarray], Edited] | None = None
    by_line: bool = False
