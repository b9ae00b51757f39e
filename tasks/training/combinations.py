"""What of a specification does not go together, said before anything runs, with the field named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.errors import ConfigError

if TYPE_CHECKING:
    from tasks.training.config import Identity

NEEDS_ROUNDING = (
    "must be true with precision bf16_weights: an update below a 256th of a weight, as most are, is lost when the sum "
    "is rounded to the nearest bf16, and training stands still. Or take precision bf16."
)
NOTHING_TO_ROUND = "must be false unless precision is bf16_weights: float32 weights are not rounded."


def check_update(identity: Identity) -> None:
    """Precision, optimizer and rate. Raises ConfigError."""
    optimizer = identity.optimizer
    rounded, needed = optimizer.stochastic_rounding, identity.precision == "bf16_weights"
    if rounded != needed:
        reason = NEEDS_ROUNDING if needed else NOTHING_TO_ROUND
        raise ConfigError(f"identity.optimizer.stochastic_rounding {reason}")
    if optimizer.pull_to_base * identity.schedule.peak > 1:
        raise ConfigError(
            "identity.optimizer.pull_to_base times the peak rate must be at most 1: there an update puts the base's "
            "weights back, beyond it overshoots them."
        )
    if (optimizer.pull_to_base > 0) != (identity.base is not None):
        raise ConfigError(
            "identity.base names the model that identity.optimizer.pull_to_base pulls to: both, or neither."
        )


def check_average(identity: Identity) -> None:
    """That the weights of the mean are all of this segment. Raises ConfigError."""
    average = identity.average
    if average is None:
        return
    if not identity.makes_export:
        raise ConfigError("identity.average: a trunk has no export whose weights could be a mean.")
    span, steps = (average.checkpoints - 1) * average.every_steps, identity.last_step - identity.first_step
    if span >= steps:
        raise ConfigError(
            f"identity.average: {average.checkpoints} weights {average.every_steps} steps apart span {span} steps, and "
            f"this segment has {steps}. Take fewer of them, or nearer to one another."
        )
