"""Words, word hashes and n-gram hashes of many texts at once, as flat numpy arrays.

A text is first normalised to words separated by spaces; from then on there are only offsets and 64-bit hashes. The
hash functions are defined here, so the hashes are the same on every machine and with every library version. No state,
no randomness.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

BATCH_BYTES = 4_000_000
"""Bytes of text processed at once. Arrays stay below a hundred MB, whatever the size of a shard, and near a core's cache.
Each text is looked at on its own, so this value changes no bytes."""

PUNCTUATION = "".join(
    re.escape(sign)
    for sign in "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"
) + "".join(f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in ((0x00, 0x08), (0x0B, 0x0C), (0x0D, 0x1F), (0x7F, 0x9F)))
"""The inside of a character class: what datatrove counts as punctuation (`utils/text.py`), control characters
included."""

_SPACE = 32
_LONG_WORD_BYTES = 64
_LENGTH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_NGRAM_BASE = (
    0xD1342543DE82EF95  # odd; the multiplier of a 64-bit linear congruential generator (Steele, Vigna 2021)
)
_LOW_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(8)] + [(1 << 64) - 1], dtype=np.uint64)


@dataclass(frozen=True)
class Words:
    """The words of a batch of texts.

    buffer: uint8, the normalised text. starts, ends: int64, shape (words,), byte ranges in it. first: int64, shape
    (texts + 1,), the index of each text's first word. hashes: uint64, shape (words,).
    """

    buffer: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray
    hashes: np.ndarray

    def text(self, begin: int, end: int) -> str:
        """Words begin to end (exclusive) joined by single spaces."""
        pieces = [
            self.buffer[a:b].tobytes()
            for a, b in zip(self.starts[begin:end], self.ends[begin:end], strict=True)
        ]
        return b" ".join(pieces).decode()


def batches(texts: pl.Series, limit: int = BATCH_BYTES) -> Iterator[tuple[int, pl.Series]]:
    """Consecutive slices of `texts` of about `limit` bytes (at least one text each), each with the index of its first
    text."""
    edges = np.concatenate([[0], np.cumsum(texts.str.len_bytes().fill_null(0).to_numpy().astype(np.int64))])
    begin = 0
    while begin < len(texts):
        end = int(np.searchsorted(edges, edges[begin] + limit, side="right")) - 1
        end = min(max(end, begin + 1), len(texts))
        yield begin, texts.slice(begin, end - begin)
        begin = end


def flat_bytes(strings: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated bytes of the strings (uint8, read-only) and their offsets (int64, shape (strings + 1,))."""
    array = strings.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.large_string())
    _, offsets, data = array.buffers()
    edges = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    if data is None or len(array) == 0:
        return np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int64)
    return np.frombuffer(data, np.uint8)[edges[0] : edges[-1]], edges - edges[0]


def split_words(normalised: pl.Series) -> Words:
    """The words of normalised texts, in which only spaces separate words."""
    buffer, edges = flat_bytes(normalised + " ")
    spaces = np.flatnonzero(buffer == _SPACE)
    starts = np.empty_like(spaces)
    starts[:1] = 0
    starts[1:] = spaces[:-1] + 1
    real = spaces > starts
    if not real.all():
        starts, spaces = starts[real], spaces[real]
    first = np.searchsorted(starts, edges)
    return Words(buffer, starts, spaces, first, hash_ranges(buffer, starts, spaces))


def hash_ranges(buffer: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each byte range: uint64, shape (ranges,).

    Eight bytes at a time are mixed by SplitMix64's finaliser (Steele, Lea and Flood 2014). Ranges of more than 64
    bytes are rare and use BLAKE2b.
    """
    padded = np.concatenate([buffer, np.zeros(8, np.uint8)])
    eight = np.ndarray((len(buffer) + 1,), dtype="<u8", buffer=padded, strides=(1,))
    lengths = ends - starts
    hashes = _mix(
        (eight[starts] & _LOW_BYTES[np.minimum(lengths, 8)]) + lengths.astype(np.uint64) * _LENGTH_FACTOR
    )
    longer = np.flatnonzero(lengths > 8)
    for done in range(8, _LONG_WORD_BYTES, 8):
        if not len(longer):
            break
        left = np.minimum(lengths[longer] - done, 8)
        hashes[longer] = _mix(hashes[longer] + (eight[starts[longer] + done] & _LOW_BYTES[left]))
        longer = longer[lengths[longer] > done + 8]
    for i in longer:  # a loop: such words are few, and may be megabytes long
        digest = hashlib.blake2b(buffer[starts[i] : ends[i]].tobytes(), digest_size=8).digest()
        hashes[i] = int.from_bytes(digest, "little")
    return hashes


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ngram_hashes(hashes: np.ndarray, n: int) -> np.ndarray:
    """Hashes of all runs of n words: uint64, shape (max(words - n + 1, 0),); run i starts at word i.

    The hash is a polynomial of the word hashes modulo 2^64, composed from runs of 1, 2, 4, … words. A run may cross
    from one text into the next: `inside` tells which runs do not.
    """
    if n < 1:
        raise ValueError(f"an n-gram has at least one word, not {n}")
    count = max(len(hashes) - n + 1, 0)
    if not count:
        return np.zeros(0, np.uint64)
    run, run_words, power = None, 0, hashes
    for bit in range(n.bit_length()):
        width = 1 << bit
        if bit:
            power = join_runs(power, power[width // 2 :], width // 2)
        if n & width:
            run = power if run is None else join_runs(power, run[width:], run_words)
            run_words += width
    assert run is not None
    return run[:count]


def join_runs(left: np.ndarray, right: np.ndarray, right_words: int) -> np.ndarray:
    """Hashes of concatenated runs, element by element: a left run followed by a right run of `right_words` words."""
    count = min(len(left), len(right))
    return left[:count] * np.uint64(pow(_NGRAM_BASE, right_words, 1 << 64)) + right[:count]


def hashes_between(hashes: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The hashes that `ngram_hashes` gives the runs of words from begins to ends (exclusive): uint64, shape (runs,)."""
    steps = np.full(len(hashes) + 1, _NGRAM_BASE, np.uint64)
    back = np.full(len(hashes) + 1, pow(_NGRAM_BASE, -1, 1 << 64), np.uint64)
    steps[0] = back[0] = 1
    powers, inverse = np.cumprod(steps, dtype=np.uint64), np.cumprod(back, dtype=np.uint64)
    summed = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes * inverse[1:], dtype=np.uint64)])
    return np.asarray((summed[ends] - summed[begins]) * powers[ends])


def inside(first: np.ndarray, n: int) -> np.ndarray:
    """Which runs of n words lie within one text: bool, shape (max(words - n + 1, 0),)."""
    words = int(first[-1])
    fits = np.ones(max(words - n + 1, 0), bool)
    if n > 1:
        crossing = (first[1:-1, None] - np.arange(1, n)[None, :]).ravel()
        fits[crossing[(crossing >= 0) & (crossing < len(fits))]] = False
    return fits
