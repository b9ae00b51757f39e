"""Rounding by chance: one of the two neighbours, right on the average, and the same for the same seed, step and name."""

from __future__ import annotations

import pytest
import torch

from tasks.training.update.rounding import chance, round_by_chance

CPU = torch.device("cpu")


def neighbours(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bf16 towards zero and the next one away from it, of float32 values that are no bf16."""
    down = (value.view(torch.int32) & ~0xFFFF).view(torch.float32)
    up = ((value.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    return down, up


def test_it_gives_one_of_the_two_neighbours_as_often_as_the_value_is_near() -> None:
    draws = 20_000
    values = torch.tensor([1.0 + 2**-10, -3.14159, 1e-3, -2.5e-30, 7.7e30, 1e-40], dtype=torch.float32)
    many = values.repeat(draws, 1)
    found = round_by_chance(many, chance(1, 2, "w", CPU)).float()
    down, up = neighbours(values)
    for column, value in enumerate(values):
        seen = set(found[:, column].tolist())
        assert seen == {down[column].item(), up[column].item()}
        share = (
            (value.double() - down[column].double()) / (up[column].double() - down[column].double())
        ).item()
        often = (found[:, column] == up[column]).double().mean().item()
        assert often == pytest.approx(share, abs=5 * (share * (1 - share) / draws) ** 0.5)


def test_what_is_a_bf16_stays_and_so_does_what_is_not_finite() -> None:
    exact = torch.randn(4096).bfloat16()
    assert torch.equal(round_by_chance(exact.float(), chance(0, 1, "w", CPU)), exact)
    odd = torch.tensor([0x7FFFFFFF, 0x7FC00000, -1, 0x7F800000, -0x800000], dtype=torch.int32)
    found = round_by_chance(odd.view(torch.float32), chance(0, 1, "w", CPU))
    assert found[:3].isnan().all()
    assert found[3:].tolist() == [float("inf"), -float("inf")]


def test_chance_is_a_function_of_seed_step_and_name() -> None:
    values = torch.randn(1000)
    drawn = {
        (seed, step, name): round_by_chance(values, chance(seed, step, name, CPU))
        for seed in (0, 1)
        for step in (1, 2)
        for name in ("a", "b")
    }
    for one, tensor in drawn.items():
        for other, its in drawn.items():
            assert torch.equal(tensor, its) is (one == other)
        assert torch.equal(tensor, round_by_chance(values, chance(*one, CPU)))


def test_updates_too_small_for_the_nearest_bf16_add_up() -> None:
    """4,096 updates of 2^-13 to weights of 1: the nearest bf16 never moves, chance arrives at 1.5."""
    nearest = torch.ones(512, dtype=torch.bfloat16)
    weights = nearest.clone()
    for step in range(4096):
        nearest = (nearest.float() + 2**-13).bfloat16()
        weights = round_by_chance(weights.float() + 2**-13, chance(0, step, "w", CPU))
    assert nearest.unique().tolist() == [1.0]
    # each weight is a sum of 4,096 draws of 0 or 2^-7 with probability 2^-6
    spread = 2**-7 * (4096 * 2**-6) ** 0.5
    assert weights.float().mean().item() == pytest.approx(1.5, abs=5 * spread / 512**0.5)
