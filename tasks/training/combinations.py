"""Settings that do not go together. They are refused here and nowhere else.

Each function yields the problems, one sentence each, with the keys of the configuration. The configuration
(tasks/models/config.py) and the rounds (flows/dag/rounds.py) call them before anything runs. The trainer calls them
when it reads its specification, and again when it knows the number of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from storage.errors import ConfigError
from tasks.training.spec import BF16_WEIGHTS, FP32, Average, Execution, Identity, Optimizer, Schedule


def refuse(problems: Iterable[str]) -> None:
    """Raise ConfigError with the first problem, if there is one."""
    for problem in problems:
        raise ConfigError(problem)


def of_identity(identity: Identity) -> Iterator[str]:
    """Problems of a segment that a single process can find."""
    if identity.first_step > identity.last_step:
        yield "identity.first_step must lie in 0 … identity.last_step."
    yield from _of_schedule(identity.schedule)
    yield from of_update(identity.optimizer, identity.precision, identity.schedule.peak)
    if (identity.optimizer.pull_to_base > 0) != (identity.base is not None):
        yield "identity.base names the model that identity.optimizer.pull_to_base pulls to: both, or neither."
    if (identity.stop is None) != (identity.stop_text is None):
        yield "identity.stop_text names the held-out text that identity.stop measures: both, or neither."
    if identity.stop is not None and identity.kind != "trunk":
        yield "identity.stop: only a trunk can end before its budget."
    if identity.average is not None:
        if not identity.makes_export:
            yield "identity.average: a trunk has no export whose weights could be a mean."
        yield from of_average(identity.average, identity.last_step - identity.first_step, "this segment")


def of_update(optimizer: Optimizer, precision: str, peak: float) -> Iterator[str]:
    """Problems of optimizer, precision (may be `auto`) and the highest learning rate together."""
    if precision == BF16_WEIGHTS and not optimizer.stochastic_rounding:
        yield (
            "training.optimizer.stochastic_rounding must be true with precision bf16_weights: an update below a 256th "
            "of a weight, as most are, is lost when the sum is rounded to the nearest bf16, and training stands still. "
            "Or take precision bf16."
        )
    if precision != BF16_WEIGHTS and optimizer.stochastic_rounding:
        yield (
            "training.optimizer.stochastic_rounding must be false unless precision is bf16_weights: float32 weights are "
            "not rounded."
        )
    if optimizer.pull_to_base * peak > 1:
        yield (
            "training.optimizer.pull_to_base times training.learning_rate must be at most 1: at 1 an update restores "
            "the base's weights, above 1 it overshoots them."
        )


def of_processes(processes: int, sequences: int) -> Iterator[str]:
    """Problems of the number of processes, over all machines, and the sequences of a step."""
    if processes > sequences:
        yield (
            f"{processes} processes for {sequences} sequences a step: each needs at least one. Lower "
            "training.execution.processes (or nodes), or raise training.batch_tokens."
        )


def of_sharding(execution: Execution, optimizer: Optimizer, precision: str, processes: int) -> Iterator[str]:
    """Problems of sharding: it needs several processes, and an update that can be computed in parts."""
    if execution.sharding == "none":
        return
    if processes == 1:
        yield (
            "training.execution.sharding: full shares weights out among processes, and there is one. Set "
            "training.execution.sharding: none, or training.execution.processes: 2 or more."
        )
    against = {
        f"training.precision: {precision}": precision == BF16_WEIGHTS,
        f"training.optimizer.states: {optimizer.states}": optimizer.states != FP32,
        f"training.optimizer.pull_to_base: {optimizer.pull_to_base}": bool(optimizer.pull_to_base),
        "training.execution.compile: true": execution.compile is True,
    }
    for key in itertools.compress(against, against.values()):
        yield f"{key} does not go together with training.execution.sharding: full. Change one of the two."


def of_products(execution: Execution) -> Iterator[str]:
    """Problems of products that are to be one: the graph is rewritten, so there must be one."""
    if execution.fuse_products is True and execution.compile is False:
        yield (
            "training.execution.fuse_products: true puts products together in the compiled model, and "
            "training.execution.compile is false. Change one of the two."
        )


def of_stop(schedule: str, sharding: str) -> Iterator[str]:
    """Problems of a stop by rule with the kind of schedule, and with weights that are shared out."""
    if schedule != "wsd":
        yield (
            "training.stop goes with training.schedule.kind: wsd. With rewarm the rate falls from a budget's first step "
            "on, and a round that ends early has no end of its schedule. Change one of the two."
        )
    if sharding != "none":
        yield (
            "training.stop does not go together with training.execution.sharding: full, under which held-out text is not "
            "measured. Change one of the two."
        )


def of_average(average: Average, steps: int, where: str) -> Iterator[str]:
    """Problems of the mean of weights: all of them must lie within one stretch of `steps`. `where` names the
    stretch.
    """
    if average.span >= steps:
        yield (
            f"training.average: {average.checkpoints} weights {average.every_steps} steps apart span {average.span} "
            f"steps, but {where} has {steps}; take fewer checkpoints or a smaller every_tokens"
        )


def _of_schedule(schedule: Schedule) -> Iterator[str]:
    if schedule.kind == "cosine":
        if schedule.first_step > schedule.last_step:
            yield "identity.schedule: first_step must lie in 0 … last_step."
        return
    start, end = schedule.decay_from, schedule.decay_to
    if (start is None) != (end is None):
        yield "identity.schedule: decay_from and decay_to go together."
    elif start is not None and end is not None and start > end:
        yield "identity.schedule: decay_from must not be after decay_to."
