"""Stochastic rounding of float32 to bf16: up or down by chance, so that the mean of many roundings is the value.

An update below half a bf16 step of a weight (a 512th to a 256th of it) would be lost by rounding to the nearest; here it is
made with a probability of its share of the step (Zamirai et al. 2020, arXiv:2010.06192). The chance is a function of
seed, step and parameter: nothing of it is saved, a resumed run and every process draw the same.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_LOWER_HALF = 1 << 16


def chance(seed: int, step: int, name: str, device: torch.device) -> torch.Generator:
    """The random numbers of one update of one parameter; the same on every machine of one kind of device."""
    drawn = hashlib.sha256(f"rounding:{seed}:{step}:{name}".encode()).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(drawn[:8], "big") >> 1)
    return generator


def round_by_chance(values: Tensor, generator: torch.Generator) -> Tensor:
    """bf16 of float32 `values`, of the same shape: one of the two neighbours, the nearer one more often.

    bf16 is the upper half of a float32. Sixteen random bits are added to the lower half, which carries into the upper
    with the probability of its share of a step, and the lower half is cut off. What is not finite stays as it is.
    """
    bits = values.contiguous().view(torch.int32)
    random = torch.randint(
        _LOWER_HALF, bits.shape, dtype=torch.int32, device=bits.device, generator=generator
    )
    rounded = random.add_(bits).bitwise_and_(-_LOWER_HALF).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()
