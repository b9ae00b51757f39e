"""The compiled model, whose kernels a C++ compiler makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tasks.training.attention import RowDocuments
from tasks.training.model import LanguageModel
from tests.support.training.families import FAMILIES
from tests.support.training.packed import load, random_row
from tests.support.training.world import World, save_model


def gradients(model: LanguageModel, seed: int, fixed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    ids, positions, lengths = random_row(seed, 96, 48)
    packing = (
        RowDocuments.of_fixed_size(lengths, 96, 48)
        if fixed
        else RowDocuments.of(lengths, torch.device("cpu"))
    )
    with model.autocast():
        hidden = model.hidden(ids[None], positions[None], packing)
    losses, gradient = model.loss.backward(hidden.detach(), ids.roll(-1), 1.0)
    hidden.backward(gradient)
    found = {name: parameter.grad for name, parameter in model.whole.named_parameters()}
    model.whole.zero_grad()
    model.loss.renew()
    return losses, found


COMPILED = ("llama", "qwen2", "gpt2", "neox", "opt")
"""Each kind of layer: compiling one takes many seconds. Of the families, "mobilellm" is Llama's in other sizes, and "llama
untied" differs in the head, which GPT-NeoX keeps apart too."""


@pytest.mark.slow
@pytest.mark.parametrize("family", COMPILED)
def test_compiled_once_it_is_the_same_however_documents_fall(
    world: World, tmp_path: Path, family: str
) -> None:
    """One graph of the body and one of the loss, made in the first row; losses and gradients to rounding."""
    from torch._dynamo.utils import counters

    save_model(FAMILIES[family](), tmp_path, spread=6.0)
    torch.compiler.reset()
    counters.clear()
    compiled, plain = load(world, tmp_path, compiled=True), load(world, tmp_path)
    for seed in range(30):
        losses, found = gradients(compiled, seed, fixed=True)
        assert counters["frames"]["total"] == counters["stats"]["unique_graphs"] == 2
        assert not counters["graph_break"] and not counters["recompile_limit"]
        if seed >= 6:
            continue
        wanted, other = gradients(plain, seed, fixed=False)
        torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-5)
        most = max(float(gradient.abs().max()) for gradient in other.values())
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, other[name], rtol=1e-3, atol=1e-5 * most)
