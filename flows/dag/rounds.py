"""The arithmetic of rounds: which steps and sequences each budget takes. No round depends on later budgets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from flows.config import RunConfig
from storage.counts import count_text
from storage.errors import ConfigError
from tasks.corpus.packing.budgets import sequences_per_step, steps_for
from tasks.models.config import RewarmPlan, WsdPlan
from tasks.training.combinations import of_average, refuse
from tasks.training.spec import Average, CosineSchedule, Schedule, WsdSchedule

_INIT_WARMUP, _INIT_DECAY = 0.02, 0.2


@dataclass(frozen=True)
class Round:
    """Steps of one round. Its trunk does steps `first_step` + 1 … `branch_step`; its branch continues to `last_step`."""

    number: int
    budget: int
    first_step: int
    branch_step: int
    last_step: int
    first_sequence: int
    sequences: int
    """Number of sequences in this round's own manifest, starting with `first_sequence`."""

    @property
    def name(self) -> str:
        """The model's name: `base` for round 0, else its budget (`400M`)."""
        return count_text(self.budget) if self.number else "base"


def rounds_of(run: RunConfig) -> list[Round]:
    """The rounds of the token budgets, in order. Raises ConfigError if batch and sequence length do not fit together."""
    training = run.training
    per_step = sequences_per_step(training.batch_tokens, run.packing.sequence_length)
    rounds: list[Round] = []
    branch = done = 0
    for number, budget in enumerate(training.token_budgets, 1):
        last = steps_for(budget, training.batch_tokens)
        if last <= done:
            raise ConfigError(
                f"training.token_budgets: {count_text(budget)} needs no step beyond the budget before it "
                f"(a step is {training.batch_tokens:,} tokens)"
            )
        first = branch if isinstance(training.schedule, WsdPlan) else done
        branch = _branch_step(last, training.schedule) if isinstance(training.schedule, WsdPlan) else last
        rounds.append(Round(number, budget, first, branch, last, done * per_step, (last - done) * per_step))
        done = last
    _check_average(run, rounds)
    return rounds


def averaging(run: RunConfig) -> Average | None:
    """The weights that each budget's model averages, in steps. Round 0 is never averaged, because rounds start from it."""
    average = run.training.average
    if average is None:
        return None
    every = steps_for(average.every_tokens, run.training.batch_tokens)
    return Average(checkpoints=average.checkpoints, every_steps=every)


def stopped_round(run: RunConfig, round: Round, step: int) -> Round:
    """The round whose trunk was stopped by rule, and went back to `step`: its branch leaves there, over the same share of
    its steps as that of any budget, and over those that training.average needs.
    """
    schedule = run.training.schedule
    assert isinstance(schedule, WsdPlan)
    if not schedule.decay_fraction:
        return replace(round, branch_step=step, last_step=step)
    share = schedule.decay_fraction / (1 - schedule.decay_fraction)
    average = averaging(run)
    least = 1 if average is None else average.span + 1
    last = step + max(least, math.floor(share * step))
    return replace(round, branch_step=step, last_step=min(last, round.last_step))


def has_branches(run: RunConfig) -> bool:
    """Whether each round has a decay branch (`wsd`). A `rewarm` round ends with its only segment."""
    return isinstance(run.training.schedule, WsdPlan)


def _check_average(run: RunConfig, rounds: list[Round]) -> None:
    average = averaging(run)
    if average is None:
        return
    branched = has_branches(run)
    for one in rounds:
        steps = one.last_step - (one.branch_step if branched else one.first_step)
        refuse(of_average(average, steps, f"{'the decay branch' if branched else 'the round'} of {one.name}"))


def round_zero(run: RunConfig, tokens: int) -> Round:
    """The pre-training of a newly initialised base."""
    training = run.training
    per_step = sequences_per_step(training.batch_tokens, run.packing.sequence_length)
    last = steps_for(tokens, training.batch_tokens)
    return Round(0, tokens, 0, last, last, 0, last * per_step)


def trunk_schedule(run: RunConfig, round: Round) -> Schedule:
    """The learning rate over the trunk's steps (over the whole round for `rewarm`, down to zero for round 0)."""
    training, peak = run.training, run.training.learning_rate
    if round.number == 0:
        warmup = max(1, int(_INIT_WARMUP * round.last_step))
        decay_from = round.last_step - max(1, int(_INIT_DECAY * round.last_step))
        return WsdSchedule(peak, warmup, decay_from, round.last_step)
    warmup = _warmup_steps(run)
    if isinstance(training.schedule, RewarmPlan):
        fraction = training.schedule.final_fraction
        return CosineSchedule(peak, warmup, round.first_step, round.last_step, fraction)
    return WsdSchedule(peak, warmup, None, None)


def decay_schedule(run: RunConfig, round: Round) -> Schedule:
    """The learning rate over the branch: from the trunk's rate to zero, as 1 − sqrt(fraction of the branch)."""
    warmup = _warmup_steps(run)
    return WsdSchedule(run.training.learning_rate, warmup, round.branch_step, round.last_step)


def _warmup_steps(run: RunConfig) -> int:
    warmup = run.training.schedule.warmup_tokens
    return steps_for(warmup, run.training.batch_tokens) if warmup else 0


def _branch_step(last_step: int, schedule: WsdPlan) -> int:
    """The step at which a budget's decay branch leaves the trunk. A branch, if there is one, has at least one step."""
    if schedule.decay_fraction == 0:
        return last_step
    return last_step - max(1, round(schedule.decay_fraction * last_step))
