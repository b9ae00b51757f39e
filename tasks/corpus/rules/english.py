"""Split English text into words as spaCy's tokenizer does (datatrove counts those), each distinct piece only once.

spaCy processes one piece between spaces at a time, so only a batch's distinct pieces need splitting: a tenth of all.
Most of them are a word with a few signs around it, which a regular expression splits; the others are split one by one.

Scripts without spaces are no English: a run of their letters is one word here, and counts for as many as it is worth
(`units.worth`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from tasks.corpus.rules.contractions import exceptions
from tasks.corpus.rules.pieces import Pieces
from tasks.corpus.rules.spans import Spans, sums
from tasks.corpus.units import WORD, holds_units, worth
from tasks.corpus.words import PUNCTUATION, flat_bytes, hash_ranges

_LETTERS = "a-zß-öø-ÿ"
_CORE = rf"[A-ZÀ-ÖØ-Þ]?[{_LETTERS}]+|[A-Z]{{2,}}"
_PLAIN = rf"""^[“"(]?({_CORE})(?:-(?:{_CORE}))*(?:['’]s)?(?:[,;:?!)”"]|\.|[.?!,][”"]|\)[.,;]|\.\))?$"""
"""A word, its hyphens, and a few signs around it: two thirds of the distinct pieces and nine tenths of all pieces."""

_PLAIN_WORD = r"\pL+|['’]s|\S"
_ODD_WORD = r"[\pL\pM\pN]+|\.{2,}|\S"
_LONGEST = 1000
"""Maximum bytes of a piece that is split exactly. A longer piece is not English."""


def _signs(codes: str) -> list[str]:
    """Characters from hexadecimal code points and ranges of them."""
    edges = [code.split("-") for code in codes.split()]
    return [chr(c) for edge in edges for c in range(int(edge[0], 16), int(edge[-1], 16) + 1)]


TERMINALS = _signs(
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 "
    "17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f "
    "203c-203d 2047-2049 2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f "
    "a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 "
    "10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c "
    "112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c "
    "11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88 "
)
"""Signs that end a sentence in any script, from datatrove (`utils/text.py`, TERMINAL_PUNCTUATION)."""

_NOT_SPACY = _signs(
    "61d-61e 837 839 83d-83e 17d4-17d6 17d9-17da 1b7d-1b7e 2e53-2e54 10f55-10f59 10f86-10f89 11944 11946 "
    "11ef7-11ef8 11f43-11f44 16e98 "
)
SENTENCE_ENDS = [sign for sign in TERMINALS if sign not in _NOT_SPACY]
"""Signs that end a sentence for spaCy's sentencizer, which counts C4's sentences."""

_SYMBOLS_ALONE = "^[" + PUNCTUATION + "".join(f"\\x{{{ord(sign):x}}}" for sign in TERMINALS) + "]+$"


@dataclass(frozen=True)
class WordTable:
    """The words of distinct pieces. Those of piece i are first[i]:first[i + 1]; every array has one value per word."""

    words: pl.Series
    first: np.ndarray

    @classmethod
    def of(cls, plain: pl.Series, odd: pl.Series) -> WordTable:
        """Split the plain pieces, then the odd ones: first those that are split exactly."""
        lists = plain.str.extract_all(_PLAIN_WORD)
        by_rule = is_exact(odd)
        exact = odd.filter(pl.Series(by_rule)).to_list()
        long = odd.filter(pl.Series(~by_rule)).str.extract_all(_ODD_WORD)
        from tasks.corpus.rules.spacy_words import cut  # building its tables takes a quarter of a second

        others = [cut(piece) for piece in exact]  # a loop over the distinct pieces only
        sizes = [
            lists.list.len().to_numpy(),
            np.array([len(words) for words in others]),
            long.list.len().to_numpy(),
        ]
        words = [
            lists.explode(empty_as_null=False),
            pl.Series([word for words in others for word in words], dtype=pl.String),
            long.explode(empty_as_null=False),
        ]
        first = np.concatenate([[0], np.cumsum(np.concatenate(sizes).astype(np.int64))])
        return cls(pl.concat(words), first)

    @cached_property
    def hashes(self) -> np.ndarray:
        """Hash of each word: uint64."""
        buffer, edges = flat_bytes(self.words)
        return hash_ranges(buffer, edges[:-1], edges[1:])

    @cached_property
    def characters(self) -> np.ndarray:
        """Characters of each word: int64."""
        return self.words.str.len_chars().to_numpy().astype(np.int64)

    @cached_property
    def worth(self) -> np.ndarray:
        """What each word counts, in parts of `WORD`: int64. More than one word only for runs of a script without spaces."""
        counts = np.full(len(self.words), WORD, np.int64)
        runs = np.flatnonzero(self.unspaced)
        counts[runs] = worth(self.words.gather(pl.Series(runs, dtype=pl.UInt32)))
        return counts

    @cached_property
    def unspaced(self) -> np.ndarray:
        """Which words are of a script without spaces, at least in part: bool."""
        return holds_units(self.words)

    @cached_property
    def symbols(self) -> np.ndarray:
        """Which words consist of signs only: bool."""
        return self.words.str.contains(_SYMBOLS_ALONE).to_numpy()

    @cached_property
    def letters(self) -> np.ndarray:
        """Which words contain a letter: bool."""
        return self.words.str.contains(r"\p{L}").to_numpy()


def is_plain(pieces: pl.Series) -> np.ndarray:
    """Which pieces are split at every sign, and are no exception of spaCy's: bool, shape (pieces,)."""
    core = pieces.str.extract(_PLAIN, 1)
    special = core.is_in(_EXCEPTIONS) | (core + ".").is_in(_EXCEPTIONS)
    return (core.is_not_null() & ~special.fill_null(True)).to_numpy()


def is_exact(odd: pl.Series) -> np.ndarray:
    """Which pieces that are not plain are split as spaCy does: bool, shape (pieces,)."""
    return (odd.str.len_bytes().to_numpy() <= _LONGEST) & ~holds_units(odd)


_EXCEPTIONS = sorted(exceptions())


@dataclass(frozen=True)
class BatchPieces:
    """The pieces between spaces of a batch. codes: the index of each one's distinct piece in `vocabulary`."""

    codes: np.ndarray
    spans: Spans
    vocabulary: WordTable

    @classmethod
    def of(cls, pieces: Pieces) -> BatchPieces:
        """Cut each distinct piece into words."""
        distinct = pieces.distinct
        kind = np.where(is_plain(distinct), 0, np.where(is_exact(distinct), 1, 2))
        order = np.argsort(kind, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        distinct = distinct.gather(pl.Series(order))
        vocabulary = WordTable.of(distinct[: int((kind == 0).sum())], distinct[int((kind == 0).sum()) :])
        return cls(rank[pieces.codes], pieces.spans, vocabulary)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum over the words of each text, given one value per word of the vocabulary: int64, shape (texts,)."""
        return sums(sums(values, self.vocabulary.first)[self.codes], self.spans.first)

    @cached_property
    def count(self) -> np.ndarray:
        """Words in each text: float64, shape (texts,)."""
        return self.total(self.vocabulary.worth) / WORD

    @cached_property
    def mostly_unspaced(self) -> np.ndarray:
        """Which texts are for more than half of scripts without spaces: bool, shape (texts,)."""
        if not self.vocabulary.unspaced.any():
            return np.zeros(len(self.spans.first) - 1, bool)
        return self.total(self.vocabulary.worth * self.vocabulary.unspaced) / WORD > self.count / 2

    def words(self, texts: np.ndarray | None = None) -> WordSequence:
        """All words of these texts (ascending numbers; default: all texts), in order."""
        codes, first = self.codes, self.spans.first
        if texts is not None:
            sizes = first[texts + 1] - first[texts]
            offsets = np.concatenate([[0], np.cumsum(sizes)])
            codes = codes[np.repeat(first[texts] - offsets[:-1], sizes) + np.arange(offsets[-1])]
            first = offsets
        sizes = np.diff(self.vocabulary.first)[codes]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        entries = np.repeat(self.vocabulary.first[codes] - ends[:-1], sizes) + np.arange(ends[-1])
        return WordSequence(entries, ends[first], self.vocabulary)


@dataclass(frozen=True)
class WordSequence:
    """The words of texts in order. entries (in the vocabulary): int64, shape (words,); first: int64, shape (texts +
    1,)."""

    entries: np.ndarray
    first: np.ndarray
    vocabulary: WordTable

    @cached_property
    def hashes(self) -> np.ndarray:
        """Hash of each word: uint64, shape (words,)."""
        return self.vocabulary.hashes[self.entries]

    @cached_property
    def characters(self) -> np.ndarray:
        """Characters of each word: int64, shape (words,)."""
        return self.vocabulary.characters[self.entries]

    @cached_property
    def text(self) -> np.ndarray:
        """The text of each word: int64, shape (words,)."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))
