"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.5) against lists, menus and repeated lines.

They are applied as datatrove applies them (`filters/fineweb_quality_filter.py`).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from tasks.corpus.rules.english import TERMINALS
from tasks.corpus.rules.rule import Rule, TextBatch, at_least, at_most
from tasks.corpus.rules.spans import character_counts, seen_before, strings

MIN_ENDED_LINES = 0.12
SHORT_LINE_CHARACTERS = 30
MAX_SHORT_LINES = 0.67
MAX_DUPLICATE_CHARACTERS = 0.01
MAX_NEWLINES_PER_WORD = 0.3
_ASCII_ENDS = np.frombuffer(b".?!", np.uint8)


def line_count(batch: TextBatch) -> np.ndarray:
    """Lines that are not blank."""
    return batch.lines.spans.count(batch.lines.written)


def ended_lines(batch: TextBatch) -> np.ndarray:
    """Share of the lines whose last character ends a sentence in any script."""
    buffer, lines = batch.flat.buffer, batch.lines
    ends = lines.spans.ends
    last = buffer[np.maximum(ends - 1, 0)]
    ended = lines.written & np.isin(last, _ASCII_ENDS)
    wide = np.flatnonzero(lines.written & (last >= 0x80))
    if len(wide):
        starts = ends[wide] - 1
        for _ in range(3):  # back to the first byte of the character
            starts = np.where((buffer[starts] & 0xC0) == 0x80, starts - 1, starts)
        ended[wide] = strings(buffer, starts, ends[wide]).is_in(TERMINALS).to_numpy()
    return lines.spans.count(ended) / np.maximum(line_count(batch), 1)


def short_lines(batch: TextBatch) -> np.ndarray:
    """Share of the lines of 30 characters or fewer."""
    spans, written = batch.lines.spans, batch.lines.written
    length = spans.ends - spans.starts
    short = length <= SHORT_LINE_CHARACTERS
    doubtful = np.flatnonzero(
        ~short & (length <= 4 * SHORT_LINE_CHARACTERS)
    )  # a character has at most four bytes
    characters = character_counts(batch.flat.buffer, spans.starts[doubtful], spans.ends[doubtful])
    short[doubtful] = characters <= SHORT_LINE_CHARACTERS
    return spans.count(short & written) / np.maximum(line_count(batch), 1)


def duplicate_characters(batch: TextBatch) -> np.ndarray:
    """Share of the characters in lines that occurred before in the same text."""
    spans, rows = batch.lines.spans, np.flatnonzero(batch.lines.written)
    buffer, text = batch.flat.buffer, batch.lines.spans.text()
    again = rows[seen_before(buffer, spans.starts[rows], spans.ends[rows], text[rows])]
    characters = character_counts(buffer, spans.starts[again], spans.ends[again])
    total = np.bincount(text[again], characters, minlength=len(batch))
    return total / np.maximum(batch.texts.str.len_chars().to_numpy() - _newlines(batch), 1)


def newlines_per_word(batch: TextBatch, limit: float) -> np.ndarray:
    """Newlines divided by words. A piece between spaces has at least one word, so most texts need no word count."""
    newlines, pieces = _newlines(batch), np.diff(batch.spans.first)
    bound = newlines / np.maximum(pieces, 1)
    values = np.minimum(bound, limit)
    doubtful = np.flatnonzero(bound > limit)
    if len(doubtful):
        words = TextBatch(batch.texts.gather(pl.Series(doubtful))).pieces.count
        values[doubtful] = newlines[doubtful] / np.maximum(words, 1)
    return values


def _newlines(batch: TextBatch) -> np.ndarray:
    return np.diff(batch.lines.spans.first) - 1


RULES: tuple[Rule, ...] = (
    at_least("fineweb_no_lines", 1, line_count),
    at_least("fineweb_lines_without_end", MIN_ENDED_LINES, ended_lines),
    at_most("fineweb_short_lines", MAX_SHORT_LINES, short_lines),
    at_most("fineweb_duplicate_line_characters", MAX_DUPLICATE_CHARACTERS, duplicate_characters),
    Rule("fineweb_newlines_per_word", MAX_NEWLINES_PER_WORD, False, newlines_per_word),
)
"""In the order in which datatrove applies them."""
