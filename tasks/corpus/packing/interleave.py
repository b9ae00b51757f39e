"""Choose the source of each training sequence: a low-discrepancy sequence over weighted sources.

The method is Tijdeman's algorithm for the chairman assignment problem (R. Tijdeman, "The chairman assignment problem",
Discrete Mathematics 32, 1980). With k sources of weights w_i that sum to 1, source i has been chosen `count_i(n)`
times after any n choices, and `|count_i(n) - w_i n| <= 1 - 1/(2k - 2)`. So every stretch of training, however it is
cut, matches the configured mixture to within one sequence.

For constant weights the rule is deadline scheduling. Unit c (from 0) of source i may be chosen from position
`(c + 1/(2k-2)) / w_i` on; the unit with the earliest deadline `(c + 1 - 1/(2k-2)) / w_i` goes first; ties go to the
source named first. All arithmetic is in integers, from the decimal text of the weights: there is no rounding. The
choices repeat with the period of the weights' common denominator, because every count is exact there. So a position
needs no other state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from storage.errors import ConfigError

Weight = Fraction | float | int | str


def shares(weights: Sequence[Weight]) -> list[Fraction]:
    """The weights divided by their sum, exactly. A float counts as its shortest decimal text (0.1 is 1/10).

    Raises ConfigError if a weight is negative or not finite, or if none is positive.
    """
    exact = [_fraction(weight) for weight in weights]
    total = sum(exact, Fraction(0))
    if any(weight < 0 for weight in exact) or total <= 0:
        raise ConfigError(
            f"Weights must be at least 0 and one of them positive, not {list(map(str, weights))}."
        )
    return [weight / total for weight in exact]


def _fraction(weight: Weight) -> Fraction:
    try:
        return weight if isinstance(weight, Fraction) else Fraction(str(weight))
    except ValueError as error:
        raise ConfigError(f"A weight must be a finite number, not {weight!r}.") from error


def choose(weights: Sequence[Weight], count: int, start: int = 0) -> np.ndarray:
    """The source of each position `start … start + count - 1`: int64 [count].

    The source at a position does not depend on `start` or `count`. Raises ConfigError for unusable weights.
    """
    numerators, period = _over_common_denominator(shares(weights))
    if start + count <= period:
        return _cycle(numerators, period, start + count)[start:]
    cycle = _cycle(numerators, period, period)
    return cycle[np.arange(start, start + count, dtype=np.int64) % period]


def counts(weights: Sequence[Weight], n: int) -> list[int]:
    """How many of the first `n` positions each source gets. Raises ConfigError for unusable weights."""
    numerators, period = _over_common_denominator(shares(weights))
    rounds, rest = divmod(n, period)
    begun = np.bincount(_cycle(numerators, period, rest), minlength=len(numerators))
    return [rounds * whole + int(part) for whole, part in zip(numerators, begun, strict=True)]


def _over_common_denominator(exact: list[Fraction]) -> tuple[list[int], int]:
    period = math.lcm(*(share.denominator for share in exact))
    return [share.numerator * (period // share.denominator) for share in exact], period


def _cycle(numerators: list[int], period: int, length: int) -> np.ndarray:
    """The first `length` choices of one period: the earliest deadline among the units that may be chosen."""
    used = [index for index, numerator in enumerate(numerators) if numerator > 0]
    if len(used) == 1:
        return np.full(length, used[0], dtype=np.int64)
    # All times are multiplied by `scale`, so that every release, deadline and spacing is an integer.
    halves = 2 * len(used) - 2
    scale = halves * math.lcm(*(numerators[index] for index in used))
    spacing = [scale * period // numerators[index] for index in used]
    release = [step // halves for step in spacing]
    deadline = [step - first for step, first in zip(spacing, release, strict=True)]
    chosen = np.empty(length, dtype=np.int64)
    everyone = range(len(used))
    now = 0
    for position in range(length):  # each choice depends on all choices before it: it cannot be vectorised
        now += scale
        best, earliest = -1, None
        for source in everyone:
            if release[source] <= now and (earliest is None or deadline[source] < earliest):
                best, earliest = source, deadline[source]
        chosen[position] = used[best]
        release[best] += spacing[best]
        deadline[best] += spacing[best]
    return chosen
