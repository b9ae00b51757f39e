"""The rate is a function of the step, above zero, continuous where a round goes on, and ends near zero."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.training.spec import CosineSchedule, WsdSchedule
from tasks.training.update.schedule import learning_rate

PEAK = 5e-4


@given(warmup=st.integers(0, 50), start=st.integers(0, 200), length=st.integers(0, 100))
def test_wsd_is_positive_and_never_above_the_peak(warmup: int, start: int, length: int) -> None:
    schedule = WsdSchedule(PEAK, warmup, start, start + length)
    rates = [learning_rate(schedule, step) for step in range(1, start + length + 1)]
    assert all(0 < rate <= PEAK for rate in rates)
    decay = rates[start:]
    assert all(later < earlier for earlier, later in itertools.pairwise(decay))


@given(warmup=st.integers(0, 50), start=st.integers(1, 200), length=st.integers(1, 100))
def test_a_trunk_is_the_same_whatever_decays_from_it(warmup: int, start: int, length: int) -> None:
    trunk, branch = WsdSchedule(PEAK, warmup, None, None), WsdSchedule(PEAK, warmup, start, start + length)
    for step in range(1, start + 1):
        assert learning_rate(trunk, step) == learning_rate(branch, step)
    assert learning_rate(branch, start + 1) < learning_rate(trunk, start)


def test_wsd_by_its_formula() -> None:
    schedule = WsdSchedule(1.0, 4, 10, 20)
    assert [learning_rate(schedule, step) for step in (1, 2, 4, 5, 10)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert learning_rate(schedule, 11) == 1 - math.sqrt(1 / 11)
    assert learning_rate(schedule, 20) == pytest.approx(1 - math.sqrt(10 / 11))
    assert learning_rate(WsdSchedule(1.0, 0, 900, 1000), 1000) < 0.005


@given(
    first=st.integers(0, 100), total=st.integers(1, 200), warmup=st.integers(0, 50), end=st.floats(0.01, 1)
)
def test_cosine_rises_falls_and_ends_at_its_fraction(first: int, total: int, warmup: int, end: float) -> None:
    schedule = CosineSchedule(PEAK, warmup, first, first + total, end)
    rates = [learning_rate(schedule, first + step) for step in range(1, total + 1)]
    assert all(0 < rate <= PEAK * (1 + 1e-12) for rate in rates)
    top = min(warmup, total)
    assert rates[:top] == sorted(rates[:top])
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(rates[top:]))
    if total > warmup:
        assert rates[-1] == pytest.approx(PEAK * end)
