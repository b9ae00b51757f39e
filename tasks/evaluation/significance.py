"""Statistics besides the intervals: corrections for many benchmarks, exact tests, detectable changes, and chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

ALPHA = 0.05
"""Probability of any wrong verdict among all benchmarks of one comparison."""
POWER = 0.8
"""Probability of detecting the smallest detectable change."""
_ALL_SIGNS = 14  # up to so many differences, every choice of signs is tried
_LABELS = 0.001  # rarer than this among shuffled answers: the most common answer is no accident


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order (Holm 1979, Scandinavian Journal of Statistics 6:65)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided: `gained` questions became right, `lost` became wrong.

    If nothing changed, each differing question falls either way with probability 1/2 (McNemar 1947, Psychometrika
    12:153).
    """
    count = gained + lost
    ways, tail = 1, 0  # whole numbers: no intermediate rounding
    for k in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (count - k) // (k + 1)
    return min(1.0, 2 * tail / 2**count)


def sign_flips(differences: np.ndarray, draws: int = 10_000) -> float:
    """Two-sided p-value of paired differences (questions,), each of which has a random sign if nothing changed.

    If all differences have one size, this is McNemar's exact test. If there are several sizes (a mean of benchmarks,
    whose questions have different weights), it is the share of all signs that reach at least as far; of more than 14
    differences, of `draws` random signs, the observed ones included (Phipson & Smyth 2010, SAGMB 9:39). The same
    differences give the same p, bit for bit.
    """
    sizes, counts = np.unique(np.round(np.abs(differences[differences != 0]), 15), return_counts=True)
    if len(sizes) < 2:
        return mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    if counts.sum() <= _ALL_SIGNS:
        sums = np.zeros(1)
        for size in np.repeat(sizes, counts):
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= abs(float(differences.sum())) - 1e-12).mean())
    heads = np.random.default_rng(0).binomial(counts, 0.5, size=(draws, len(sizes)))
    reached = np.abs((2 * heads - counts) @ sizes) >= abs(float(differences.sum())) - 1e-12
    return (1 + int(reached.sum())) / (1 + draws)


def smallest_seen(stderr: float, tests: int, count: int | None = None) -> float:
    """The smallest true change that would be detected in 80 of 100 tries, in the unit of `stderr`.

    (z(1 − α/2m) + z(0.8)) · stderr with α = 0.05 and m `tests`, as Holm requires of a single changed benchmark (Bloom
    1995, Evaluation Review 19:547; for language models Miller 2024, arXiv 2411.00640). With `count` right-or-wrong
    questions, it is at least the smallest change that McNemar's test can detect: that many questions, all changed in
    the same direction.
    """
    level = ALPHA / max(1, tests)
    found = NormalDist().inv_cdf(1 - level / 2) * stderr + power_of(stderr)
    if count:
        found = max(found, min(1.0, math.ceil(math.log2(2 / level)) / count))
    return found


def power_of(stderr: float) -> float:
    """How far beyond what a test just detects a true change must be, to be detected in 80 of 100 tries."""
    return NormalDist().inv_cdf(POWER) * stderr


def labelled(benchmark: str) -> bool:
    """Whether the choices are the same labels for every question: yes and no, or letters.

    For other benchmarks, a place among the choices is not an answer that a model could always give: in sciq the right
    choice is always the last.
    """
    lettered = benchmark.startswith("mmlu") and not benchmark.endswith("_continuation")
    return lettered or benchmark in ("boolq", "commonsense_qa")


def chance(choices: Sequence[int], targets: Sequence[int], labels: bool) -> tuple[float, str]:
    """The score of guessing (0 … 1), and its rule: "guess" (the mean of 1/n) or "majority". 0 for open questions.

    With `labels` (see `labelled`), the score is the share of the most common answer, if that share is larger and
    significant: shuffled answers would reach it less than once in a thousand times. This applies to boolq, where 62 %
    of the answers are yes.
    """
    if not choices:
        return 0.0, "guess"
    guess = sum(1 / count if count > 1 else 0.0 for count in choices) / len(choices)
    count = choices[0]
    if labels and count > 1 and all(other == count for other in choices):
        from scipy.special import bdtrc  # P(more than k of n)

        most = max(targets.count(target) for target in set(targets))
        if most / len(targets) > guess and count * bdtrc(most - 1, len(targets), 1 / count) < _LABELS:
            return most / len(targets), "majority"
    return guess, "guess"
