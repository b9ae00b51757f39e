from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ConfigError
from tasks.corpus.packing.interleave import choose, counts, shares

WEIGHTS = st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any)


@settings(max_examples=200, deadline=None)
@given(weights=WEIGHTS, count=st.integers(1, 400))
def test_every_prefix_is_within_the_chairman_bound(weights: list[int], count: int) -> None:
    exact = shares(weights)
    k = sum(weight > 0 for weight in weights)
    bound = 1 - Fraction(1, 2 * k - 2) if k > 1 else Fraction(0)
    seen = [0] * len(weights)
    for n, source in enumerate(choose(weights, count).tolist(), start=1):
        seen[source] += 1
        assert all(abs(seen[i] - exact[i] * n) <= bound for i in range(len(weights)))


@settings(max_examples=100, deadline=None)
@given(weights=WEIGHTS, first=st.integers(0, 300), second=st.integers(0, 300))
def test_a_position_depends_on_itself_alone(weights: list[int], first: int, second: int) -> None:
    whole = choose(weights, first + second)
    assert choose(weights, first).tolist() == whole[:first].tolist()
    assert choose(weights, second, start=first).tolist() == whole[first:].tolist()
    assert counts(weights, first) == np.bincount(whole[:first], minlength=len(weights)).tolist()


def test_decimal_weights_are_exact() -> None:
    assert shares([0.9, 0.1]) == [Fraction(9, 10), Fraction(1, 10)]
    assert counts([0.9, 0.1], 10_000_000) == [9_000_000, 1_000_000]
    assert choose([0.9, 0.1], 20).tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0] * 2
    assert shares(["0.25", Fraction(1, 4), 0.5]) == [Fraction(1, 4), Fraction(1, 4), Fraction(1, 2)]


def test_weights_with_a_long_period() -> None:
    weights = [0.612347, 0.287653, 0.1]
    got = np.bincount(choose(weights, 100_000), minlength=3)
    assert np.abs(got - np.asarray(weights) * 100_000).max() <= 0.75
    assert got.tolist() == counts(weights, 100_000)


@pytest.mark.parametrize("weights", [[], [0, 0], [-1, 2], [float("nan"), 1], [float("inf"), 1]])
def test_unusable_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigError):
        choose(weights, 1)
