"""AdamW with what torch's own lacks: stochastic rounding to bf16, 8-bit moments, a pull to the base model.

Weights and moments are widened to float32 a few million at a time, updated by torch's own kernel, pulled, and
narrowed again. What must stay true: with nothing to narrow and no pull, every bit equals torch.optim.AdamW's. An
update is a function of weights, gradients, moments, rate, seed and step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from tasks.training.spec import Optimizer
from tasks.training.update.moments import BLOCK, blocks, dequantise, quantise
from tasks.training.update.rounding import chance, round_by_chance

_ELEMENTS = 1 << 22
"""Elements widened at once: about 130 MB on top of the state."""
_SIGNED = {"exp_avg": True, "exp_avg_sq": False}


@dataclass(frozen=True)
class _Piece:
    """Elements [first, last) of a flat parameter."""

    parameter: nn.Parameter
    first: int
    last: int

    def of(self, tensor: Tensor) -> Tensor:
        """The same elements of a tensor of the parameter's shape."""
        return tensor.view(-1)[self.first : self.last]

    def scales(self, scales: Tensor) -> Tensor:
        """The scales of this piece's blocks, out of all the parameter's scales."""
        return scales[self.first // BLOCK : blocks(self.last)]


class FrugalAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), followed by the pull to the base.

    The pull is w ← w - rate·λ·(w - w0). Like AdamW's weight decay, it is decoupled from the gradient: L2-SP (Li et
    al. 2018, arXiv:1802.01483) in the manner of AdamW. `base` holds w0 by parameter, in the dtype of the weights.
    `quantised` names the parameters whose moments have 8 bits. `at_step` must be set before each step.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        settings: Optimizer,
        *,
        seed: int,
        names: Mapping[nn.Parameter, str],
        quantised: set[nn.Parameter],
        base: Mapping[nn.Parameter, Tensor],
    ) -> None:
        super().__init__(groups, {"lr": 0.0})
        self.at_step = 0
        self.quantised = quantised
        self._settings = settings
        self._seed = seed
        self._names = names
        self._base = base
        self._buckets = [
            (group, bucket) for group in self.param_groups for bucket in _buckets(group["params"], quantised)
        ]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient (float32)."""
        own = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in own:
            if parameter not in self.state:
                self.state[parameter] = self._fresh(parameter)
        for group, bucket in self._buckets:
            pieces = [piece for piece in bucket if piece.parameter.grad is not None]
            if pieces:
                self._update(pieces, group["lr"], group["weight_decay"])
        torch._foreach_add_([self.state[parameter]["step"] for parameter in own], 1)

    def parts(self, parameter: nn.Parameter) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of each tensor of a parameter's state."""
        narrow = parameter in self.quantised
        found = dict.fromkeys(_SIGNED, (parameter.shape, torch.uint8 if narrow else torch.float32))
        if narrow:
            scales = torch.Size([blocks(parameter.numel())])
            found |= {f"{moment}_scales": (scales, torch.float32) for moment in _SIGNED}
        return found | {"step": (torch.Size([]), torch.float32)}

    def _fresh(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        parts = self.parts(parameter).items()
        return {
            part: torch.zeros(shape, dtype=dtype, device=parameter.device) for part, (shape, dtype) in parts
        }

    def _update(self, pieces: list[_Piece], rate: float, weight_decay: float) -> None:
        settings, first = self._settings, pieces[0]
        sizes = [piece.last - piece.first for piece in pieces]
        kept = [piece.of(piece.parameter) for piece in pieces]
        weights = torch.cat(kept).float()
        gradients = torch.cat([piece.of(_gradient(piece.parameter)) for piece in pieces])
        mean, square = (self._widened(pieces, moment) for moment in _SIGNED)
        adamw(
            list(weights.split(sizes)),
            list(gradients.split(sizes)),
            list(mean.split(sizes)),
            list(square.split(sizes)),
            [],
            [self.state[piece.parameter]["step"].clone() for piece in pieces],
            fused=True,
            amsgrad=False,
            beta1=settings.betas[0],
            beta2=settings.betas[1],
            lr=rate,
            weight_decay=weight_decay,
            eps=settings.eps,
            maximize=False,
        )
        if settings.pull_to_base:
            base = torch.cat([piece.of(self._base[piece.parameter]) for piece in pieces]).float()
            weights.lerp_(base, rate * settings.pull_to_base)
        for moment, values in (("exp_avg", mean), ("exp_avg_sq", square)):
            self._narrow(pieces, moment, values)
        if settings.stochastic_rounding:
            name = f"{self._names[first.parameter]}:{first.first}"
            weights = round_by_chance(weights, chance(self._seed, self.at_step, name, weights.device))
        torch._foreach_copy_(kept, list(weights.split(sizes)))

    def _widened(self, pieces: list[_Piece], moment: str) -> Tensor:
        """The moment of all pieces as a float32 copy [elements]."""
        states = [self.state[piece.parameter] for piece in pieces]
        kept = torch.cat([piece.of(state[moment]) for piece, state in zip(pieces, states, strict=True)])
        if pieces[0].parameter not in self.quantised:
            return kept
        found = zip(pieces, states, strict=True)
        scales = torch.cat([piece.scales(state[f"{moment}_scales"]) for piece, state in found])
        return dequantise(kept, scales, _SIGNED[moment])

    def _narrow(self, pieces: list[_Piece], moment: str, values: Tensor) -> None:
        """Store the moment in its own format."""
        states = [self.state[piece.parameter] for piece in pieces]
        if pieces[0].parameter in self.quantised:
            values, scales = quantise(values, _SIGNED[moment])
            own = [
                piece.scales(state[f"{moment}_scales"]) for piece, state in zip(pieces, states, strict=True)
            ]
            torch._foreach_copy_(own, list(scales.split([len(one) for one in own])))
        kept = [piece.of(state[moment]) for piece, state in zip(pieces, states, strict=True)]
        torch._foreach_copy_(kept, list(values.split([len(one) for one in kept])))


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.contiguous()


def _buckets(parameters: list[nn.Parameter], quantised: set[nn.Parameter]) -> Iterator[list[_Piece]]:
    """Pieces that are updated together. 8-bit pieces are kept apart; in a bucket, only the last may end inside a
    block.
    """
    for narrow in (False, True):
        bucket: list[_Piece] = []
        room = _ELEMENTS
        for parameter in parameters:
            if (parameter in quantised) is not narrow:
                continue
            for first in range(0, parameter.numel(), _ELEMENTS):
                piece = _Piece(parameter, first, min(first + _ELEMENTS, parameter.numel()))
                size = piece.last - piece.first
                if bucket and size > room:
                    yield bucket
                    bucket, room = [], _ELEMENTS
                bucket.append(piece)
                room -= size
                if narrow and size % BLOCK:  # the next piece's blocks would not be aligned
                    room = 0
        if bucket:
            yield bucket
