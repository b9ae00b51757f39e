"""Signatures against a plain numpy reference, and what they find against brute force."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import rensa
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import StageFailed
from tasks.corpus.duplicates.minhash import (
    SEED,
    MinHashConfig,
    Shingles,
    band_hashes,
    compared_words,
    jaccard,
    plain,
    shingles,
    signatures,
    simplify,
    sketch,
)
from tasks.corpus.units import WORD, spaced, weights_of
from tasks.corpus.words import split_words

ALL = (1 << 64) - 1


def splitmix64(values: np.ndarray) -> np.ndarray:
    x = values + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def xoshiro(seed: int, count: int) -> list[int]:
    """xoshiro256++ with its state from SplitMix64, as rand_xoshiro seeds it."""
    state = [
        int(splitmix64(np.array([(seed + i * 0x9E3779B97F4A7C15) & ALL], np.uint64))[0]) for i in range(4)
    ]
    out = []
    for _ in range(count):
        total = (state[0] + state[3]) & ALL
        out.append((((total << 23) | (total >> 41)) + state[0]) & ALL)
        shifted = (state[1] << 17) & ALL
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = ((state[3] << 45) | (state[3] >> 19)) & ALL
    return out


def reference_signature(hashes: np.ndarray, count: int) -> np.ndarray:
    """Fast Similarity Sketching of one set: three rounds of buckets, then a permutation for each empty coordinate."""
    numbers = xoshiro(SEED, 2 * count)
    factors, terms = [n | 1 for n in numbers[::2]], numbers[1::2]
    result = np.full(count, 0xFFFFFFFF, np.uint32)
    for step in range(3):
        seed = terms[0] ^ 0x6A09E667F3BCC909 ^ ((step * 0x3C6EF372FE94F82B) & ALL)
        mixed = splitmix64(hashes ^ np.uint64(seed))
        bucket = ((mixed & np.uint64(0xFFFFFFFF)) * np.uint64(count)) >> np.uint64(32)
        rank = ((mixed >> np.uint64(34)) | np.uint64(step << 30)).astype(np.uint32)
        np.minimum.at(result, bucket.astype(np.int64), rank)
        if len(hashes) and (result < ((step + 1) << 30)).all():
            return result
    if len(hashes):
        mixed = splitmix64(hashes ^ np.uint64(factors[0] ^ 0xBB67AE8584CAA73B))
        for i in np.flatnonzero(result >= 3 << 30):
            permuted = (mixed * np.uint64(factors[i]) + np.uint64(terms[i])) >> np.uint64(32)
            result[i] = np.uint32(3 << 30) | (permuted.min().astype(np.uint32) >> np.uint32(2))
    return result


@pytest.mark.parametrize("count", [112, 20])
def test_signatures_are_those_of_the_reference(count: int) -> None:
    random = np.random.default_rng(0)
    sizes = [0, 1, 2, 7, 31, 33, 64, 200, 700, 5000, 40_000]
    values = random.integers(0, 2**64, sum(sizes), dtype=np.uint64)
    first = np.concatenate([[0], np.cumsum(sizes)])
    found = signatures(Shingles(values, first), count)
    for i in range(len(sizes)):
        np.testing.assert_array_equal(found[i], reference_signature(values[first[i] : first[i + 1]], count))


def test_another_algorithm_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Newer:
        ALGORITHM_VERSION = 3

    monkeypatch.setattr(rensa, "RMinHash", Newer)
    with pytest.raises(StageFailed, match="algorithm 3"):
        signatures(shingles(pl.Series(["a b c d e f"]), 5), 112)


@pytest.mark.parametrize(("similarity", "low", "high"), [(0.8, 0.90, 0.95), (0.5, 0.03, 0.09)])
def test_bands_match_with_the_stated_probability(similarity: float, low: float, high: float) -> None:
    """1 − (1 − s^8)^14 is 0.924 at 0.8 and 0.053 at 0.5."""
    random = np.random.default_rng(1)
    common, own = round(900 * 2 * similarity / (1 + similarity)), 900
    sets = []
    for _ in range(800):
        shared = random.integers(0, 2**64, common, dtype=np.uint64)
        for _ in range(2):
            sets.append(np.concatenate([shared, random.integers(0, 2**64, own - common, dtype=np.uint64)]))
    found = signatures(Shingles(np.concatenate(sets), np.arange(len(sets) + 1) * own), 112)
    bands = band_hashes(found, 14, 8)
    assert low < (bands[::2] == bands[1::2]).any(axis=1).mean() < high


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Hello, World!", "hello world"),
        ("in 1,234 of 99.5 cases", "in 1 234 of 99 5 cases"),
        ("Café São Tomé", "cafe sao tome"),
        ("well-known don't", "well‐known don’t"),
        ("a b\tc\n\nd", "a b c d"),
        ("ﬁne ｗｉｄｅ soft\u00adhyphen", "fine wide softhyphen"),
        ("ＩＮ １９１８ ａｎｄ １１．１１．", "in 1918 and 11 11"),
        ("𝐓𝐡𝐞 𝕬𝖗𝖙 𝓞𝓯 ℝ №5 Ⓣⓔⓢⓣ ™", "the art of r no5 test tm"),
        ("STRASSE, Straße und ŁÓDŹ", "strasse strasse und lodz"),
        ("ŒUVRE œuvre Ærø Æon", "oeuvre oeuvre aero aeon"),
        ("ΝΟΜΟΣ της ΧΩΡΑΣ", "νομος τησ χωρας"),
        ("الـــكـتاب كَتَبَ", "الكتاب كتب"),
        ("ISTANBUL ısı", "istanbul isi"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af \u3164", "한글"),
    ],
)
def test_texts_that_differ_in_form_alone_are_simplified_to_the_same(a: str, b: str) -> None:
    one, other = (text.split() for text in simplify(pl.Series([a, b])))
    assert one == other


def test_tables_of_other_numbers_share_no_band() -> None:
    tables = [" ".join(f"row {i} holds {i * factor}" for i in range(60)) for factor in range(2, 40)]
    bands, _ = sketch(pl.Series(tables), MinHashConfig())
    assert all(len(np.unique(band)) == len(tables) for band in bands.T)


def test_simplifying_keeps_the_order_of_plain_and_accented_texts() -> None:
    texts = pl.Series(["plain one", "é", "plain two", "", "naïve", "three"])
    assert [text.strip() for text in simplify(texts)] == ["plain one", "e", "plain two", "", "naive", "three"]


AWKWARD = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        [
            "Café",
            "ﬁne ﬂow",
            "´",
            "ﷺ",
            "١٢٣٫٤",
            "n\u0303o",
            "\u0301",
            "\u00ad",
            "a\u00a0b",
            "½ 1.5",
            "Å",
            " ",
            "İ",
        ]
    ),
)


@given(st.lists(st.lists(AWKWARD, max_size=6).map(" ".join), max_size=6))
def test_words_normalised_one_by_one_are_those_of_whole_texts(texts: list[str]) -> None:
    whole = split_words(spaced(simplify(pl.Series(texts, dtype=pl.String))))
    hashes, first, weights = compared_words(plain(pl.Series(texts, dtype=pl.String).str.to_lowercase()))
    assert hashes.tolist() == whole.hashes.tolist()
    assert first.tolist() == whole.first.tolist()
    expected = weights_of(whole)
    one_each = [WORD] * len(hashes)
    assert (one_each if weights is None else weights.tolist()) == (
        one_each if expected is None else expected.tolist()
    )


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=30).map(" ".join), min_size=2, max_size=2))
def test_jaccard_is_that_of_the_sets_of_shingles(texts: list[str]) -> None:
    found = shingles(pl.Series(texts), 3)
    sets = []
    for text in texts:
        words = text.split()
        sets.append({tuple(words[i : i + 3]) for i in range(len(words) - 2)})
    union = sets[0] | sets[1]
    expected = len(sets[0] & sets[1]) / len(union) if union else 0.0
    assert jaccard(found.of(0), found.of(1)) == pytest.approx(expected)


def test_a_text_shorter_than_a_shingle_has_none() -> None:
    bands, counts = sketch(
        pl.Series(["four words are few", "", "but these five words suffice"]), MinHashConfig()
    )
    assert counts.tolist() == [0, 0, 1]
    assert bands.shape == (3, 14)
