"""What is held out: by text, nested in the fraction, raised for small fractions but never past a twentieth."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tasks.corpus.holdout import MAX_RAISED, MIN_BYTES, MIN_DOCUMENTS, held_out, text_hashes


def hashes_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


@given(st.integers(0, 3000), st.floats(0, 1), st.integers(1, 20_000))
def test_the_larger_of_the_fraction_and_the_minima_is_held_out(
    count: int, fraction: float, size: int
) -> None:
    hashes, sizes = hashes_of(count), np.full(count, size)
    chosen = int(held_out(hashes, sizes, fraction).sum())
    configured = int((hashes.astype(np.float64) < fraction * 2.0**64).sum()) if fraction else 0
    wanted = max(MIN_DOCUMENTS, -(-MIN_BYTES // size)) if fraction else 0
    assert chosen == max(configured, min(wanted, int(MAX_RAISED * count)))


@given(st.floats(0, 0.5), st.floats(0, 0.5))
def test_a_larger_fraction_holds_out_the_same_and_more(a: float, b: float) -> None:
    hashes, sizes = hashes_of(2000), np.full(2000, 5000)
    small, large = sorted((a, b))
    assert not (held_out(hashes, sizes, small) & ~held_out(hashes, sizes, large)).any()


def test_the_choice_goes_with_the_text_and_not_with_its_place() -> None:
    texts = [f"text {i} ä" for i in range(500)]
    order = np.random.default_rng(0).permutation(500)
    sizes = np.full(500, 100)
    chosen = held_out(text_hashes(pl.Series(texts), 7), sizes, 0.2)
    moved = held_out(text_hashes(pl.Series([texts[i] for i in order]), 7), sizes, 0.2)
    assert {texts[i] for i in np.flatnonzero(chosen)} == {texts[order[i]] for i in np.flatnonzero(moved)}
    other = held_out(text_hashes(pl.Series(texts), 8), sizes, 0.2)
    assert (chosen != other).any()


def test_a_large_document_does_not_take_the_holdout_past_a_twentieth_of_the_bytes() -> None:
    hashes = np.arange(1000, dtype=np.uint64) << np.uint64(54)
    sizes = np.full(1000, 1000)
    sizes[10] = 10_000_000
    assert held_out(hashes, sizes, 0.001).sum() == 10
