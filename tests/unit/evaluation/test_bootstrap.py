from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tasks.evaluation.bootstrap import Estimate, mean_of, means, together


def pair(rng: np.random.Generator, count: int, before: float, gained: float, lost: float) -> np.ndarray:
    """Right and wrong answers of two models, (questions, 2)."""
    first = rng.random(count) < before
    flip = rng.random(count)
    second = np.where(first, flip >= lost, flip < gained)
    return np.column_stack([first, second]).astype(float)


def change(values: np.ndarray, strata: np.ndarray | None = None, draws: int = 10_000) -> Estimate:
    groups = np.zeros(len(values), dtype=int) if strata is None else strata
    before, after = means(values, groups, "test", draws=draws)
    return after.minus(before)


def test_the_paired_error_is_the_analytic_one() -> None:
    values = pair(np.random.default_rng(1), 800, 0.4, 0.2, 0.1)
    found = change(values)
    differences = values[:, 1] - values[:, 0]
    expected = differences.std(ddof=1) / math.sqrt(len(differences))
    assert found.value == pytest.approx(differences.mean())
    assert found.stderr == pytest.approx(expected)
    assert found.draws.std() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("binary", [True, False])
def test_the_interval_is_that_of_scipy(binary: bool) -> None:
    rng = np.random.default_rng(2)
    if binary:
        values = pair(rng, 400, 0.3, 0.15, 0.05)
    else:
        values = np.column_stack([np.zeros(400), rng.exponential(1.0, 400) ** 2])
    low, high = change(values, draws=20_000).interval()
    reference = stats.bootstrap(
        (values[:, 1] - values[:, 0],), np.mean, n_resamples=20_000, method="BCa", rng=3, vectorized=True
    ).confidence_interval
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.04 * width)
    assert high == pytest.approx(reference.high, abs=0.04 * width)


def test_both_ways_of_drawing_draw_alike() -> None:
    values = pair(np.random.default_rng(4), 300, 0.5, 0.2, 0.1)
    one = change(values)
    tiny = values + np.random.default_rng(5).normal(0, 1e-7, values.shape)  # all rows differ: drawn by number
    other = change(tiny)
    assert one.draws.std() == pytest.approx(other.draws.std(), rel=0.03)
    assert one.interval() == pytest.approx(other.interval(), abs=0.004)


def test_within_subjects_what_divides_subjects_is_no_error() -> None:
    subject = np.repeat(np.arange(10), 40)
    gain = np.linspace(-0.5, 0.5, 10)[subject]  # each subject changes by its own
    noise = np.random.default_rng(6).normal(0, 0.1, 400)
    values = np.column_stack([np.zeros(400), gain + noise])
    inside = change(values, subject)
    per_subject = [noise[subject == one].var(ddof=1) / 40 for one in range(10)]
    assert inside.stderr == pytest.approx(math.sqrt(sum(per_subject)) / 10)
    assert inside.draws.std() == pytest.approx(inside.stderr, rel=0.03)
    assert change(values).stderr > 3 * inside.stderr


def test_small_subjects_do_not_make_the_error_too_small() -> None:
    rng = np.random.default_rng(7)
    subject = np.repeat(np.arange(100), 2)
    values = np.column_stack([np.zeros(200), rng.normal(0, 1, 200)])
    found = change(values, subject)
    assert found.stderr == pytest.approx(1 / math.sqrt(200), rel=0.2)
    assert found.draws.std() == pytest.approx(found.stderr, rel=0.03)
    alone = change(values, np.arange(200))  # one question a subject: drawn from together
    assert alone.stderr == pytest.approx(values[:, 1].std(ddof=1) / math.sqrt(200))


def test_the_mean_of_benchmarks_weighs_each_alike() -> None:
    rng = np.random.default_rng(9)
    one, other = change(pair(rng, 100, 0.4, 0.3, 0.1)), change(pair(rng, 900, 0.4, 0.1, 0.1))
    mean = mean_of([one, other])
    assert mean.value == pytest.approx((one.value + other.value) / 2)
    assert mean.stderr == pytest.approx(math.hypot(one.stderr, other.stderr) / 2)
    assert mean.draws.std() == pytest.approx(mean.stderr, rel=0.05)


@pytest.mark.parametrize("shared", [120, 60, 0])
def test_two_forms_of_the_same_questions_are_drawn_together(shared: int) -> None:
    # 120 questions of each form, of which `shared` are asked in both, and mostly answered alike
    rng = np.random.default_rng(12)
    first, count = pair(rng, 120, 0.4, 0.3, 0.1), 240 - shared
    second = pair(rng, 120, 0.4, 0.3, 0.1)
    second[:shared] = np.where(rng.random((shared, 1)) < 0.8, first[120 - shared :], second[:shared])
    strata = rng.integers(0, 3, count)
    own = [np.arange(120), np.arange(120 - shared, count)]
    members = [
        means(values, strata[rows], name)
        for values, rows, name in zip((first, second), own, "ab", strict=True)
    ]
    before, after = together(members, [[rows] * 2 for rows in own], strata, "ab")
    found = after.minus(before)
    differences = [values[:, 1] - values[:, 0] for values in (first, second)]
    assert found.value == pytest.approx(np.concatenate(differences).mean()) and found.count == count
    # variance of a sum of two means over strata, with numpy's own covariances of what both asked
    expected = 0.0
    for stratum in range(3):
        sizes = [int((strata[rows] == stratum).sum()) for rows in own]
        inside = [one[strata[rows] == stratum] for one, rows in zip(differences, own, strict=True)]
        expected += sum(size * one.var(ddof=1) for size, one in zip(sizes, inside, strict=True))
        both = np.arange(120 - shared, 120)[strata[120 - shared : 120] == stratum]
        apart = [
            (one[both - rows[0]] - values.mean()) * math.sqrt(size / (size - 1))
            for one, rows, values, size in zip(differences, own, inside, sizes, strict=True)
        ]
        expected += 2 * float((apart[0] * apart[1]).sum())
    error = math.sqrt(expected) / 240
    assert found.stderr == pytest.approx(error) and found.draws.std() == pytest.approx(error, rel=0.03)
    alone = mean_of([two.minus(one) for one, two in members]).stderr
    assert found.stderr == pytest.approx(alone) if not shared else found.stderr > 1.1 * alone
    if shared == 120:  # the same as one benchmark, each question's answer the mean of its forms
        whole = change((first + second) / 2, strata)
        assert found.stderr == pytest.approx(whole.stderr)
        assert found.interval() == pytest.approx(whole.interval(), abs=0.1 * whole.stderr)


def test_the_same_questions_give_the_same_draws_and_another_benchmark_others() -> None:
    values = pair(np.random.default_rng(10), 200, 0.4, 0.2, 0.1)
    strata = np.zeros(200, dtype=int)
    first, again = means(values, strata, "sciq"), means(values, strata, "sciq")
    assert np.array_equal(first[1].draws, again[1].draws)
    assert not np.array_equal(first[1].draws, means(values, strata, "piqa")[1].draws)


def test_the_interval_holds_zero_where_the_test_finds_nothing() -> None:
    for seed in range(40):
        values = pair(np.random.default_rng(seed), 60, 0.4, 0.25, 0.1)
        found = change(values, draws=2000)
        low, high = found.interval()
        assert (low > 0 or high < 0) == (found.p_value() < 0.05) or abs(found.p_value() - 0.05) < 0.01


def test_nothing_is_said_of_no_difference_nor_of_a_single_question() -> None:
    same = change(np.ones((50, 2)))
    assert same.interval() == (0.0, 0.0) and same.p_value() == 1.0
    single = change(np.array([[0.0, 1.0]]))
    assert single.p_value() == 1.0 and all(math.isnan(end) for end in single.interval())


def test_of_intervals_over_many_samples_nineteen_in_twenty_hold_the_truth() -> None:
    subject = np.repeat(np.arange(8), [5, 10, 10, 15, 20, 20, 30, 40])
    truth = 0.5 * 0.2 - 0.5 * 0.1
    held, wrong = 0, 0
    for trial in range(400):
        rng = np.random.default_rng([11, trial])
        found = change(pair(rng, 150, 0.5, 0.2, 0.1), subject, draws=1000)
        low, high = found.interval()
        held += low <= truth <= high
        nothing = change(pair(rng, 150, 0.5, 0.12, 0.12), subject, draws=1000)
        wrong += nothing.p_value() < 0.05
    # 400 tries at 95 %: 380 ± 13 for three deviations, and a little for small samples
    assert 363 <= held <= 394, held
    assert wrong <= 36, wrong
