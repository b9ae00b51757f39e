"""Products of one input become one product in a compiled graph; parameters, checkpoints and losses stay what they are.

Here graphs are rewritten and then run as they are, without a C++ compiler: what is differentiated is the rewritten graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, fx, nn

from tasks.training import loop
from tasks.training import model as models
from tasks.training.attention import RowDocuments
from tasks.training.products import compiled_together
from tasks.training.recompute import checkpoint_layers, to_train
from tests.support.training.families import FAMILIES
from tests.support.training.packed import load, random_row
from tests.support.training.world import (
    World,
    after_calls,
    make_corpus,
    outputs,
    run,
    run_here,
    save_model,
)


def as_it_is(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
    return graph.forward


class Counting:
    """Counts the products of the graphs that it is given."""

    def __init__(self) -> None:
        self.products = 0

    def __call__(self, graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        for one in graph.modules():
            if isinstance(one, fx.GraphModule):
                self.products += sum(node.target is functional.linear for node in one.graph.nodes)
        return graph.forward


LEFT = {
    "llama": (7, 4),
    "llama untied": (7, 4),
    "mobilellm": (7, 4),
    "qwen2": (7, 4),
    "gpt2": (0, 0),
    "neox": (4, 4),
    "opt": (6, 4),
}
"""Products of a layer before and after: q, k, v are one in Llama's, Qwen's and OPT's, gate and up in the first two. GPT-2
and GPT-NeoX have them so. OPT's head is narrower than its body: two more products of the model."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_products_apart(
    world: World, tmp_path: Path, family: str, precision: str
) -> None:
    save_model(FAMILIES[family](), tmp_path, spread=6.0)
    torch.compiler.reset()
    plain = load(world, tmp_path, precision=precision)
    before, after = Counting(), Counting()
    apart: Any = torch.compile(plain.body, backend=before, dynamic=False)
    together = compiled_together(plain.body, after)
    found: list[dict[str, Tensor]] = []
    ids, positions, lengths = random_row(3, 96, 48)
    packing = RowDocuments.of_fixed_size(lengths, 96, 48)
    torch.manual_seed(0)
    upstream = torch.randn(96, plain.whole.config.hidden_size)
    for body in (plain.body, apart, together):
        model = replace(plain, body=body)
        with model.autocast():
            hidden = model.hidden(ids[None], positions[None], packing)
        hidden.backward(upstream[:, : hidden.shape[1]].to(hidden.dtype))
        weights = dict(model.whole.named_parameters())
        found.append(
            {"hidden": hidden.detach()} | {name: w.grad for name, w in weights.items() if w.grad is not None}
        )
        model.whole.zero_grad()
    layers = plain.whole.config.num_hidden_layers
    own = 2 if family == "opt" else 0
    assert (before.products - own, after.products - own) == tuple(layers * count for count in LEFT[family])
    limit = 1e-4 if precision == "fp32" else 3e-2
    largest = max(wanted.norm() for wanted in found[0].values())
    for name, wanted in found[0].items():
        for other in found[1:]:  # that of the keys' bias is nothing but rounding
            assert (other[name] - wanted).norm() <= limit * (wanted.norm() + 1e-2 * largest), name
    assert [set(one) for one in found[1:]] == [set(found[0])] * 2


def test_one_graph_serves_rows_of_other_documents(world: World, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    save_model(FAMILIES["llama"](), tmp_path, spread=6.0)
    torch.compiler.reset()
    counters.clear()
    model = load(world, tmp_path, precision="bf16")
    model = replace(model, body=compiled_together(model.body, as_it_is))
    for seed in range(30):
        ids, positions, lengths = random_row(seed, 96, 48)
        with model.autocast():
            hidden = model.hidden(ids[None], positions[None], RowDocuments.of_fixed_size(lengths, 96, 48))
        hidden.float().sum().backward()
        assert counters["stats"]["unique_graphs"] == 1
        assert not counters["graph_break"] and not counters["recompile_limit"]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_layers_that_are_computed_again_are_rewritten_too(world: World, tmp_path: Path, mode: str) -> None:
    save_model(FAMILIES["llama"](), tmp_path, spread=6.0)
    torch.compiler.reset()
    model = load(world, tmp_path)
    checkpoint_layers(model.whole, mode)
    to_train(model.whole)
    after = Counting()
    ids, positions, lengths = random_row(3, 96, 48)
    packing = RowDocuments.of_fixed_size(lengths, 96, 48)
    found = []
    for body in (model.body, compiled_together(model.body, after)):
        hidden = replace(model, body=body).hidden(ids[None], positions[None], packing)
        hidden.square().sum().backward()
        found.append([weight.grad for weight in model.body.parameters() if weight.grad is not None])
        model.whole.zero_grad()
    assert after.products == 4 * model.whole.config.num_hidden_layers
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


class Changing(nn.Module):
    """Its input has other values after the first of three products; a fourth has a weight that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(8, size, bias=False) for size in (4, 5, 6))

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        given = given * 1.0
        first = self.one(given)
        given += 1.0
        return first, self.two(given), self.three(given), functional.linear(given, self.one.weight * 2.0)


def test_products_of_other_values_stay_apart() -> None:
    torch.compiler.reset()
    torch.manual_seed(1)
    module, after = Changing(), Counting()
    given = torch.randn(3, 8)
    found = compiled_together(module, after)(given)
    assert after.products == 3
    for one, other in zip(found, module(given), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_two_hundred_steps_and_a_resume_with_products_together(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses differ as little as those of another order of summing, here of the micro-batch; stopped, the bytes are the
    same; and a checkpoint of the one goes on in the other."""
    manifest, shards, _ = make_corpus(tmp_path, documents=600)
    changes: dict[str, Any] = {
        "paths__manifests": [str(manifest)],
        "paths__shards": {d: str(path) for d, path in shards.items()},
        "identity__kind": "pretrain",
        "identity__precision": "bf16",
        "identity__last_step": 200,
        "identity__sequences_per_step": 2,
        "execution__micro_batch": 2,
        "execution__checkpoint_every": 1000,
    }
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda one, **how: plain(one, **({"backend": as_it_is} | how)))
    monkeypatch.setattr(models, "compiled_together", lambda body: compiled_together(body, as_it_is))

    def losses(name: str, **more: Any) -> np.ndarray:
        torch.compiler.reset()
        work = run(world, tmp_path / name, **(changes | {"execution__compile": True} | more))
        found: np.ndarray = pq.read_table(work / "journal" / "journal.parquet")["loss"].to_numpy()
        return found

    apart, other = losses("apart"), losses("micro", execution__micro_batch=1)
    together = losses("together", execution__fuse_products=True)
    assert not np.array_equal(together, apart) and together[-1] < together[0] - 1
    assert np.abs(together - apart).mean() < 2 * np.abs(apart - other).mean()

    stopped = world.spec(
        tmp_path / "stopped", **changes, execution__compile=True, execution__fuse_products=True
    )
    for calls in (3, 90):
        torch.compiler.reset()
        assert run_here(stopped, after_calls(calls))[0] == loop.RESUMABLE
    torch.compiler.reset()
    assert run_here(stopped)[0] == loop.DONE
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "together")
    names = [set(outputs(tmp_path / name)) for name in ("apart", "together")]
    assert names[0] == names[1]
