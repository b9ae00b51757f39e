"""Differences between models on the same questions or documents: size, interval, test, and a verdict in words.

Intervals and tests are of the sample of questions or documents alone, not of training with another seed. Where answers are
right or wrong and few of them changed, a bootstrap knows too little (five gained of 500, none lost: p = 0.001): there the
verdict also asks the exact test of the questions that changed (p = 0.06), which holds its level however few they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from storage.errors import OnwardError
from tasks.evaluation.bootstrap import Estimate, means, ratios
from tasks.evaluation.significance import ALPHA, holm, mcnemar, smallest_seen

Verdict = Literal["improved", "worse", "no clear change"]


@dataclass(frozen=True)
class Change:
    """A difference of two models: `value` in [low, high] (95 %), over `count` questions or documents.

    p: of no difference, by the bootstrap; adjusted: Holm's of `tested`, over the benchmarks of the comparison; seen: the
    smallest change that would have been seen; mcnemar: (gained, lost, p) of right-or-wrong questions; flips: the exact
    test of a mean of such benchmarks. `rising`: more is better.
    """

    value: float
    low: float
    high: float
    stderr: float
    count: int
    p: float
    rising: bool = True
    adjusted: float = 1.0
    seen: float = 0.0
    mcnemar: tuple[int, int, float] | None = None
    flips: float | None = None
    relative: bool = False

    @property
    def tested(self) -> float:
        """What the verdict is by: the bootstrap's p, and where answers are right or wrong no less than the exact one."""
        return max(self.p, self.flips or 0.0, self.mcnemar[2] if self.mcnemar else 0.0)

    @property
    def verdict(self) -> Verdict:
        """Improved or worse where the adjusted test says so."""
        if self.adjusted >= ALPHA or not self.value:
            return "no clear change"
        return "improved" if (self.value > 0) == self.rising else "worse"


def question_scores(tables: Mapping[str, pa.Table], metric: str, name: str) -> dict[str, Estimate]:
    """Each model's mean of a metric over the questions of all tables (`questions.parquet`), drawn again together.

    Questions are drawn within subjects where there are some. `name` decides the draws. Raises OnwardError unless all hold
    the same questions in the same order.
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


def document_scores(tables: Mapping[str, pa.Table], name: str) -> dict[str, Estimate]:
    """Each model's nats a token over the documents of all tables (`documents.parquet`), drawn again together.

    Raises OnwardError unless all hold the same documents with the same tokens.
    """
    first = next(iter(tables.values())).select(["id", "tokens"])
    if not all(table.select(["id", "tokens"]).equals(first) for table in tables.values()):
        raise OnwardError(
            "two models were measured on other documents or tokens: they cannot be compared by document"
        )
    values = np.column_stack([table["nll"].to_numpy() for table in tables.values()])
    return dict(zip(tables, ratios(values, first["tokens"].to_numpy(), name), strict=True))


def score_change(before: Estimate, after: Estimate) -> Change:
    """after − before of a score, in its unit."""
    difference = after.minus(before)
    low, high = difference.interval()
    return Change(difference.value, low, high, difference.stderr, difference.count, difference.p_value())


def perplexity_change(before: Estimate, after: Estimate) -> Change:
    """after / before − 1 of perplexity, of two `document_scores`: less is better."""
    change = score_change(before, after)
    ratio = math.exp(change.value)
    return replace(
        change,
        value=ratio - 1,
        low=math.expm1(change.low),
        high=math.expm1(change.high),
        stderr=ratio * change.stderr,
        rising=False,
        relative=True,
    )


def with_mcnemar(change: Change, before: pa.Table, after: pa.Table, metric: str) -> Change:
    """The change with McNemar's test beside it, where the metric is right or wrong (1 or 0) for each question."""
    turned = turns(before, after, metric)
    if turned is None:
        return change
    gained, lost = int((turned > 0).sum()), int((turned < 0).sum())
    return replace(change, mcnemar=(gained, lost, mcnemar(gained, lost)))


def turns(before: pa.Table, after: pa.Table, metric: str) -> np.ndarray | None:
    """Of each question: 1 where it became right, −1 where wrong, else 0; None where answers are not right or wrong."""
    first, second = (table[metric].to_numpy().astype(np.float64) for table in (before, after))
    right_or_wrong = np.isin(np.concatenate([first, second]), (0.0, 1.0)).all()
    return np.asarray(second - first) if right_or_wrong else None


def judged(changes: Sequence[Change]) -> list[Change]:
    """The changes of one comparison, one a benchmark, corrected for their number, with what would have been seen."""
    adjusted = holm([change.tested for change in changes])
    return [
        replace(change, adjusted=p, seen=_seen(change, len(changes)))
        for change, p in zip(changes, adjusted, strict=True)
    ]


def _seen(change: Change, tests: int) -> float:
    if change.relative:
        return math.expm1(smallest_seen(change.stderr / (1 + change.value), tests))
    return smallest_seen(change.stderr, tests, change.count if change.mcnemar else None)
