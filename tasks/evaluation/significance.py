"""Beside the intervals: corrections for many benchmarks, exact tests, what could have been seen, and chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

ALPHA = 0.05
"""Chance of a wrong verdict among all benchmarks of one comparison."""
POWER = 0.8
"""Chance of seeing the smallest change that is said to have been visible."""
_LABELS = 0.001  # as rare as this among shuffled answers: the commonest answer is a property of the questions


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order (Holm 1979, Scandinavian Journal of Statistics 6:65)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided: `gained` of the questions became right, `lost` wrong.

    Under no change the questions that differ fall either way like a coin (McNemar 1947, Psychometrika 12:153).
    """
    count = gained + lost
    ways, tail = 1, 0  # whole numbers: no rounding in between
    for k in range(min(gained, lost) + 1):
        tail += ways
        ways = ways * (count - k) // (k + 1)
    return min(1.0, 2 * tail / 2**count)


def sign_flips(differences: np.ndarray, draws: int = 10_000) -> float:
    """Two-sided p of paired differences (questions,) that under no change fall either way like coins.

    Of one size it is McNemar's exact test; of several (a mean of benchmarks, whose questions weigh unlike) the share of
    `draws` of all signs that reach as far, these ones counted in (Phipson & Smyth 2010, SAGMB 9:39). The same differences
    give the same p, to the bit.
    """
    sizes, counts = np.unique(np.round(np.abs(differences[differences != 0]), 15), return_counts=True)
    if len(sizes) < 2:
        return mcnemar(int((differences > 0).sum()), int((differences < 0).sum()))
    heads = np.random.default_rng(0).binomial(counts, 0.5, size=(draws, len(sizes)))
    reached = np.abs((2 * heads - counts) @ sizes) >= abs(float(differences.sum())) - 1e-12
    return (1 + int(reached.sum())) / (1 + draws)


def smallest_seen(stderr: float, tests: int, count: int | None = None) -> float:
    """The smallest true change that had been called clear in 80 of 100 tries, in the unit of `stderr`.

    (z(1 − α/2m) + z(0.8)) · stderr with α = 0.05 and m `tests`, as Holm asks of a benchmark that changes alone (Bloom
    1995, Evaluation Review 19:547; for language models Miller 2024, arXiv 2411.00640). With `count` right-or-wrong
    questions never below what McNemar's test can show at all: so many questions, all changed the same way.
    """
    normal = NormalDist()
    level = ALPHA / max(1, tests)
    found = (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(POWER)) * stderr
    if count:
        found = max(found, min(1.0, math.ceil(math.log2(2 / level)) / count))
    return found


def labelled(benchmark: str) -> bool:
    """Whether the choices are the same labels for every question: yes and no, or letters.

    Elsewhere a place among the choices is no answer that a model could always give: sciq's right one is always the last.
    """
    lettered = benchmark.startswith("mmlu") and not benchmark.endswith("_continuation")
    return lettered or benchmark in ("boolq", "commonsense_qa")


def chance(choices: Sequence[int], targets: Sequence[int], labels: bool) -> tuple[float, str]:
    """What guessing scores (0 … 1), and the rule: "guess" (the mean of 1/n) or "majority". 0 where questions are open.

    With `labels` (see `labelled`) it is the share of the commonest answer where that is larger, and not by the draw of
    questions alone: of shuffled answers so many would be the same less than once in a thousand times. So for boolq, whose
    answer is yes for 62 %.
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
