"""Differences between models on the same questions or documents: size, interval, test, and a verdict in words.

Intervals and tests cover the sample of questions or documents only, not training with another seed. With
right-or-wrong answers of which few changed, a bootstrap is too optimistic (five gained of 500, none lost: p = 0.001).
There the verdict also requires the exact test of the changed questions (p = 0.06), which holds its level for any
number of them. Documents are fewer and more unlike than questions: their change has the exact test of signs alone
(ratio.py). Fewer than ten of either give no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from storage.errors import OnwardError
from tasks.evaluation.bootstrap import LEVEL, Estimate, means
from tasks.evaluation.ratio import Ratio, ratios
from tasks.evaluation.significance import ALPHA, holm, mcnemar, power_of, sign_flips, smallest_seen

Verdict = Literal["improved", "worse", "no clear change", "too few documents", "too few questions"]
FEWEST = 10
"""Fewer documents or questions give no verdict. Of five, no choice of signs is rarer than 0.05; of nine, only those in
which nearly all agree, and one unlike document would decide."""


@dataclass(frozen=True)
class Change:
    """A difference between two models: `value` in [low, high] (95 %), over `count` questions or documents.

    p: p-value of no difference: the bootstrap's; of documents, the exact test's. adjusted: Holm's correction of
    `tested` over the benchmarks of the comparison. seen: the smallest change that would have been detected, None if
    that cannot be told. mcnemar: (gained, lost, p) for right-or-wrong questions. flips: the exact test of all signs,
    for means of such benchmarks and for other scores. rising: a higher value is better. relative: of perplexity, over
    documents. of: the difference of ratios behind a relative change. answers: it counts
    questions that became right or wrong.
    """

    value: float
    low: float
    high: float
    stderr: float
    count: int
    p: float
    rising: bool = True
    adjusted: float = 1.0
    seen: float | None = 0.0
    mcnemar: tuple[int, int, float] | None = None
    flips: float | None = None
    relative: bool = False
    of: Ratio | None = None
    answers: bool = False

    @property
    def tested(self) -> float:
        """The p-value behind the verdict: the bootstrap's; for right-or-wrong answers the larger of it and the exact
        test's."""
        return max(self.p, self.flips or 0.0, self.mcnemar[2] if self.mcnemar else 0.0)

    @property
    def verdict(self) -> Verdict:
        """Improved or worse if the adjusted test says so, and if there is enough to test."""
        if self.count < FEWEST:
            return "too few documents" if self.relative else "too few questions"
        if self.adjusted >= ALPHA or not self.value:
            return "no clear change"
        return "improved" if (self.value > 0) == self.rising else "worse"


def question_scores(tables: Mapping[str, pa.Table], metric: str, name: str) -> dict[str, Estimate]:
    """Each model's mean of a metric over the questions of all tables (`questions.parquet`), with shared draws.

    Questions are drawn within subjects, if there are any. `name` seeds the draws. Raises OnwardError unless all tables
    have the same questions in the same order.
    """
    first = next(iter(tables.values())).select(["subject", "doc"])
    if not all(table.select(["subject", "doc"]).equals(first) for table in tables.values()):
        raise OnwardError(
            "two models were measured on different questions: they cannot be compared by question"
        )
    values = np.column_stack([table[metric].to_numpy() for table in tables.values()]).astype(np.float64)
    subjects = np.array([subject or "" for subject in first["subject"].to_pylist()])
    strata = np.unique(subjects, return_inverse=True)[1]
    return dict(zip(tables, means(values, strata, name), strict=True))


def document_scores(tables: Mapping[str, pa.Table], name: str) -> dict[str, Ratio]:
    """Each model's nats per token over the documents of all tables (`documents.parquet`), with shared signs.

    Raises OnwardError unless all tables have the same documents with the same tokens.
    """
    first = next(iter(tables.values())).select(["id", "tokens"])
    if not all(table.select(["id", "tokens"]).equals(first) for table in tables.values()):
        raise OnwardError(
            "two models were measured on other documents or tokens: they cannot be compared by document"
        )
    values = np.column_stack([table["nll"].to_numpy() for table in tables.values()])
    return dict(zip(tables, ratios(values, first["tokens"].to_numpy(), name), strict=True))


def score_change(before: Estimate, after: Estimate) -> Change:
    """The change of a score, after − before, in its unit."""
    difference = after.minus(before)
    low, high = difference.interval()
    return Change(difference.value, low, high, difference.stderr, difference.count, difference.p_value())


def perplexity_change(before: Ratio, after: Ratio) -> Change:
    """The relative change of perplexity, after / before − 1, from two `document_scores`. Lower is better."""
    difference = after.minus(before)
    low, high = difference.interval()
    factor = math.exp(difference.value)
    return Change(
        factor - 1,
        _expm1(low),
        _expm1(high),
        factor * difference.stderr,
        difference.count,
        p := difference.p_value(),
        flips=p,
        rising=False,
        relative=True,
        of=difference,
    )


def _expm1(value: float) -> float:
    """e^value − 1; infinite where that is beyond a float."""
    return math.inf if value > 700 else math.expm1(value)


def with_mcnemar(change: Change, before: pa.Table, after: pa.Table, metric: str) -> Change:
    """The change with its exact test: McNemar's if the metric is right or wrong (1 or 0) for each question, else that
    of all signs."""
    turned = turns(before, after, metric)
    if turned is None:
        first, second = (table[metric].to_numpy().astype(np.float64) for table in (before, after))
        return replace(change, flips=sign_flips(second - first))
    gained, lost = int((turned > 0).sum()), int((turned < 0).sum())
    return replace(change, mcnemar=(gained, lost, mcnemar(gained, lost)), answers=True)


def turns(before: pa.Table, after: pa.Table, metric: str) -> np.ndarray | None:
    """Per question: 1 if it became right, −1 if it became wrong, else 0. None if answers are not right or wrong."""
    first, second = (table[metric].to_numpy().astype(np.float64) for table in (before, after))
    right_or_wrong = np.isin(np.concatenate([first, second]), (0.0, 1.0)).all()
    return np.asarray(second - first) if right_or_wrong else None


def judged(changes: Sequence[Change]) -> list[Change]:
    """The changes of one comparison (one per benchmark), corrected for their number, with the smallest detectable
    change."""
    adjusted = holm([change.tested for change in changes])
    return [
        replace(change, adjusted=p, seen=_seen(change, len(changes)))
        for change, p in zip(changes, adjusted, strict=True)
    ]


def _seen(change: Change, tests: int) -> float | None:
    if change.count < FEWEST:
        return None
    if change.of is not None:
        low, high = change.of.interval(1 - (1 - LEVEL) / max(1, tests))
        found = _expm1((high - low) / 2 + power_of(change.of.stderr))
    else:
        found = smallest_seen(change.stderr, tests, change.count if change.answers else None)
    return found if math.isfinite(found) and found > 0 else None
