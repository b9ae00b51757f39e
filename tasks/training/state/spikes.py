"""Losses that stand out from those before them: marked in the journal, never acted on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

WINDOW = 128
LEAST = 32
SIGMAS = 6.0
"""A spike is more than 6 standard deviations above the mean of the last 128 losses: the rule by which OLMo-core skips
steps (allenai/OLMo-core, optim/skip_step_optimizer.py: rolling_interval_length, sigma_factor), above alone, and from 32
losses on."""


class Spikes:
    """The last finite losses of a segment, nats a target. A function of the journal: what resumes has the same window."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        """`losses`: the finite ones so far, oldest first; the last 128 count."""
        self._losses = deque(losses, WINDOW)

    def is_spike(self, loss: float | None) -> bool:
        """Whether this loss is one; it counts among those before the next. One that is not finite is none."""
        if loss is None or not math.isfinite(loss):
            return False
        before = np.array(self._losses)
        self._losses.append(loss)
        return len(before) >= LEAST and bool(loss > before.mean() + SIGMAS * before.std(ddof=1))
