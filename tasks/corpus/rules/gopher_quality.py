"""Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, appendix A1), as datatrove applies them.

See datatrove's `filters/gopher_quality_filter.py`. Where noted, words that are only punctuation are not counted.

In scripts without spaces, so many characters count as a word (units.py). The two rules about how words are spelled, their
mean length and the stop words, are not asked of a text that is for more than half of such a script.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl

from tasks.corpus.rules.rule import Rule, TextBatch, at_least, at_most
from tasks.corpus.units import WORD
from tasks.corpus.words import flat_bytes, hash_ranges

MIN_WORDS, MAX_WORDS = 50, 100_000
MIN_MEAN_LENGTH, MAX_MEAN_LENGTH = 3, 10
MAX_SIGNS_PER_WORD = 0.1
MAX_BULLET_LINES = 0.9
MAX_ELLIPSIS_LINES = 0.3
MIN_ALPHABETIC_WORDS = 0.8
MIN_STOP_WORDS = 2
_DASH = ord("-")
STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


def word_count(batch: TextBatch) -> np.ndarray:
    """Number of words that are not only punctuation."""
    return batch.once(_real_words)


def mean_word_length(batch: TextBatch) -> np.ndarray:
    """Mean number of characters in the words that are not only punctuation, nor of a script without spaces; 0 if there
    are none."""
    words = batch.pieces.vocabulary
    counted = ~words.symbols & ~words.unspaced
    return batch.pieces.total(words.characters * counted) / np.maximum(batch.pieces.total(counted), 1)


def hashes_per_word(batch: TextBatch) -> np.ndarray:
    """`#` signs divided by all words."""
    return _counted(batch, "#") / _all_words(batch)


def ellipses_per_word(batch: TextBatch) -> np.ndarray:
    """`...` and `…` divided by all words."""
    return (_counted(batch, "...") + _counted(batch, "…")) / _all_words(batch)


def bullet_lines(batch: TextBatch) -> np.ndarray:
    """Share of the lines that begin with `•` or `-`."""
    lines, buffer = batch.broken_lines, batch.plain
    begins = (
        batch.spans.starts[np.minimum(lines.low, len(batch.spans) - 1)] if len(batch.spans) else lines.low
    )
    bullets = lines.written & ((buffer[begins] == _DASH) | _sign_at(buffer, begins, "•"))
    return lines.spans.count(bullets) / _line_count(batch)


def ellipsis_lines(batch: TextBatch) -> np.ndarray:
    """Share of the lines that end in an ellipsis."""
    lines, buffer = batch.broken_lines, batch.plain
    ends = batch.spans.ends[lines.high - 1] if len(batch.spans) else lines.high
    last = np.maximum(ends - 3, 0)  # both spellings have three bytes
    dots = (ends - lines.spans.starts >= 3) & (_sign_at(buffer, last, "...") | _sign_at(buffer, last, "…"))
    return lines.spans.count(lines.written & dots) / _line_count(batch)


def alphabetic_words(batch: TextBatch) -> np.ndarray:
    """Share of all words that contain a letter."""
    words = batch.pieces.vocabulary
    return batch.pieces.total(words.worth * words.letters) / WORD / _all_words(batch)


def stop_words(batch: TextBatch) -> np.ndarray:
    """How many of the eight stop words occur, in exactly this spelling."""
    pieces = batch.pieces
    found = np.zeros(len(batch), np.int64)
    for wanted in hash_ranges(*_edges(STOP_WORDS)):
        found += pieces.total(pieces.vocabulary.hashes == wanted) > 0
    return found


def _of_spaced(value: Callable[[TextBatch], np.ndarray], batch: TextBatch, good: float) -> np.ndarray:
    """The value, or one that is good for a text that is mostly of a script without spaces."""
    return np.where(batch.pieces.mostly_unspaced, good, value(batch))


RULES: tuple[Rule, ...] = (
    at_least("gopher_too_few_words", MIN_WORDS, word_count),
    at_most("gopher_too_many_words", MAX_WORDS, word_count),
    Rule("gopher_short_words", MIN_MEAN_LENGTH, True, partial(_of_spaced, mean_word_length)),
    Rule(
        "gopher_long_words", MAX_MEAN_LENGTH, False, lambda batch, _: _of_spaced(mean_word_length, batch, 0)
    ),
    at_most("gopher_too_many_hashes", MAX_SIGNS_PER_WORD, hashes_per_word),
    at_most("gopher_too_many_ellipses", MAX_SIGNS_PER_WORD, ellipses_per_word),
    at_most("gopher_too_many_bullets", MAX_BULLET_LINES, bullet_lines),
    at_most("gopher_too_many_ellipsis_lines", MAX_ELLIPSIS_LINES, ellipsis_lines),
    at_least("gopher_too_few_alphabetic_words", MIN_ALPHABETIC_WORDS, alphabetic_words),
    Rule("gopher_too_few_stop_words", MIN_STOP_WORDS, True, partial(_of_spaced, stop_words)),
)
"""In the order in which datatrove applies them."""


def _real_words(batch: TextBatch) -> np.ndarray:
    words = batch.pieces.vocabulary
    return batch.pieces.total(words.worth * ~words.symbols) / WORD


def _counted(batch: TextBatch, sign: str) -> np.ndarray:
    return batch.texts.str.count_matches(sign, literal=True).to_numpy().astype(np.int64)


def _all_words(batch: TextBatch) -> np.ndarray:
    return np.maximum(batch.pieces.count, 1)


def _sign_at(buffer: np.ndarray, places: np.ndarray, sign: str) -> np.ndarray:
    """Whether these bytes are at each place. The buffer ends in a newline, so a three-byte sign cannot run past its
    end."""
    found = np.ones(len(places), bool)
    for i, byte in enumerate(sign.encode()):
        found &= buffer[np.minimum(places + i, len(buffer) - 1)] == byte
    return found


def _line_count(batch: TextBatch) -> np.ndarray:
    """Lines as Python's `splitlines` counts them, at least 1."""
    spans = batch.broken_lines.spans
    last = spans.first[1:] - 1
    return np.maximum(np.diff(spans.first) - (spans.ends[last] == spans.starts[last]), 1)


def _edges(words: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    buffer, edges = flat_bytes(pl.Series(words))
    return buffer, edges[:-1], edges[1:]
