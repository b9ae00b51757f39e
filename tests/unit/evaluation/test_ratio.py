"""Ratios over documents against scipy's permutation test, every choice of signs, and simulated documents."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.verdicts import false_verdicts
from tasks.evaluation.compare import Change, document_scores, judged, perplexity_change
from tasks.evaluation.ratio import Ratio, ratios


def difference(changes: np.ndarray, tokens: np.ndarray | None = None) -> Ratio:
    """The difference of two models whose documents differ by so many nats."""
    tokens = np.full(len(changes), 100) if tokens is None else tokens
    before = 3.0 * tokens
    first, second = ratios(np.column_stack([before, before + changes]), tokens, "test")
    return second.minus(first)


def judgement(changes: list[float], tokens: list[int] | None = None) -> Change:
    tokens = tokens or [100] * len(changes)
    numbers = list(range(len(changes)))
    tables = {
        name: pa.table({"id": numbers, "nll": nll, "tokens": tokens})
        for name, nll in {
            "a": [3.0 * size for size in tokens],
            "b": [3.0 * size + change for size, change in zip(tokens, changes, strict=True)],
        }.items()
    }
    found = document_scores(tables, "edu")
    [change] = judged([perplexity_change(found["a"], found["b"])])
    return change


@pytest.mark.parametrize("count", [2, 5, 9, 12, 14])
def test_p_is_that_of_every_choice_of_signs_as_scipy_tries_them(count: int) -> None:
    rng = np.random.default_rng(count)
    tokens = rng.integers(10, 5000, count)
    changes = tokens * rng.standard_t(2, count)
    theirs = stats.permutation_test(
        (changes,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
    ).pvalue
    assert difference(changes, tokens).p_value() == pytest.approx(theirs)


def test_of_many_documents_the_signs_are_drawn_and_the_same_draws_come_again() -> None:
    rng = np.random.default_rng(4)
    changes = rng.normal(0.35, 1, 60)
    theirs = stats.permutation_test(
        (changes,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=40_000, rng=rng
    ).pvalue
    found = difference(changes).p_value()
    assert found == pytest.approx(theirs, abs=0.01) and 0.001 < found < 0.2
    assert (
        difference(changes).p_value() == found
        and difference(changes).interval() == difference(changes).interval()
    )
    assert difference(np.full(60, -1.0)).p_value() == 1e-4  # the choice seen is one of the 10,000


@given(st.integers(6, 11), st.integers(0, 10_000))
def test_the_interval_holds_what_the_test_does_not_reject(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = np.exp(rng.normal(5, 1, count))
    changes = tokens * rng.normal(0.3, 1, count)
    signs = np.array(list(itertools.product((1, -1), repeat=count)))

    def p(ratio: float) -> float:
        rest = changes - ratio * tokens
        return float((np.abs(signs @ rest) >= abs(rest.sum()) * (1 - 1e-12)).mean())

    low, high = difference(changes, tokens).interval()
    width = (high - low) * 1e-6
    assert p(low + width) >= 0.05 > p(low - width)
    assert p(high - width) >= 0.05 > p(high + width)


def test_the_error_is_that_of_documents_drawn_again() -> None:
    rng = np.random.default_rng(8)
    tokens = rng.integers(50, 500, 300)
    before = tokens * rng.normal(3.0, 0.3, 300)
    after = before - tokens * rng.normal(0.2, 0.1, 300)
    first, second = ratios(np.column_stack([before, after]), tokens, "test")
    found = second.minus(first)
    assert second.value == pytest.approx(after.sum() / tokens.sum())
    drawn = rng.integers(0, 300, (4000, 300))
    expected = (after - before)[drawn].sum(1) / tokens[drawn].sum(1)
    assert found.stderr == pytest.approx(expected.std(), rel=0.08)
    assert found.interval() == pytest.approx(np.quantile(expected, [0.025, 0.975]).tolist(), abs=0.003)


def test_of_two_to_five_documents_the_interval_is_students() -> None:
    changes = np.array([-90.0, -95.0, -88.0, -91.0])
    low, high = difference(changes).interval()
    theirs = stats.t.interval(0.95, 3, (changes / 100).mean(), stats.sem(changes / 100))
    assert (low, high) == pytest.approx(theirs)


def test_few_documents_are_no_verdict_however_far_they_moved() -> None:
    for count in range(1, 10):
        change = judgement([-90.0 + k for k in range(count)])
        assert (change.verdict, change.seen) == ("too few documents", None), count
    assert judgement([-90.0 + k for k in range(10)]).verdict == "improved"
    assert judgement([90.0 - k for k in range(10)]).verdict == "worse"


def test_one_document_has_no_interval_and_two_that_agree_do_not_make_sixty_percent_sure() -> None:
    alone = judgement([-90.0])
    assert math.isnan(alone.low) and math.isnan(alone.high) and alone.p == 1.0
    both = judgement([-90.0, -91.0])
    assert both.p == 0.5 and both.low < -0.594 and both.high > -0.594


def test_a_long_document_among_short_ones_decides_nothing_alone() -> None:
    assert judgement([-9000.0] + [1.0, -1.0] * 6, [10_000] + [100] * 12).verdict == "no clear change"


def test_models_that_agree_have_no_change_and_documents_of_no_token_no_say() -> None:
    same = difference(np.zeros(12))
    assert same.interval() == (0.0, 0.0) and same.p_value() == 1.0
    changes, tokens = np.array([1.0, 2.0, 0.5, 0.0]), np.array([10, 20, 5, 0])
    assert difference(changes, tokens).count == 3


def test_a_change_as_large_as_is_said_to_be_seen_is_seen_in_most_tries() -> None:
    rng = np.random.default_rng(2)
    base = rng.normal(0, 1, (80, 16))
    seen = np.array([math.log1p(float(judgement(list(row)).seen or 0)) for row in base])
    found = [
        judgement(list(row + 100 * seen.mean())).verdict == "worse" for row in rng.normal(0, 1, (80, 16))
    ]
    assert 0.65 < np.mean(found) <= 1


@pytest.mark.parametrize("tails", ["normal", "t2"])
def test_verdicts_where_nothing_changed_are_as_rare_as_their_level(tails: str) -> None:
    # 400 comparisons of 10 and of 14 documents of unlike lengths: 5 % are 20, and 30 are 2.3 deviations more
    for count in (3, 10, 14):
        assert false_verdicts(count, tails, "unlike", tries=400, seed=1) <= 30 / 400
