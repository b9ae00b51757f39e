"""Ages by the wall clock, which may be set back."""

from __future__ import annotations

import time

SKEW_SECONDS = 60.0
"""How far the clocks of two machines may be apart without notice."""


def younger(moment: float, seconds: float) -> bool:
    """Whether a moment (seconds since 1970) is less than `seconds` ago.

    One that lies further ahead than clocks are apart is not: the clock was set back since, and nothing may wait until it
    is there again.
    """
    return -SKEW_SECONDS < time.time() - moment < seconds
