"""What a rule is, and what rules measure: a batch of texts with the columns that several rules share, made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import polars as pl

from tasks.corpus.words import PUNCTUATION, flat_bytes, hash_ranges

WORD = (
    r"(?:https?://|www\.)\S+"  # an address
    r"|(?:\p{L}\.){2,}|\p{Lu}\.|(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr)\."  # U.S., e.g., initials, titles
    r"|(?:[\\|@^~]+|-\d)?[\p{L}\p{M}\p{N}]+"  # letters and digits, and on to
    r"(?:[^\s\p{L}\p{M}\p{N}\-]+\p{N}[\p{L}\p{M}\p{N}]*"  # a digit behind signs: 10,000, 12:30, x=3
    r"|(?:\.|[^\s\p{L}\p{M}\p{N}\-–—~:<>=/,.…'’\p{So}]+)[\p{L}\p{M}\p{N}]+)*"  # a letter behind others: f(x, x_i
    r"|['’](?:s|t|re|ve|ll|d|m)"  # of don't, she's
    r"|\.{2,}|-{2,}"  # an ellipsis, a dash
    r"|\S"  # any other sign is a word of its own
)
"""datatrove splits words by spaCy's English tokenizer; this is an approximation of it, made of spaCy's rules for what is
cut off at the ends of a word and inside it. It differs in rarer abbreviations and
in some formulas."""

T = TypeVar("T")
_LINE_BREAK = r"\r\n|[\r\x0b\x0c\x1c-\x1e\x{85}\x{2028}\x{2029}]"
_SYMBOLS_ALONE = "^[" + PUNCTUATION + "]+$"


@dataclass(frozen=True)
class Tokens:
    """Words of a batch: hashes uint64, characters int64 and strings, one a word; first int64, shape (texts + 1,)."""

    strings: pl.Series
    hashes: np.ndarray
    characters: np.ndarray
    first: np.ndarray

    @cached_property
    def text(self) -> np.ndarray:
        """The text of each word: int64, shape (words,)."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def count(self, mask: np.ndarray) -> np.ndarray:
        """How many words of each text the mask (bool, one a word) selects: int64, shape (texts,)."""
        return self.total(mask)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum of one value a word over each text: int64, shape (texts,)."""
        sums = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
        return sums[self.first[1:]] - sums[self.first[:-1]]


class Batch:
    """Texts, and what rules measure of them. Every array has one value a text unless it says otherwise."""

    def __init__(self, texts: pl.Series) -> None:
        self.texts = texts
        self._made: dict[Any, Any] = {}

    def once(self, make: Callable[[Batch], T]) -> T:
        """What `make` makes of this batch; made at the first call."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def characters(self) -> np.ndarray:
        """Characters in each text, at least 1 so that it can divide."""
        return np.maximum(self.texts.str.len_chars().to_numpy().astype(np.int64), 1)

    @cached_property
    def tokens(self) -> Tokens:
        """Words and signs, split by `WORD`."""
        lists = self.texts.str.extract_all(WORD)
        first = np.concatenate([[0], np.cumsum(lists.list.len().to_numpy().astype(np.int64))])
        strings = lists.explode(empty_as_null=False)
        buffer, edges = flat_bytes(strings)
        hashes = hash_ranges(buffer, edges[:-1], edges[1:])
        return Tokens(strings, hashes, strings.str.len_chars().to_numpy().astype(np.int64), first)

    @cached_property
    def symbols(self) -> np.ndarray:
        """Which words are signs alone: bool, shape (words,)."""
        return self.tokens.strings.str.contains(_SYMBOLS_ALONE).to_numpy()

    @cached_property
    def lines(self) -> pl.Series:
        """The texts with every kind of line break that Python's splitlines knows as a newline."""
        odd = self.texts.str.contains(_LINE_BREAK)
        if not odd.any():
            return self.texts
        return self.texts.str.replace_all(_LINE_BREAK, "\n")


@dataclass(frozen=True)
class Rule:
    """A rule: keeps texts whose value is `limit` or more (`least`), or `limit` or less."""

    name: str
    limit: float
    least: bool
    value: Callable[[Batch], np.ndarray]

    @property
    def threshold(self) -> str:
        """What is asked, in words."""
        return f"at {'least' if self.least else 'most'} {self.limit:g}"

    def measure(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Each text's value (float64) and whether it is kept (bool), both of shape (texts,)."""
        values = self.value(batch).astype(np.float64)
        return values, values >= self.limit if self.least else values <= self.limit


def at_least(name: str, least: float, value: Callable[[Batch], np.ndarray]) -> Rule:
    """A rule that keeps texts whose value is `least` or more."""
    return Rule(name, least, True, value)


def at_most(name: str, most: float, value: Callable[[Batch], np.ndarray]) -> Rule:
    """A rule that keeps texts whose value is `most` or less."""
    return Rule(name, most, False, value)
