"""A fused activation is the one that it replaces, and no other is replaced."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from tasks.training.fused import fuse_activations


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_it_is_the_same_function(name: str) -> None:
    whole = nn.Sequential(nn.ModuleDict({"act": ACT2FN[name]}))
    numbers = torch.linspace(-6, 6, 1001, dtype=torch.float64, requires_grad=True)
    written_out = whole[0]["act"](numbers)  # type: ignore[index]
    fuse_activations(whole)
    fused = whole[0]["act"](numbers)  # type: ignore[index]
    assert isinstance(whole[0]["act"], nn.GELU)  # type: ignore[index]
    torch.testing.assert_close(fused, written_out, rtol=1e-9, atol=1e-12)
    one, other = (torch.autograd.grad(out.sum(), numbers)[0] for out in (fused, written_out))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "gelu_pytorch_tanh", "quick_gelu"])
def test_others_stay(name: str) -> None:
    whole = nn.Sequential(ACT2FN[name])
    before = whole[0]
    fuse_activations(whole)
    assert whole[0] is before
