"""Words and lines as byte ranges of one buffer. The buffer holds a batch of texts, each followed by a newline.

Python's white space and line breaks (`str.split`, `str.splitlines`) are found in the UTF-8 bytes, so a batch is split
without creating strings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from tasks.corpus.words import flat_bytes, hash_ranges

NEWLINE, SPACE, RETURN = 10, 32, 13
_IS_SPACE = np.zeros(256, bool)
_IS_SPACE[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True
_BREAKS = np.zeros(256, bool)
_BREAKS[[11, 12, 13, 28, 29, 30]] = True
_WIDE_SPACES = (
    "\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_WIDE_BREAKS = "\x85\u2028\u2029"


@dataclass(frozen=True)
class Flat:
    """Texts one after another. buffer: uint8, each text followed by a newline. edges: int64, shape (texts + 1,)."""

    buffer: np.ndarray
    edges: np.ndarray

    @classmethod
    def of(cls, texts: pl.Series) -> Flat:
        """The bytes of the texts."""
        return cls(*flat_bytes(texts + "\n"))

    def text_of(self, places: np.ndarray) -> np.ndarray:
        """The text that contains each byte: int64, shape of `places`."""
        return np.searchsorted(self.edges, places, side="right") - 1


@dataclass(frozen=True)
class Spans:
    """Byte ranges in text order: starts, ends: int64, shape (spans,); first: int64, shape (texts + 1,)."""

    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def text(self) -> np.ndarray:
        """The text of each span: int64, shape (spans,)."""
        return np.repeat(np.arange(len(self.first) - 1), np.diff(self.first))

    def count(self, mask: np.ndarray) -> np.ndarray:
        """How many of the selected spans each text has: int64, shape (texts,)."""
        return sums(mask, self.first)


def sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Sum of the values in each run `first[i]:first[i + 1]`: int64, shape (runs,)."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, dtype=np.int64, out=total[1:])
    return total[first[1:]] - total[first[:-1]]


def plain_space(buffer: np.ndarray) -> np.ndarray:
    """The buffer with spaces for all non-ASCII white space, and newlines for all line breaks (`\\r\\n` is one).

    The result is as long as the buffer, so byte ranges hold in both. If nothing changes, it is the same array.
    """
    wide = np.flatnonzero(buffer >= 0xC2)
    wide = wide[(buffer[wide] == 0xC2) | ((buffer[wide] >= 0xE1) & (buffer[wide] <= 0xE3))]
    odd = np.flatnonzero(_BREAKS[buffer])
    if not len(wide) and not len(odd):
        return buffer
    plain = buffer.copy()
    for sign in _WIDE_SPACES:
        code = sign.encode()
        here = wide[buffer[wide] == code[0]]
        for i, byte in enumerate(code[1:], 1):
            here = here[buffer[here + i] == byte]
        for i in range(len(code)):
            plain[here + i] = SPACE
        if sign in _WIDE_BREAKS:
            plain[here + len(code) - 1] = NEWLINE
    followed = buffer[odd] == RETURN
    followed[followed] = (
        buffer[odd[followed] + 1] == NEWLINE
    )  # every text ends in a newline, so there is a next byte
    plain[odd] = np.where(followed, SPACE, NEWLINE)
    return plain


def split_spaces(plain: np.ndarray, edges: np.ndarray) -> Spans:
    """The pieces between white space, as `str.split()` returns them. `plain`: the result of `plain_space`."""
    space = _IS_SPACE[plain]
    change = np.flatnonzero(space[1:] != space[:-1]) + 1
    if len(space) and not space[0]:
        change = np.concatenate([[0], change])
    starts, ends = change[0::2], change[1::2]
    return Spans(starts, ends, np.searchsorted(starts, edges))


def split_lines(buffer: np.ndarray, edges: np.ndarray) -> Spans:
    """The pieces between newlines, as `text.split("\\n")` gives them: the newline behind a text ends its last line."""
    ends = np.flatnonzero(buffer == NEWLINE)
    starts = np.empty_like(ends)
    starts[:1] = 0
    starts[1:] = ends[:-1] + 1
    return Spans(starts, ends, np.searchsorted(ends, edges))


def character_counts(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Characters in byte ranges that begin and end at character boundaries: int64, shape (ranges,)."""
    inner = np.flatnonzero((buffer & 0xC0) == 0x80)  # continuation bytes of a character
    return (ends - starts) - (np.searchsorted(inner, ends) - np.searchsorted(inner, starts))


def strings(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> pl.Series:
    """Byte ranges of whole characters, as strings."""
    lengths = ends - starts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    taken = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    return series(buffer[taken], offsets)


def series(data: np.ndarray, offsets: np.ndarray) -> pl.Series:
    """Strings from their concatenated bytes and their offsets (shape (strings + 1,))."""
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(data)]
    array = pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)
    return pl.from_arrow(array)  # type: ignore[return-value]


def seen_before(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Which byte ranges occurred before in the same text: bool, shape (ranges,). `text` is ascending.

    Ranges are first compared by length and a few bytes; only ranges that agree are hashed completely.
    """
    alike = _share_key(_glance(buffer, starts, ends) ^ _spread(text))
    again = np.zeros(len(starts), bool)
    if not len(alike):
        return again
    keys = hash_ranges(buffer, starts[alike], ends[alike])
    order = np.lexsort((alike, keys, text[alike]))
    keys, owner = keys[order], text[alike][order]
    same = (keys[1:] == keys[:-1]) & (owner[1:] == owner[:-1])
    again[alike[order[1:][same]]] = True
    return again


def _glance(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    padded = np.concatenate([buffer, np.zeros(8, np.uint8)])
    eight = np.ndarray((len(buffer) + 1,), dtype="<u8", buffer=padded, strides=(1,))
    lengths = ends - starts
    low = (np.uint64(1) << (np.minimum(lengths, 7) * 8).astype(np.uint64)) - np.uint64(1)
    first = np.where(lengths >= 8, eight[starts], eight[starts] & low)
    last = np.where(lengths >= 8, eight[np.maximum(ends - 8, 0)], np.uint64(0))
    middle = np.where(lengths >= 24, eight[starts + lengths // 2], np.uint64(0))
    mixed = first * np.uint64(0x9E3779B97F4A7C15) + last * np.uint64(0xD1342543DE82EF95)
    return mixed + middle * np.uint64(0xBF58476D1CE4E5B9) + lengths.astype(np.uint64)


def _spread(text: np.ndarray) -> np.ndarray:
    return (text.astype(np.uint64) + np.uint64(1)) * np.uint64(0x94D049BB133111EB)


def _share_key(keys: np.ndarray) -> np.ndarray:
    """Places, ascending, whose key also occurs at another place."""
    order = np.argsort(keys)
    same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    shared = np.zeros(len(keys), bool)
    shared[order[same]] = True
    shared[order[same + 1]] = True
    return np.flatnonzero(shared)
