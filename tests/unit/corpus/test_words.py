"""Words, hashes and n-grams of many texts at once, against the plain way of one text at a time."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tasks.corpus.words import batches, flat_bytes, hash_ranges, inside, ngram_hashes, split_words

WORDS = st.text(st.characters(exclude_characters=" ", exclude_categories=("Cs",)), max_size=80)
ALL = (1 << 64) - 1
TEXTS = st.lists(st.lists(WORDS, max_size=12).map(" ".join), max_size=8)


@given(TEXTS)
def test_words_are_those_between_spaces(texts: list[str]) -> None:
    words = split_words(pl.Series(texts, dtype=pl.String))
    for i, text in enumerate(texts):
        expected = [word for word in text.split(" ") if word]
        assert words.text(words.first[i], words.first[i + 1]) == " ".join(expected)
        assert words.first[i + 1] - words.first[i] == len(expected)


@given(TEXTS)
def test_equal_words_have_equal_hashes_wherever_they_stand(texts: list[str]) -> None:
    words = split_words(pl.Series(texts, dtype=pl.String))
    by_word: dict[str, int] = {}
    for i in range(len(words.hashes)):
        assert by_word.setdefault(words.text(i, i + 1), int(words.hashes[i])) == words.hashes[i]
    assert len(set(by_word.values())) == len(by_word)


@given(TEXTS, st.integers(1, 9))
def test_ngrams_within_a_text_are_told_from_those_across(texts: list[str], n: int) -> None:
    words = split_words(pl.Series(texts, dtype=pl.String))
    hashes = ngram_hashes(words.hashes, n)
    fits = inside(words.first, n)
    assert len(hashes) == len(fits) == max(len(words.hashes) - n + 1, 0)
    for i, fit in enumerate(fits):
        owner = np.searchsorted(words.first, i, side="right") - 1
        assert fit == (i + n <= words.first[owner + 1])


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 9))
def test_equal_runs_have_equal_hashes_and_no_others(letters: list[str], n: int) -> None:
    words = split_words(pl.Series([" ".join(letters)], dtype=pl.String))
    hashes = ngram_hashes(words.hashes, n)
    runs = [tuple(letters[i : i + n]) for i in range(len(letters) - n + 1)]
    assert len(set(runs)) == len(np.unique(hashes))
    assert len(runs) == len(hashes)
    by_run = dict(zip(runs, hashes.tolist(), strict=True))
    assert all(by_run[run] == value for run, value in zip(runs, hashes.tolist(), strict=True))


def plain_hash(word: bytes) -> int:
    """The hash of one word, eight bytes at a time, in Python's integers."""
    if len(word) > 64:
        return int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
    pieces = [int.from_bytes(word[i : i + 8], "little") for i in range(0, max(len(word), 1), 8)]
    value = 0
    for i, piece in enumerate(pieces):
        x = (value + piece + (len(word) * 0x9E3779B97F4A7C15 if i == 0 else 0)) & ALL
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & ALL
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & ALL
        value = x ^ (x >> 31)
    return value


@given(st.lists(st.text(max_size=100), max_size=10))
def test_hashes_depend_on_the_bytes_of_the_word_alone(strings: list[str]) -> None:
    buffer, edges = flat_bytes(pl.Series(strings, dtype=pl.String))
    expected = [plain_hash(string.encode()) for string in strings]
    assert hash_ranges(buffer, edges[:-1], edges[1:]).tolist() == expected


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(1, 60))
def test_batches_hold_every_text_once_in_order(texts: list[str], limit: int) -> None:
    series = pl.Series(texts, dtype=pl.String)
    taken = [(start, part.to_list()) for start, part in batches(series, limit)]
    assert [text for _, part in taken for text in part] == texts
    assert [start for start, _ in taken] == np.cumsum([0, *(len(part) for _, part in taken)])[:-1].tolist()
    assert all(len(part) == 1 or sum(len(t.encode()) for t in part) <= limit for _, part in taken)
