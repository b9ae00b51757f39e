"""Stochastic rounding of float32 to bf16: up or down at random, so that the mean of many roundings is the value.

Rounding to the nearest would lose an update below half a bf16 step of a weight (a 512th to a 256th of it). Here its
probability is its share of the step (Zamirai et al. 2020, arXiv:2010.06192). The random numbers are a function of
seed, step and parameter: nothing is saved, and a resumed run and every process draw the same.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_LOWER_HALF = 1 << 16


def chance(seed: int, step: int, name: str, device: torch.device) -> torch.Generator:
    """The random generator for one update of one parameter; the same on every machine with this kind of device."""
    drawn = hashlib.sha256(f"rounding:{seed}:{step}:{name}".encode()).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(drawn[:8], "big") >> 1)
    return generator


def round_by_chance(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 `values` to bf16 of the same shape: to one of the two neighbours, more often to the nearer.

    bf16 is the upper half of a float32. Sixteen random bits are added to the lower half. They carry into the upper
    half with a probability of the value's share of a step; then the lower half is cut off. Values that are not
    finite stay as they are.
    """
    bits = values.contiguous().view(torch.int32)
    random = torch.randint(
        _LOWER_HALF, bits.shape, dtype=torch.int32, device=bits.device, generator=generator
    )
    rounded = random.add_(bits).bitwise_and_(-_LOWER_HALF).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()
