"""A loss that climbs instead of falling: a warning, and beyond guessing the end of training.

A rate that is too high makes the weights worse with every step, and no number stops being finite. Guessing each token
alike costs ln(vocabulary) nats. A model that is worse than that has learned to be wrong, and does not come back at the
same rate. The rules, in nats per target:

- risen: the median of the last 16 losses is more than 1 above the lowest such median so far. A warning. Single spikes
  (spikes.py) do not move a median.
- diverged: besides, each of the 16 is more than 1 above guessing. Training ends.

In the demo's and the tests' trainings the median rose by at most 0.17. 16 steps are near the 20 over which AdamW's
second moment (beta 0.95) is a mean; 1 nat is a perplexity 2.7 times as high.

What must stay true: the state follows from the losses alone, so a run that was killed ends at the same step. Losses of
steps that were passed over do not count.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

WINDOW = 16
RISE = 1.0
_FEWEST = 4  # fewer losses say nothing at the end of a segment


class Climb:
    """The last losses of a segment, and the lowest median of them so far."""

    def __init__(self, vocabulary: int, losses: Iterable[float | None] = ()) -> None:
        """`losses`: those so far, oldest first; None where a step was skipped."""
        self.guessing = math.log(vocabulary)
        self.lowest = math.inf
        self._last: deque[float] = deque(maxlen=WINDOW)
        for loss in losses:
            self.add(loss)

    def add(self, loss: float | None) -> None:
        """One more step's loss; None, or a number that is not finite, if it changed no weight."""
        if loss is not None and math.isfinite(loss):
            self._last.append(loss)
            self.lowest = min(self.lowest, self.level)

    @property
    def level(self) -> float:
        """Median of the last losses, at most 16."""
        return statistics.median(self._last) if self._last else math.nan

    @property
    def risen(self) -> bool:
        """Whether the last 16 losses are well above what they were."""
        return len(self._last) == WINDOW and self.level > self.lowest + RISE

    @property
    def diverged(self) -> bool:
        """Whether they are worse than guessing too, each of them."""
        return self.risen and min(self._last) > self.guessing + RISE

    @property
    def at_the_end(self) -> dict[str, float]:
        """For result.json: the lowest median and the last one, if the segment ends well above; else nothing."""
        if len(self._last) < _FEWEST or self.level <= self.lowest + RISE:
            return {}
        return {"lowest_loss": self.lowest, "last_loss": self.level, "guessing": self.guessing}

    def state(self) -> dict[str, Any]:
        """As plain JSON, for the other processes."""
        return {"lowest": self.lowest if self._last else None, "last": list(self._last)}

    def restored(self, state: Mapping[str, Any]) -> Climb:
        """With the state of the first process."""
        self._last.extend(state["last"])
        self.lowest = math.inf if state["lowest"] is None else float(state["lowest"])
        return self
