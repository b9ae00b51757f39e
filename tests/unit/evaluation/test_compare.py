from __future__ import annotations

import functools
import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from storage.errors import OnwardError
from tasks.evaluation.compare import (
    Change,
    document_scores,
    judged,
    perplexity_change,
    question_scores,
    score_change,
    with_mcnemar,
)
from tasks.evaluation.significance import ALPHA


def questions(values: list[float], subjects: list[str] | None = None) -> pa.Table:
    return pa.table(
        {
            "subject": pa.array(subjects or [None] * len(values), pa.string()),
            "doc": list(range(len(values))),
            "acc": values,
        }
    )


def documents(nll: list[float], tokens: list[int]) -> pa.Table:
    return pa.table({"id": list(range(len(nll))), "nll": nll, "tokens": tokens})


def changed(before: pa.Table, after: pa.Table) -> Change:
    found = question_scores({"a": before, "b": after}, "acc", "sciq")
    return with_mcnemar(score_change(found["a"], found["b"]), before, after, "acc")


def test_questions_that_both_answer_alike_carry_no_error() -> None:
    before, after = [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    change = changed(questions(before), questions(after))
    assert change.value == 0.25 and change.stderr == pytest.approx(np.std([0, 1, 0, 0], ddof=1) / 2)
    assert change.mcnemar == (1, 0, 1.0)
    same = changed(questions(before), questions(before))
    assert (same.value, same.low, same.high, same.stderr, same.p) == (0.0, 0.0, 0.0, 0.0, 1.0)


def test_the_verdict_is_by_the_corrected_test_and_by_what_is_better() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random(200) < 0.4).astype(float)
    better = np.maximum(base, rng.random(200) < 0.3)
    clear = changed(questions(base.tolist()), questions(better.tolist()))
    back = changed(questions(better.tolist()), questions(base.tolist()))
    none = changed(questions(base.tolist()), questions(base[::-1].tolist()))
    assert [one.verdict for one in judged([clear, back, none])] == ["improved", "worse", "no clear change"]


def test_a_change_that_stands_alone_may_not_stand_among_many() -> None:
    base = [0.0] * 100
    some = changed(questions(base), questions([1.0] * 7 + [0.0] * 93))
    some = Change(**{**vars(some), "p": 0.02})
    alone, among = judged([some])[0], judged([some] + [Change(0.0, -0.1, 0.1, 0.05, 100, 0.9)] * 9)[0]
    assert (alone.verdict, among.verdict) == ("improved", "no clear change")
    assert among.adjusted == pytest.approx(0.2) and among.seen > alone.seen


def turned(gained: int, lost: int, count: int = 500) -> Change:
    """So many of 500 questions became right or wrong, of which the model answered half before."""
    before = np.arange(count) % 2.0
    after = before.copy()
    after[0 : 2 * gained : 2], after[1 : 2 * lost : 2] = 1.0, 0.0
    return changed(questions(before.tolist()), questions(after.tolist()))


def test_five_questions_of_five_hundred_are_no_verdict() -> None:
    five = turned(5, 0)
    assert five.p < 0.01 < 0.05 < five.tested == pytest.approx(0.0625)
    assert five.low > 0, "the bootstrap alone would call it clear"
    assert judged([five])[0].verdict == "no clear change" and judged([five])[0].adjusted == five.tested
    assert judged([turned(6, 0)])[0].verdict == "improved"
    many = turned(90, 60)
    assert many.tested == pytest.approx(many.p, abs=0.006), "of many changes both say the same"


@pytest.mark.parametrize("expected", [4, 6, 8, 10])
def test_where_few_questions_change_wrong_verdicts_are_as_rare_as_their_level(expected: int) -> None:
    # of 500 questions; either way the same number is expected: every verdict is a wrong one
    chance = expected / 2 / 500
    wrong, alone = 0.0, 0.0
    for gained in range(18):
        for lost in range(gained):
            share = stats.multinomial.pmf(
                [gained, lost, 500 - gained - lost], 500, [chance, chance, 1 - 2 * chance]
            )
            if share < 1e-6:
                continue
            change = judgements(gained, lost)
            wrong += 2 * share * (change.verdict != "no clear change")
            alone += 2 * share * (change.p < ALPHA)
    assert 0 < wrong <= ALPHA < alone


@functools.cache
def judgements(gained: int, lost: int) -> Change:
    return judged([turned(gained, lost)])[0]


def test_falling_perplexity_is_better_and_its_interval_is_of_the_ratio() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 500, 300)
    before = tokens * rng.normal(3.0, 0.3, 300)
    after = before - tokens * rng.normal(0.2, 0.1, 300)
    found = document_scores(
        {
            "a": documents(before.tolist(), tokens.tolist()),
            "b": documents(after.tolist(), tokens.tolist()),
        },
        "edu",
    )
    [change] = judged([perplexity_change(found["a"], found["b"])])
    assert change.value == pytest.approx(math.exp((after - before).sum() / tokens.sum()) - 1)
    assert change.low < change.value < change.high < 0 and change.verdict == "improved"
    drawn = rng.integers(0, 300, (4000, 300))
    whole = np.exp((after - before)[drawn].sum(1) / tokens[drawn].sum(1)) - 1
    assert change.stderr == pytest.approx(whole.std(), rel=0.1)
    assert [change.low, change.high] == pytest.approx(np.quantile(whole, [0.025, 0.975]).tolist(), abs=0.002)
    assert 0 < change.seen < -change.value


def test_a_score_that_is_no_right_or_wrong_has_no_mcnemar() -> None:
    assert changed(questions([0.5, 0.1]), questions([0.5, 0.2])).mcnemar is None


def test_no_change_of_nothing_would_have_been_seen() -> None:
    same = questions([0.5, 0.1] * 10)
    assert judged([changed(same, same)])[0].seen is None, (
        "no error, and no number of questions that must change"
    )
    right = questions([1.0, 0.0] * 10)
    assert judged([changed(right, right)])[0].seen == 6 / 20


def test_questions_are_drawn_within_their_subjects() -> None:
    subjects = ["easy"] * 50 + ["hard"] * 50
    before = questions([0.0] * 100, subjects)
    after = questions([1.0] * 50 + [0.0] * 50, subjects)
    change = changed(before, after)
    assert change.value == 0.5 and change.stderr == 0.0 and (change.low, change.high) == (0.5, 0.5)
    assert changed(questions([0.0] * 100), questions([1.0] * 50 + [0.0] * 50)).stderr > 0.04


def test_what_was_measured_on_other_questions_is_not_compared() -> None:
    with pytest.raises(OnwardError, match="different questions"):
        question_scores({"a": questions([1.0]), "b": questions([1.0, 0.0])}, "acc", "sciq")
    with pytest.raises(OnwardError, match="other documents"):
        document_scores({"a": documents([1.0], [3]), "b": documents([1.0], [4])}, "edu")
