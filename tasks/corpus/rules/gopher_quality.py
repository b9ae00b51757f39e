"""Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, appendix A1), as datatrove applies them
(`filters/gopher_quality_filter.py`). Words are counted without those that are punctuation alone where it says so."""

from __future__ import annotations

import numpy as np
import polars as pl

from tasks.corpus.rules.rule import Batch, Rule, at_least, at_most
from tasks.corpus.words import flat_bytes, hash_ranges

MIN_WORDS, MAX_WORDS = 50, 100_000
MIN_MEAN_LENGTH, MAX_MEAN_LENGTH = 3, 10
MAX_SIGNS_PER_WORD = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8
MIN_STOP_WORDS = 2
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


def word_count(batch: Batch) -> np.ndarray:
    """Words that are not punctuation alone."""
    return batch.tokens.count(~batch.symbols)


def mean_word_length(batch: Batch) -> np.ndarray:
    """Characters in a word, of the words that are not punctuation alone; 0 where there is none."""
    return batch.tokens.total(batch.tokens.characters * ~batch.symbols) / np.maximum(word_count(batch), 1)


def hashes_per_word(batch: Batch) -> np.ndarray:
    """`#` signs over all words."""
    return _counted(batch, "#") / _all_words(batch)


def ellipses_per_word(batch: Batch) -> np.ndarray:
    """`...` and `…` over all words."""
    return (_counted(batch, "...") + _counted(batch, "…")) / _all_words(batch)


def bullet_lines(batch: Batch) -> np.ndarray:
    """Share of the lines that begin with `•` or `-`."""
    return batch.lines.str.count_matches(r"(?m)^[^\S\n]*[•\-]").to_numpy() / _line_count(batch)


def ellipsis_lines(batch: Batch) -> np.ndarray:
    """Share of the lines that end in an ellipsis."""
    return batch.lines.str.count_matches(r"(?m)(?:\.\.\.|…)[^\S\n]*$").to_numpy() / _line_count(batch)


def alphabetic_words(batch: Batch) -> np.ndarray:
    """Share of all words that hold a letter."""
    letters = batch.tokens.strings.str.contains(r"\p{L}").to_numpy()
    return batch.tokens.count(letters) / _all_words(batch)


def stop_words(batch: Batch) -> np.ndarray:
    """How many of the eight stop words occur, as they are written here."""
    found = np.zeros(len(batch), np.int64)
    for wanted in hash_ranges(*_edges(STOP_WORDS)):
        found += batch.tokens.count(batch.tokens.hashes == wanted) > 0
    return found


RULES: tuple[Rule, ...] = (
    at_least("gopher_too_few_words", MIN_WORDS, word_count),
    at_most("gopher_too_many_words", MAX_WORDS, word_count),
    at_least("gopher_short_words", MIN_MEAN_LENGTH, mean_word_length),
    at_most("gopher_long_words", MAX_MEAN_LENGTH, mean_word_length),
    at_most("gopher_too_many_hashes", MAX_SIGNS_PER_WORD, hashes_per_word),
    at_most("gopher_too_many_ellipses", MAX_SIGNS_PER_WORD, ellipses_per_word),
    at_most("gopher_too_many_bullets", MAX_BULLET_LINES, bullet_lines),
    at_most("gopher_too_many_ellipsis_lines", MAX_ELLIPSIS_LINES, ellipsis_lines),
    at_least("gopher_too_few_alphabetic_words", MIN_ALPHABETIC_WORDS, alphabetic_words),
    at_least("gopher_too_few_stop_words", MIN_STOP_WORDS, stop_words),
)
"""In the order in which datatrove asks them."""


def _counted(batch: Batch, sign: str) -> np.ndarray:
    return batch.texts.str.count_matches(sign, literal=True).to_numpy().astype(np.int64)


def _all_words(batch: Batch) -> np.ndarray:
    return np.maximum(np.diff(batch.tokens.first), 1)


def _line_count(batch: Batch) -> np.ndarray:
    """Lines as Python's splitlines counts them, at least 1."""
    breaks = batch.lines.str.count_matches("\n", literal=True).to_numpy().astype(np.int64)
    unfinished = ~batch.lines.str.ends_with("\n").to_numpy() & (batch.lines.str.len_bytes().to_numpy() > 0)
    return np.maximum(breaks + unfinished, 1)


def _edges(words: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    buffer, edges = flat_bytes(pl.Series(words))
    return buffer, edges[:-1], edges[1:]
