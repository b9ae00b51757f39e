"""Unusually high losses: marked in the journal, never acted on."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

WINDOW = 128
LEAST = 32
SIGMAS = 6.0
"""A spike is more than 6 standard deviations above the mean of the last 128 losses. This is OLMo-core's rule for
skipping steps (allenai/OLMo-core, optim/skip_step_optimizer.py: rolling_interval_length, sigma_factor), but only
above the mean, and only after 32 losses.
"""


class Spikes:
    """The last finite losses of a segment, in nats per target. They follow from the journal, so a resume has the
    same window.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        """`losses`: the finite losses so far, oldest first; the last 128 are used."""
        self._losses = deque(losses, WINDOW)

    def is_spike(self, loss: float | None) -> bool:
        """Whether this loss is a spike. It then joins the window. A loss that is not finite is never one."""
        if loss is None or not math.isfinite(loss):
            return False
        before = np.array(self._losses)
        self._losses.append(loss)
        return len(before) >= LEAST and bool(loss > before.mean() + SIGMAS * before.std(ddof=1))
