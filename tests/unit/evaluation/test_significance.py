from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tasks.evaluation.significance import chance, holm, labelled, mcnemar, sign_flips, smallest_seen


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_test_of_a_coin(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_ten_thousand_questions_is_exact_too() -> None:
    assert mcnemar(5100, 4900) == pytest.approx(stats.binomtest(5100, 10_000, 0.5).pvalue, rel=1e-9)
    assert mcnemar(5000, 5000) == 1.0


def test_signs_of_differences_of_one_size_are_mcnemars_test_and_of_several_that_of_all_signs() -> None:
    assert sign_flips(np.array([0.002] * 9 + [0.0] * 80 + [-0.002] * 2)) == mcnemar(9, 2)
    assert sign_flips(np.zeros(5)) == 1.0
    differences = np.array([0.01] * 5 + [0.004] * 4 + [-0.004] * 2 + [-0.01])
    signs = np.array(list(itertools.product([1, -1], repeat=len(differences))))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12).mean()
    assert sign_flips(differences) == pytest.approx(exact, rel=0.1) and 0.01 < exact < 0.2
    assert sign_flips(differences) == sign_flips(differences[::-1])


def test_holm_on_a_worked_example() -> None:
    # four hypotheses at 0.05: the first and the fourth are rejected, the others are not (Wikipedia, "Holm–Bonferroni")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    places = range(len(p_values))
    subsets = [
        s for size in places for s in itertools.combinations(places, size + 1)
    ]  # every hypothesis of several
    for place, found in enumerate(holm(p_values)):
        closed = max(min(1.0, len(s) * min(p_values[k] for k in s)) for s in subsets if place in s)
        assert found == pytest.approx(closed)


def test_the_smallest_change_that_would_have_been_seen_is_seen_in_four_of_five_tries() -> None:
    change = smallest_seen(0.01, tests=1)
    assert change == pytest.approx((1.959964 + 0.841621) * 0.01, rel=1e-5)
    for tests in (1, 12):
        effect = smallest_seen(0.01, tests) / 0.01
        seen = stats.norm.sf(stats.norm.isf(0.025 / tests) - effect)
        assert seen == pytest.approx(0.8, abs=1e-6)


def test_so_few_questions_that_no_test_could_show_less() -> None:
    floor = smallest_seen(0.0, tests=1, count=20)
    assert floor == 6 / 20  # all six changed the same way: 2/64 < 0.05; of five, 2/32 is not
    assert mcnemar(6, 0) < 0.05 < mcnemar(5, 0)


def test_chance_is_the_mean_of_one_in_n() -> None:
    assert chance([4, 4, 2], [0, 1, 0], True) == (pytest.approx((0.25 + 0.25 + 0.5) / 3), "guess")
    assert chance([1, 1], [0, 0], True) == (0.0, "guess")
    assert chance([], [], True) == (0.0, "guess")


def test_where_one_answer_is_commoner_than_shuffling_allows_chance_is_to_give_it() -> None:
    boolq = [1] * 622 + [0] * 378
    assert chance([2] * 1000, boolq, True) == (0.622, "majority")
    shuffled = np.random.default_rng(3).integers(0, 4, 1000).tolist()
    assert chance([4] * 1000, shuffled, True) == (0.25, "guess")
    few = chance([2] * 10, [1] * 7 + [0] * 3, True)
    assert few == (0.5, "guess")  # seven of ten say nothing of the questions


def test_the_rule_for_the_majority_class_is_a_binomial_tail() -> None:
    tail = [2 * stats.binom.sf(most - 1, 100, 0.5) for most in range(51, 80)]
    least = next(most for most, p in zip(range(51, 80), tail, strict=True) if p < 0.001)
    for most in (least - 1, least):
        found = chance([2] * 100, [1] * most + [0] * (100 - most), True)[1]
        assert found == ("majority" if most == least else "guess")
    assert math.isclose(chance([2] * 100, [1] * least + [0] * (100 - least), True)[0], least / 100)


def test_a_place_among_the_choices_is_no_label() -> None:
    assert chance([4] * 1000, [3] * 1000, labelled("sciq")) == (
        0.25,
        "guess",
    )  # the right one is always the last
    named = ("boolq", "mmlu", "commonsense_qa", "mmlu_continuation", "arc_easy", "mine")
    assert [labelled(name) for name in named] == [True, True, True, False, False, False]
