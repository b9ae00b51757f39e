"""Differences between two models on the same questions or documents, with paired standard errors.

The errors are of the sample of questions or documents alone, not of training with another seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from storage.errors import OnwardError


@dataclass(frozen=True)
class Change:
    """A difference and its paired standard error, in the same unit; `count` questions or documents carry it."""

    value: float
    stderr: float
    count: int

    @property
    def clear(self) -> bool:
        """Whether it is more than twice its standard error."""
        return abs(self.value) > 2 * self.stderr


def metric_change(before: pa.Table, after: pa.Table, metric: str) -> Change:
    """after − before of a metric's mean over the questions of both tables (`questions.parquet`).

    Raises OnwardError unless both hold the same questions in the same order.
    """
    if not before.select(["subject", "doc"]).equals(after.select(["subject", "doc"])):
        raise OnwardError(
            "two models were measured on different questions: they cannot be compared by question"
        )
    differences = after[metric].to_numpy() - before[metric].to_numpy()
    return Change(float(differences.mean()), _error_of_mean(differences), len(differences))


def perplexity_change(before: pa.Table, after: pa.Table) -> Change:
    """after / before − 1 of perplexity over the documents of both tables (`documents.parquet`).

    The error is that of a ratio estimate with documents as clusters (Cochran 1977, chapter 6): with d the change of a
    document's nll and t its tokens, D = Σd / Σt, the variance of D is n/(n−1) Σ(d − D·t)² / (Σt)²; times exp(D).
    Raises OnwardError unless both hold the same documents with the same tokens.
    """
    if not before.select(["id", "tokens"]).equals(after.select(["id", "tokens"])):
        raise OnwardError(
            "two models were measured on other documents or tokens: they cannot be compared by document"
        )
    tokens = before["tokens"].to_numpy()
    differences = after["nll"].to_numpy() - before["nll"].to_numpy()
    mean = differences.sum() / tokens.sum()
    count = len(tokens)
    rest = differences - mean * tokens
    variance = count / (count - 1) * float((rest**2).sum()) / float(tokens.sum()) ** 2 if count > 1 else 0.0
    return Change(math.exp(mean) - 1, math.exp(mean) * math.sqrt(variance), count)


def mean_change(changes: Sequence[Change]) -> Change:
    """The change of a mean over benchmarks, each with the same weight; their questions are independent."""
    count = len(changes)
    error = math.sqrt(sum(change.stderr**2 for change in changes)) / count
    return Change(
        sum(change.value for change in changes) / count, error, sum(change.count for change in changes)
    )


def _error_of_mean(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
