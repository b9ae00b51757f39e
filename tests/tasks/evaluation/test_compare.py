from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from storage.errors import OnwardError
from tasks.evaluation.compare import Change, mean_change, metric_change, perplexity_change


def questions(values: list[float]) -> pa.Table:
    return pa.table(
        {"subject": pa.nulls(len(values), pa.string()), "doc": list(range(len(values))), "acc": values}
    )


def documents(nll: list[float], tokens: list[int]) -> pa.Table:
    return pa.table({"id": list(range(len(nll))), "nll": nll, "tokens": tokens})


def test_questions_that_both_answer_alike_carry_no_error() -> None:
    before, after = [1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]
    change = metric_change(questions(before), questions(after), "acc")
    assert change.value == 0.25 and change.stderr == pytest.approx(np.std([0, 1, 0, 0], ddof=1) / 2)
    assert not change.clear
    same = metric_change(questions(before), questions(before), "acc")
    assert same == Change(0.0, 0.0, 4) and not same.clear


def test_the_error_of_a_perplexity_change_is_that_of_resampled_documents() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(50, 500, 300)
    before = tokens * rng.normal(3.0, 0.3, 300)
    after = before - tokens * rng.normal(0.2, 0.1, 300)
    found = perplexity_change(
        documents(before.tolist(), tokens.tolist()), documents(after.tolist(), tokens.tolist())
    )
    assert found.value == pytest.approx(math.exp((after - before).sum() / tokens.sum()) - 1) and found.clear
    draws = rng.integers(0, 300, (4000, 300))
    ratios = np.exp((after - before)[draws].sum(1) / tokens[draws].sum(1))
    assert found.stderr == pytest.approx(ratios.std(), rel=0.1)


def test_what_was_measured_on_other_questions_is_not_compared() -> None:
    with pytest.raises(OnwardError, match="different questions"):
        metric_change(questions([1.0]), questions([1.0, 0.0]), "acc")
    with pytest.raises(OnwardError, match="other documents"):
        perplexity_change(documents([1.0], [3]), documents([1.0], [4]))


def test_the_mean_over_benchmarks_weighs_each_alike() -> None:
    mean = mean_change([Change(0.1, 0.03, 100), Change(0.3, 0.04, 9)])
    assert mean.value == pytest.approx(0.2) and mean.stderr == pytest.approx(0.025) and mean.count == 109
