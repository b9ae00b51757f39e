"""The law of a loss over tokens, L(D) = E + A·D^(−α), fitted to what was measured on the way, and what it says of later
budgets.

The form is that of Kaplan et al. 2020 (arXiv:2001.08361) with the floor E of Hoffmann et al. 2022 (arXiv:2203.15556); no
constant of theirs is used. It is fitted to losses on a trunk at constant rate. A budget's model comes from a branch in
which the rate decays, and lies lower: by how much is taken from the newest branch that has ended, and is taken to stay so
(the gap belongs to the rate, not to the tokens: Hägele et al. 2024, arXiv:2405.18392; Wen et al. 2024, arXiv:2410.05192).
So a forecast is the newest branch's loss, and the law's change from its tokens to those asked for.

The fit is by least squares: for each α, E and A are linear (variable projection; Golub & Pereyra 1973, SIAM J. Numer. Anal.
10:413). Intervals are a bootstrap over documents, and over blocks of the fit's residuals (Künsch 1989, Ann. Statist.
17:1217), since neighbouring checkpoints err alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.evaluation.bootstrap import generator_of

FEWEST = 8
"""Measurements that a fit needs."""
FARTHEST = 10.0
"""A forecast is made up to so many times the tokens that were trained."""
_EARLY = 0.1
"""Measurements before this share of the tokens are left out: there the warm-up and the change of text show."""
_DRAWS = 1_000
_POWERS = np.geomspace(0.02, 3.0, 96)
_LEVEL, _CHECK_LEVEL = 0.95, 0.99
_SLACK = 0.02
"""Share of what was learned by which the check may be missed all the same: where nothing else errs, the form does."""


@dataclass(frozen=True)
class Law:
    """E + A·(D / unit)^(−α), in nats per token; `unit` in tokens."""

    floor: float
    scale: float
    power: float
    unit: float

    def at(self, tokens: Any) -> Any:
        """The loss at these tokens."""
        return self.floor + self.scale * (np.asarray(tokens, dtype=float) / self.unit) ** -self.power


@dataclass(frozen=True, eq=False)
class Measured:
    """One source's losses on the trunk. tokens: (points,), rising. sums: (points, documents) in nats. counts: (documents,)
    tokens."""

    tokens: np.ndarray
    sums: np.ndarray
    counts: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        """(points,), in nats per token."""
        return np.asarray(self.sums.sum(axis=1) / self.counts.sum())

    def where(self, chosen: np.ndarray) -> Measured:
        """These points alone."""
        return Measured(self.tokens[chosen], self.sums[chosen], self.counts)


@dataclass(frozen=True)
class Expected:
    """The loss of a budget's model, and its 95 % interval."""

    tokens: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outlook:
    """What the law says of later budgets; with a reason and no law where it cannot tell."""

    law: Law | None
    why: str = ""
    expected: tuple[Expected, ...] = ()


def outlook(
    measured: Measured, end: tuple[int, float], later: Sequence[int], name: str, warmup: int = 0
) -> Outlook:
    """What is to be expected at `later` tokens.

    `end`: tokens and loss, on the same documents, of the newest branch that has ended. `warmup`: tokens of the warm-up,
    before which nothing counts. `name` seeds the draws: the same measurements give the same intervals.
    """
    first = max(warmup, _EARLY * float(measured.tokens.max(initial=0)), 1)
    used = measured.where((measured.tokens >= first) & np.isfinite(measured.losses))
    count = len(used.tokens)
    if count < FEWEST:
        return Outlook(None, f"{count} measurements after the warm-up are too few: {FEWEST} are needed")
    unit = float(used.tokens[-1])
    law, residuals = _fitted(used.tokens, used.losses, unit)
    spread = float(np.sqrt((residuals**2).sum() / (count - 3)))
    fallen = float(law.at(used.tokens[0]) - law.at(unit))
    if fallen <= 2 * spread:
        return Outlook(
            None,
            f"the loss falls too little ({fallen:.3f} beside {spread:.3f} from measurement to measurement)",
        )
    if missed := _missed(used, name):
        return Outlook(None, missed)
    expected = []
    for tokens, draws in zip(later, _changes(used, law, residuals, end[0], later, name), strict=True):
        if tokens > FARTHEST * unit:
            continue
        value = end[1] + float(law.at(tokens) - law.at(end[0]))
        low, high = np.quantile(end[1] + draws, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        if high - low > 2 * fallen:
            return Outlook(
                None,
                f"at {tokens:,} tokens its interval ({high - low:.3f}) is wider than what was learned so far",
            )
        expected.append(Expected(int(tokens), value, float(low), float(high)))
    return Outlook(law, "" if expected else f"more than {FARTHEST:g} times what was trained", tuple(expected))


def _fitted(tokens: np.ndarray, losses: np.ndarray, unit: float) -> tuple[Law, np.ndarray]:
    """The law with the least squares, and what it leaves (points,). The grid's best power is refined."""
    from scipy.optimize import minimize_scalar

    powers, _, _ = _fit_many(tokens / unit, losses[:, None])
    place = int(np.searchsorted(_POWERS, powers[0]))
    ends = (_POWERS[max(0, place - 1)], _POWERS[min(len(_POWERS) - 1, place + 1)])
    refined = minimize_scalar(
        lambda power: float(_linear(tokens / unit, losses[:, None], float(power))[2][0]), bounds=ends
    ).x
    floor, scale, _ = _linear(tokens / unit, losses[:, None], float(refined))
    law = Law(float(floor[0]), float(scale[0]), float(refined), unit)
    return law, losses - law.at(tokens)


def _fit_many(x: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(power, floor, scale), each (columns,), of the best fit to each column of `losses` (points, columns)."""
    columns = losses.shape[1]
    best = np.full(columns, np.inf)
    found = np.zeros((3, columns))
    for power in _POWERS:
        floor, scale, left = _linear(x, losses, float(power))
        better = left < best
        best[better] = left[better]
        found[:, better] = np.array([np.full(columns, power), floor, scale])[:, better]
    return found[0], found[1], found[2]


def _linear(x: np.ndarray, losses: np.ndarray, power: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(floor, scale, sum of squares) for a given power; neither is below 0."""
    terms = x**-power
    centred = terms - terms.mean()
    mean = losses.mean(axis=0)
    scale = np.maximum(0.0, centred @ losses / max(float(centred @ centred), 1e-300))
    floor = mean - scale * terms.mean()
    under = floor < 0
    if under.any():  # on the edge: without a floor
        scale[under] = terms @ losses[:, under] / float(terms @ terms)
        floor[under] = 0.0
    left = ((losses - floor - terms[:, None] * scale) ** 2).sum(axis=0)
    return floor, scale, left


def _changes(
    used: Measured, law: Law, residuals: np.ndarray, start: float, later: Sequence[float], name: str
) -> np.ndarray:
    """Draws (later, draws) of a model's loss less that of the one at `start` tokens, with the errors of both
    measurements. That at the start is one error, the same for all that is foretold.
    """
    generator = generator_of(f"outlook/{name}", 0)
    losses = _over_documents(used, generator) - residuals[:, None] + _blocks(residuals, generator)
    powers, _, scales = _fit_many(used.tokens / law.unit, losses)
    at = np.array(later, dtype=float)[:, None] / law.unit
    own = generator.choice(_widened(residuals), (len(later), _DRAWS))
    of_start = generator.choice(_widened(residuals), _DRAWS)
    changes: np.ndarray = scales * (at**-powers - (start / law.unit) ** -powers) + own - of_start
    return changes


def _widened(residuals: np.ndarray) -> np.ndarray:
    """Residuals as large as the errors that they are what is left of, after a fit of three parameters."""
    return residuals * np.sqrt(len(residuals) / (len(residuals) - 3))


def _blocks(residuals: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Residuals, widened, drawn again in blocks of neighbours, around the end: (points, draws)."""
    count = len(residuals)
    length = max(1, round(count ** (1 / 3)))
    starts = generator.integers(0, count, (-(-count // length), _DRAWS))
    places = (starts[:, None, :] + np.arange(length)[None, :, None]).reshape(-1, _DRAWS)[:count] % count
    return np.asarray(_widened(residuals)[places])


def _over_documents(used: Measured, generator: np.random.Generator) -> np.ndarray:
    """The losses over documents drawn again: (points, draws)."""
    documents = len(used.counts)
    weights = generator.multinomial(documents, np.full(documents, 1 / documents), size=_DRAWS).T
    return np.asarray((used.sums @ weights) / np.maximum(used.counts @ weights, 1))


def _missed(used: Measured, name: str) -> str:
    """Where the law of the first three quarters misses the mean of the last quarter, a sentence; else nothing."""
    count = len(used.tokens)
    kept = max(6, count - max(2, count // 4))
    before, after = used.where(np.arange(count) < kept), used.where(np.arange(count) >= kept)
    law, residuals = _fitted(before.tokens, before.losses, float(before.tokens[-1]))
    generator = generator_of(f"check/{name}", 0)
    losses = law.at(before.tokens)[:, None] + _blocks(residuals, generator)
    powers, floors, scales = _fit_many(before.tokens / law.unit, losses)
    at = after.tokens[:, None] / law.unit
    own = _blocks(residuals, generator)[: len(at)]
    draws = (floors + scales * at**-powers + own).mean(axis=0)
    low, high = np.quantile(draws, [(1 - _CHECK_LEVEL) / 2, (1 + _CHECK_LEVEL) / 2])
    seen, slack = (
        float(after.losses.mean()),
        _SLACK * float(law.at(before.tokens[0]) - law.at(before.tokens[-1])),
    )
    if low - slack <= seen <= high + slack:
        return ""
    return (
        f"the law of the first {kept} measurements expected {low:.3f} to {high:.3f} of the {count - kept} after them, "
        f"and it was {seen:.3f}"
    )
