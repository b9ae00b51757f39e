"""Learning rates as pure functions of the step: nothing is saved, so nothing can drift on resume.

Step s is the s-th update of the training line, counted from 1. Nothing here depends on budgets that come later.
"""

from __future__ import annotations

import math

from tasks.training.spec import CosineSchedule, Schedule, WsdSchedule


def learning_rate(schedule: Schedule, step: int) -> float:
    """The rate of update `step` (>= 1)."""
    if isinstance(schedule, WsdSchedule):
        return _wsd(schedule, step)
    return _cosine(schedule, step)


def _wsd(schedule: WsdSchedule, step: int) -> float:
    """Warm-up, constant rate, 1 - sqrt decay (Hägele et al. 2024, arXiv:2405.18392, section 3).

    Warm-up: peak * s / warmup_steps. Decay over D = decay_to - decay_from steps: peak * (1 - sqrt(k / (D + 1)))
    with k = s - decay_from. So k = 0 is the trunk's last step at the full rate. The rate would reach 0 one step
    after the last, so no update is spent at a rate of 0. If warm-up is unfinished, the decay starts from the rate
    where it branched.
    """
    start, end = schedule.decay_from, schedule.decay_to
    if start is None or end is None or step <= start:
        return schedule.peak * _warmed(step, schedule.warmup_steps)
    base = schedule.peak * _warmed(max(start, 1), schedule.warmup_steps)
    return base * (1.0 - math.sqrt(min(1.0, (step - start) / (end - start + 1))))


def _cosine(schedule: CosineSchedule, step: int) -> float:
    """Linear warm-up from `first_step`, then f + (1 - f) * (1 + cos(pi * p)) / 2 of the peak.

    p runs from 0 at the end of the warm-up to 1 at `last_step` (Loshchilov & Hutter 2016, arXiv:1608.03983;
    re-warmed as in Ibrahim et al. 2024, arXiv:2403.08763).
    """
    local, total = step - schedule.first_step, schedule.last_step - schedule.first_step
    if local <= schedule.warmup_steps:
        return schedule.peak * _warmed(local, schedule.warmup_steps)
    progress = min(1.0, (local - schedule.warmup_steps) / (total - schedule.warmup_steps))
    fraction = schedule.final_fraction
    return schedule.peak * (fraction + (1.0 - fraction) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def _warmed(step: int, warmup_steps: int) -> float:
    return 1.0 if step >= warmup_steps else step / warmup_steps
