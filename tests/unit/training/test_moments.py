"""Moments in 8 bits: the values that a byte stands for, the nearest one, and how near that is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.training.update.moments import BLOCK, _nearest, blocks, dequantise, quantise, values_of


def meaning(byte: int, signed: bool) -> float:
    """What dynamic tree quantisation makes of the bits of a byte, read from left to right; None for 0 and 1."""
    bits = f"{byte:08b}"
    sign = 1.0
    extra = ""
    if signed:
        sign, bits = (-1.0 if bits[0] == "1" else 1.0), bits[1:]
    else:  # the sign's bit is one more of the fraction
        extra, bits = bits[0], bits[1:]
    zeros = len(bits) - len(bits.lstrip("0"))
    if zeros == len(bits):
        return float("nan")
    fraction = extra + bits[zeros + 1 :]
    steps = 2 ** len(fraction)
    place = int(fraction, 2) if fraction else 0
    return sign * 10.0**-zeros * (0.1 + 0.9 * (place + 0.5) / steps)


@pytest.mark.parametrize("signed", [True, False])
def test_the_values_are_those_of_the_bits(signed: bool) -> None:
    read = np.array([meaning(byte, signed) for byte in range(256)])
    expected = np.sort(np.append(read[~np.isnan(read)], [0.0, 1.0]))
    assert len(expected) == 256
    np.testing.assert_allclose(values_of(signed).double().numpy(), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**31), st.floats(-30, 6), st.booleans())
def test_each_number_becomes_the_nearest_value_of_its_block(
    count: int, seed: int, order: float, signed: bool
) -> None:
    random = np.random.default_rng(seed)
    numbers = (random.standard_normal(count) * 10 ** random.uniform(order - 4, order, count)).astype(
        np.float32
    )
    if not signed:
        numbers = np.abs(numbers)
    codes, scales = quantise(torch.from_numpy(numbers), signed)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, (count,), (blocks(count),))
    found = dequantise(codes, scales, signed).numpy()
    values = values_of(signed).double().numpy()
    for at in range(0, count, BLOCK):
        block = numbers[at : at + BLOCK].astype(np.float64)
        largest = max(np.abs(block).max(), float(np.finfo(np.float32).tiny))
        distance = np.abs(block[:, None] / largest - values[None, :])
        if not signed:
            distance[block > 0, 0] = np.inf  # a second moment is never rounded to zero
        chosen = codes[at : at + BLOCK].numpy().astype(int)
        best = distance.min(axis=1)
        np.testing.assert_allclose(distance[np.arange(len(block)), chosen], best, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(found[at : at + BLOCK], values[chosen] * largest, rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_the_table_finds_what_a_search_finds(signed: bool) -> None:
    """At every limit, one float to either side of it, at the edges of every cell of the table, and at random."""
    values = values_of(signed).double()
    limits = ((values[1:] + values[:-1]) / 2).float()
    inf = torch.tensor(math.inf)
    upper = torch.arange(0, 0x3F80, dtype=torch.int32) << 16
    edges = torch.cat([upper, upper + 0xFFFF]).view(torch.float32)
    numbers = torch.cat([limits, limits.nextafter(inf), limits.nextafter(-inf), values.float(), edges])
    numbers = torch.cat([numbers, torch.rand(100_000).pow(9)])
    if signed:
        numbers = torch.cat([numbers, -numbers])
    numbers = numbers.clamp(-1.0 if signed else 0.0, 1.0)
    assert torch.equal(_nearest(numbers, signed), torch.bucketize(numbers, limits, out_int32=True))


def test_zeros_stay_zeros_and_the_largest_stays() -> None:
    for signed in (True, False):
        moment = torch.zeros(3 * BLOCK)
        moment[BLOCK + 5] = 3.25
        codes, scales = quantise(moment, signed)
        assert torch.equal(dequantise(codes, scales, signed), moment)


def test_a_round_trip_of_a_bell_is_near() -> None:
    torch.manual_seed(0)
    moment = torch.randn(1 << 16) * 1e-4
    back = dequantise(*quantise(moment, True), True)
    relative = (back - moment).norm() / moment.norm()
    assert 0.001 < relative < 0.02
    squares = moment.square()
    back = dequantise(*quantise(squares, False), False)
    assert (back > 0).all()
    assert (back - squares).norm() / squares.norm() < 0.02
