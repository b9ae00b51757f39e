"""The export as the mean of the last weights and some earlier ones (Kaddour 2022, arXiv:2209.14981: LAWA).

Training never sees the mean: the trunk and every next step use the weights themselves. Each checkpoint holds the
sum so far, in float32. The specification alone decides which steps belong to the mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from storage.errors import DamagedArtifact
from tasks.training.spec import Identity

AVERAGE = "average.safetensors"
"""The checkpoint file with the sum, by names of weights. It exists only in a segment whose export is a mean."""


def averaged_steps(identity: Identity) -> range:
    """The steps whose weights go into the mean, ascending; the last one is the segment's last. Empty without a mean."""
    average = identity.average
    if average is None:
        return range(0)
    first = identity.last_step - (average.checkpoints - 1) * average.every_steps
    return range(first, identity.last_step + 1, average.every_steps)


class RunningSum:
    """The sum of the weights of all averaged steps so far: {name: float32 on the host}."""

    def __init__(self, identity: Identity) -> None:
        self._steps = averaged_steps(identity)
        self.sums: dict[str, Tensor] = {}

    def wants(self, step: int) -> bool:
        """Whether the weights after this step go into the mean."""
        return step in self._steps

    @property
    def kept(self) -> bool:
        """Whether checkpoints must hold the sum."""
        return bool(self._steps)

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Add the weights of a step."""
        own = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in _floating(weights).items()}
        # not in place: the writer may still be writing a checkpoint of an earlier step
        self.sums = {
            name: self.sums[name] + values if self.sums else values.clone() for name, values in own.items()
        }

    def restore(self, sums: Mapping[str, Tensor], step: int, weights: Mapping[str, Tensor]) -> None:
        """Restore the sum from a checkpoint of this step. Raises DamagedArtifact if it does not fit the model."""
        begun = bool(self._steps) and step >= self._steps[0]
        wanted = {name: tensor.shape for name, tensor in _floating(weights).items()} if begun else {}
        if {name: tensor.shape for name, tensor in sums.items()} != wanted:
            raise DamagedArtifact(f"The checkpoint's {AVERAGE} does not fit the model at step {step}.")
        self.sums = {name: tensor.clone() for name, tensor in sums.items()}

    def mean(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean in the dtype of `weights`, the last ones. All steps must have been added."""
        count = len(self._steps)
        means = {
            name: (self.sums[name] / count).to(tensor.dtype) for name, tensor in _floating(weights).items()
        }
        return {**weights, **means}


def _floating(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The floating-point tensors, without buffers that are masks or counts."""
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
