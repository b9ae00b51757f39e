"""The paired bootstrap: how a score would vary over other questions of the same kind. (Documents: see ratio.py.)

Questions are resampled within their strata (MMLU's subjects), with the same draws for all models, so two models' draws
can be subtracted. Deviations in a stratum of n questions are scaled by √(n / (n − 1)), which makes the variance
unbiased for small strata too (Rao & Wu 1988, JASA 83:231). Strata of one question are pooled. Intervals are BCa (Efron
1987, JASA 82:171): they follow skew and do not depend on the scale. The acceleration is that for strata (Davison &
Hinkley 1997, section 5.3.2). Drawing n times from k distinct rows is one multinomial draw, so right-or-wrong answers
cost almost nothing. The same data and name give the same draws, bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 10_000
LEVEL = 0.95
"""Confidence level of each single interval."""
_NORMAL = NormalDist()
_TIE = 1e-12  # tolerance for sums of the same answers in another order
_AT_ONCE = 4_000_000  # row numbers held in memory at once


@dataclass(frozen=True, eq=False)
class Estimate:
    """A statistic and its bootstrap results.

    draws: (draws,), resampled values of the statistic. influence: (questions,), each question's contribution, scaled
    so that the squares sum to the variance.
    """

    value: float
    draws: np.ndarray
    influence: np.ndarray

    @property
    def count(self) -> int:
        """Number of questions behind it."""
        return len(self.influence)

    @property
    def stderr(self) -> float:
        """The analytic standard error, in the unit of the statistic."""
        return math.sqrt(float((self.influence**2).sum()))

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two statistics over the same draws of the same questions."""
        return Estimate(self.value - other.value, self.draws - other.draws, self.influence - other.influence)

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The BCa interval (low, high). NaN for fewer than two questions."""
        if self.count < 2:
            return math.nan, math.nan
        bias, skew = self._bias(), self._skew()
        ends = []
        for tail in ((1 - level) / 2, (1 + level) / 2):
            shifted = bias + _NORMAL.inv_cdf(tail)
            ends.append(_NORMAL.cdf(bias + shifted / (1 - skew * shifted)))
        low, high = np.quantile(self.draws, ends)
        return float(low), float(high)

    def p_value(self) -> float:
        """Two-sided p-value of no difference from zero: the level at which the BCa interval just reaches zero.

        Efron & Tibshirani 1993, equation 15.34, on both sides. Draws of exactly zero count against a difference.
        """
        if self.count < 2:
            return 1.0
        below = self._level(int((self.draws <= _TIE).sum()))
        above = 1 - self._level(int((self.draws < -_TIE).sum()))
        return min(1.0, 2 * min(below, above))

    def _level(self, count: int) -> float:
        size = len(self.draws)
        share = min(max(count, 1), size) / (size + 1)
        bias, skew = self._bias(), self._skew()
        away = _NORMAL.inv_cdf(share) - bias
        return _NORMAL.cdf(away / (1 + skew * away) - bias)

    def _bias(self) -> float:
        """Distance of the draws' median from the value, in standard deviations. Ties count half."""
        below = float((self.draws < self.value - _TIE).mean())
        share = (below + float((self.draws <= self.value + _TIE).mean())) / 2
        edge = 1 / (len(self.draws) + 1)
        return _NORMAL.inv_cdf(min(max(share, edge), 1 - edge))

    def _skew(self) -> float:
        """The acceleration: a sixth of the skewness of the influence."""
        squares = float((self.influence**2).sum())
        return float((self.influence**3).sum()) / (6 * squares**1.5) if squares else 0.0


def means(
    values: np.ndarray, strata: np.ndarray, name: str, seed: int = 0, draws: int = DRAWS
) -> list[Estimate]:
    """The mean of each column of `values` (questions, models), over the same draws of questions.

    `strata` (questions,): the number of each question's group. Questions are resampled within groups.
    """
    groups = _groups(strata)
    total = _resampled(values, groups, generator_of(name, seed), draws) / len(values)
    found = []
    for model in range(values.shape[1]):
        column = values[:, model]
        influence = _centred(column, groups) / len(values)
        found.append(Estimate(float(column.mean()), total[:, model], influence))
    return found


def mean_of(estimates: Sequence[Estimate], weights: Sequence[int] | None = None) -> Estimate:
    """The mean of statistics over different questions (benchmarks), with equal weights unless others are given."""
    weights = weights or [1] * len(estimates)
    whole = sum(weights)
    weighted = list(zip(weights, estimates, strict=True))
    return Estimate(
        sum(weight * one.value for weight, one in weighted) / whole,
        np.sum([weight * one.draws for weight, one in weighted], axis=0) / whole,
        np.concatenate([weight * one.influence for weight, one in weighted]) / whole,
    )


def together(
    members: Sequence[Sequence[Estimate]],
    places: Sequence[Sequence[np.ndarray]],
    strata: np.ndarray,
    name: str,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[Estimate]:
    """Each model's mean over several benchmarks that ask the same questions, or some of them, in different words.

    `members`: the models' estimates, by benchmark. `places`, of the same shape: which of all questions each row of an
    estimate is. `strata` (questions,): the stratum of each question. A question is drawn for all benchmarks at once,
    so errors that they share do not cancel. Exact for means, whose influence is the statistic itself.
    """
    influence = np.zeros((len(strata), len(members[0])))
    for estimates, rows in zip(members, places, strict=True):
        for model, (one, own) in enumerate(zip(estimates, rows, strict=True)):
            influence[own, model] += one.influence / len(members)
    values = [sum(one.value for one in models) / len(members) for models in zip(*members, strict=True)]
    moved = _resampled(influence, _groups(strata), generator_of(name, seed), draws, widen=False)
    return [Estimate(value, value + moved[:, k], influence[:, k]) for k, value in enumerate(values)]


def generator_of(name: str, seed: int) -> np.random.Generator:
    """The source of random draws for this name."""
    named = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return np.random.default_rng([seed, named])


def _groups(strata: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each stratum. Strata of one row are pooled; a single one joins the smallest other stratum."""
    rows = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    single = [one for one in rows if len(one) == 1]
    groups = sorted((one for one in rows if len(one) > 1), key=len)
    if len(single) == 1 and groups:
        groups[0] = np.sort(np.concatenate([groups[0], *single]))
    elif single:
        groups.append(np.concatenate(single))
    return groups


def _centred(values: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """Values minus their stratum's mean, times √(n / (n − 1)), so that their squares estimate the variance without
    bias."""
    found = np.zeros(len(values))
    for rows in groups:
        if len(rows) > 1:
            inside = values[rows]
            found[rows] = (inside - inside.mean()) * math.sqrt(len(rows) / (len(rows) - 1))
    return found


def _resampled(
    columns: np.ndarray,
    groups: list[np.ndarray],
    generator: np.random.Generator,
    draws: int,
    widen: bool = True,
) -> np.ndarray:
    """Sums of the columns over resampled rows: (draws, columns). `widen` scales each stratum's spread to be unbiased."""
    total = np.zeros((draws, columns.shape[1]))
    for rows in groups:
        inside = columns[rows]
        different, counts = np.unique(inside, axis=0, return_counts=True)
        if 4 * len(different) <= len(rows) or len(rows) <= 4:
            drawn = generator.multinomial(len(rows), counts / counts.sum(), size=draws)
            sums = sum(drawn[:, [k]] * different[k] for k in range(len(different)))
        else:
            sums = _drawn_sums(inside, generator, draws)
        own = inside.sum(axis=0)
        total += own + (sums - own) * (math.sqrt(len(rows) / max(1, len(rows) - 1)) if widen else 1.0)
    return total


def _drawn_sums(inside: np.ndarray, generator: np.random.Generator, draws: int) -> np.ndarray:
    sums = np.empty((draws, inside.shape[1]))
    step = max(1, _AT_ONCE // len(inside))
    for first in range(0, draws, step):
        last = min(first + step, draws)
        chosen = generator.integers(0, len(inside), (last - first, len(inside)))
        for column in range(inside.shape[1]):
            sums[first:last, column] = inside[:, column][chosen].sum(axis=1)
    return sums
