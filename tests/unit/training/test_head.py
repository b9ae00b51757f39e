"""Losses and gradients in closed form are those of autograd; the copy of the weights is made once a step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from tasks.training import head as heads
from tasks.training.device.memory import Device
from tasks.training.head import NO_TARGET, Loss, ScaledHead

WORDS, WIDTH, TOKENS = 203, 24, 37
KINDS: dict[str, Any] = {
    "plain": lambda linear: linear,
    "scaled": lambda linear: ScaledHead(linear, 0.25, None),
    "capped": lambda linear: ScaledHead(linear, 3.0, 5.0),
}
PRODUCTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_weights": torch.bfloat16}


def case(kind: str, precision: str, bias: bool) -> tuple[nn.Module, nn.Linear, Tensor, Tensor]:
    torch.manual_seed(3)
    linear = nn.Linear(WIDTH, WORDS, bias=bias)
    hidden, targets = torch.randn(TOKENS, WIDTH), torch.randint(WORDS, (TOKENS,))
    if precision == "bf16_weights":
        linear, hidden = linear.bfloat16(), hidden.bfloat16()
        for parameter in linear.parameters():
            held: Any = parameter
            held.grad_dtype = torch.float32
    targets[::7] = NO_TARGET
    return KINDS[kind](linear), linear, hidden, targets


def by_autograd(head: nn.Module, hidden: Tensor, targets: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    hidden = hidden.clone().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        losses = functional.cross_entropy(head(hidden).float(), targets, reduction="none")
    (losses.sum() / 50.0).backward()
    assert hidden.grad is not None
    return losses.detach(), hidden.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("precision", PRODUCTS)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_autograd(kind: str, precision: str, bias: bool) -> None:
    head, linear, hidden, targets = case(kind, precision, bias)
    other = copy.deepcopy(linear)
    for one, its in zip(linear.parameters(), other.parameters(), strict=True):
        if precision == "bf16_weights":
            its.grad_dtype = one.grad_dtype  # type: ignore[attr-defined]
    wanted, of_hidden = by_autograd(KINDS[kind](other), hidden, targets, precision)
    loss = Loss(head, PRODUCTS[precision])
    found = [loss.backward(*parts, 50.0) for parts in zip(hidden.split(10), targets.split(10), strict=True)]
    near = {"rtol": 1e-5, "atol": 1e-7} if precision == "fp32" else {"rtol": 3e-2, "atol": 2e-4}
    torch.testing.assert_close(torch.cat([losses for losses, _ in found]), wanted, **near)
    assert not torch.cat([losses for losses, _ in found])[::7].any()
    torch.testing.assert_close(torch.cat([gradient for _, gradient in found]), of_hidden, **near)
    for one, its in zip(linear.parameters(), other.parameters(), strict=True):
        assert one.grad is not None and one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, its.grad, **near)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_no_words_change_nothing(kind: str, bias: bool) -> None:
    head, linear, hidden, targets = case(kind, "fp32", bias)
    plain, wide = Loss(head, torch.float32), Loss(head, torch.float32, multiple=128)
    weight, _ = wide._weights()
    assert weight.shape == (256, WIDTH)
    found = []
    for loss in (plain, wide):
        linear.zero_grad()
        made = loss.backward(hidden, targets, 50.0)
        found.append((*made, *(parameter.grad for parameter in linear.parameters())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_copy_is_made_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    head, linear, hidden, targets = case("plain", "bf16", False)
    loss, seen = Loss(head, torch.bfloat16), []
    compute = heads.losses_and_gradients

    def look(*arguments: Any) -> Any:
        seen.append(arguments[1])
        return compute(*arguments)

    monkeypatch.setattr(loss, "_compute", look)
    for _ in range(3):  # chunks and micro-batches
        first, _ = loss.backward(hidden, targets, 50.0)
    with torch.no_grad():
        linear.weight.mul_(2.0)
    assert torch.equal(loss.backward(hidden, targets, 50.0)[0], first)
    loss.renew()
    assert not torch.equal(loss.backward(hidden, targets, 50.0)[0], first)
    assert len({weight.data_ptr() for weight in seen[:4]}) == 1 and seen[4] is not seen[0]


def test_the_chunk_follows_vocabulary_and_width() -> None:
    cpu, gpu = Device("cpu", 24 << 30), Device("cuda", 80 << 30)
    assert [cpu.loss_chunk(words, width) for words, width in ((49152, 576), (50257, 768), (8192, 256))] == [
        1024,
        1024,
        256,
    ]
    assert cpu.loss_chunk(256, 64) == 4096
    assert Device("cpu", 4 << 30).loss_chunk(49152, 576) == 256  # 48 MiB of 64
    assert gpu.loss_chunk(50257, 768) == gpu.loss_chunk(49152, 576) == 4096
