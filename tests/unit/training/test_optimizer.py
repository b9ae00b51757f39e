"""The update: torch's to the bit where nothing is narrow, near it where moments or weights are, pulled where asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from storage.errors import ConfigError, DamagedArtifact
from tasks.training.read_spec import parse_spec
from tasks.training.spec import Identity
from tasks.training.update.adamw import FrugalAdamW
from tasks.training.update.optimizer import (
    bytes_per_parameter,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    prepare_step,
)
from tests.support.training.world import World, llama_config

SMALL = {"hidden_size": 64, "intermediate_size": 65, "vocab_size": 96}
"""Some matrices of whole blocks, some not, some too small to be quantised."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def identity(world: World, tmp_path: Path) -> Identity:
    return parse_spec(world.spec(tmp_path)).identity


def changed(identity: Identity, precision: str = "fp32", **optimizer: Any) -> Identity:
    rounding = {"stochastic_rounding": precision == "bf16_weights"}
    settings = replace(identity.optimizer, **{**rounding, **optimizer})
    return replace(identity, precision=precision, optimizer=settings)


def small_model(dtype: torch.dtype = torch.float32, **shape: Any) -> LlamaForCausalLM:
    torch.manual_seed(5)
    model: Any = LlamaForCausalLM(llama_config(**{**SMALL, **shape}))
    return model.to(dtype)


def texts(steps: int, seed: int = 0) -> Iterator[Tensor]:
    """Batches [8, 24] of a second-order rule with some chance in it, which takes a while to learn."""
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        ids = torch.randint(1, 96, (8, 24), generator=random)
        for place in range(2, 24):
            follows = (3 * ids[:, place - 1] + 5 * ids[:, place - 2]) % 95 + 1
            kept = torch.rand(8, generator=random) < 0.1
            ids[:, place] = torch.where(kept, ids[:, place], follows)
        yield ids


def train(model: Any, optimizer: torch.optim.Optimizer, steps: int, rate: float = 3e-3) -> list[float]:
    """Losses of so many steps, warmed up and decayed."""
    losses = []
    for step, ids in enumerate(texts(steps), 1):
        prepare_step(optimizer, rate * min(1.0, step / 20, (steps + 1 - step) / (0.3 * steps)), step)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def test_with_nothing_narrow_it_is_torchs_adamw_to_the_bit(identity: Identity) -> None:
    ours, torchs = small_model(), small_model()
    own = make_optimizer(torchs, identity)
    assert type(own) is torch.optim.AdamW
    groups = [{"params": list(g["params"]), "weight_decay": g["weight_decay"]} for g in own.param_groups]
    names = {parameter: name for name, parameter in torchs.named_parameters()}
    by_name = dict(ours.named_parameters())
    for group in groups:
        group["params"] = [by_name[names[parameter]] for parameter in group["params"]]
    frugal = FrugalAdamW(
        groups,
        identity.optimizer,
        seed=0,
        names={parameter: name for name, parameter in ours.named_parameters()},
        quantised=set(),
        base={},
    )
    assert train(ours, frugal, 12) == train(torchs, own, 12)
    for name, parameter in torchs.named_parameters():
        assert torch.equal(parameter, by_name[name])
    tensors = optimizer_tensors(ours, frugal)
    expected = optimizer_tensors(torchs, own)
    assert set(tensors) == set(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())


def test_pieces_of_large_parameters_are_updated_alike(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the pieces, the update is the same up to rounding; with one size to the bit."""
    settings = changed(identity, states="8bit")
    whole = small_model()
    train(whole, make_optimizer(whole, settings), 10)
    monkeypatch.setattr("tasks.training.update.adamw._ELEMENTS", 1024)
    pieces = small_model()
    train(pieces, make_optimizer(pieces, settings), 10)
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


LEARNING = {"hidden_size": 64, "intermediate_size": 96}


def learned(identity: Identity, rate: float, dtype: torch.dtype = torch.float32) -> tuple[float, list[float]]:
    """(mean loss of the last 20 of 250 steps, all losses)."""
    model = small_model(dtype, **LEARNING)
    losses = train(model, make_optimizer(model, identity), 250, rate)
    return sum(losses[-20:]) / 20, losses


def test_8_bit_moments_learn_as_float32_ones_do(identity: Identity) -> None:
    """From a loss of 4.6 to 2.41 in 250 steps, and never far from one another."""
    last, losses = learned(changed(identity, states="8bit"), 3e-3)
    expected, reference = learned(identity, 3e-3)
    assert expected < 0.6 * reference[0]
    assert last == pytest.approx(expected, rel=0.01)
    apart = max(abs(one - other) for one, other in zip(losses, reference, strict=True))
    assert 0 < apart < 0.25


def test_bf16_weights_learn_with_chance_and_lag_without(identity: Identity) -> None:
    """At a rate of 1e-3 (3.08 in float32, 3.17 to the nearest bf16) the nearest loses updates that chance keeps."""
    expected, _ = learned(identity, 1e-3)
    by_chance, _ = learned(changed(identity, "bf16_weights"), 1e-3, torch.bfloat16)
    both, _ = learned(changed(identity, "bf16_weights", states="8bit"), 1e-3, torch.bfloat16)
    settings = changed(identity, "bf16_weights", stochastic_rounding=False)
    to_nearest, _ = learned(settings, 1e-3, torch.bfloat16)
    assert by_chance == pytest.approx(expected, rel=0.01)
    assert both == pytest.approx(expected, rel=0.015)
    assert to_nearest > expected * 1.02


def test_gradients_of_bf16_weights_are_summed_in_float32(identity: Identity) -> None:
    """1 + 2^-9 eight times is 8 + 2^-6, which no sum of bf16 holds."""
    model = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
    make_optimizer(model, changed(identity, "bf16_weights"))
    for size in (1.0, 2.0**-9) * 8:
        model(torch.full((1, 4), size, dtype=torch.bfloat16)).sum().backward()
    assert model.weight.grad is not None and model.weight.grad.dtype == torch.float32
    assert model.weight.grad.unique().tolist() == [8.0 + 2.0**-6]


def test_a_pull_that_is_as_large_as_the_rate_allows_puts_the_base_back(identity: Identity) -> None:
    model = small_model()
    base = {name: parameter.detach() + 0.25 for name, parameter in model.named_parameters()}
    settings = changed(identity, pull_to_base=1000.0)
    train(model, make_optimizer(model, settings, base), 3, rate=0.0)
    assert not torch.equal(model.lm_head.weight, base["model.embed_tokens.weight"])
    optimizer = make_optimizer(model, settings, base)
    for step, ids in enumerate(texts(3), 1):
        prepare_step(optimizer, 1e-3, step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, base[name])


def test_the_pull_is_what_its_formula_says(identity: Identity) -> None:
    """w ← AdamW(w), then w ← w - rate·λ·(w - w0), step by step in float64 beside it."""
    pulled, plain = small_model(), small_model()
    base = {name: torch.randn_like(parameter) for name, parameter in pulled.named_parameters()}
    optimizer = make_optimizer(pulled, changed(identity, pull_to_base=7.0), base)
    reference = make_optimizer(plain, identity)
    for step, ids in enumerate(texts(5), 1):
        rate = 1e-2 / step
        for model, its in ((pulled, optimizer), (plain, reference)):
            prepare_step(its, rate, step)
            model(input_ids=ids, labels=ids).loss.backward()
            its.step()
            its.zero_grad()
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                away = parameter.double() - base[name].double()
                parameter.copy_(parameter.double() - rate * 7.0 * away)
    for one, other in zip(pulled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "states", "pull"),
    itertools.product(("fp32", "bf16", "bf16_weights"), ("fp32", "8bit"), (0.0, 1.0)),
)
def test_the_bytes_of_a_parameter_are_those_that_are_held(
    identity: Identity, precision: str, states: str, pull: float
) -> None:
    """Counted tensor by tensor on a model of large matrices, but for the copies that autocast makes and frees."""
    dtype = torch.bfloat16 if precision == "bf16_weights" else torch.float32
    model = small_model(dtype, hidden_size=128, intermediate_size=256, vocab_size=256)
    settings = changed(identity, precision, states=states, pull_to_base=pull)
    base = (
        {name: parameter.detach().clone() for name, parameter in model.named_parameters()} if pull else None
    )
    optimizer = make_optimizer(model, settings, base)
    ids = torch.arange(24).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    optimizer.step()
    held = gradients + sum(parameter.nbytes for parameter in model.parameters())
    held += sum(tensor.nbytes for tensor in optimizer_tensors(model, optimizer).values())
    held += sum(tensor.nbytes for tensor in base.values()) if base else 0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    embedded = model.get_input_embeddings().weight.numel() / parameters
    copies = 2.0 if precision == "bf16" else 0.0
    assert bytes_per_parameter(settings, embedded) - copies == pytest.approx(held / parameters, rel=0.01)


@pytest.mark.parametrize("states", ["fp32", "8bit"])
def test_states_go_where_they_came_from_and_nowhere_else(identity: Identity, states: str) -> None:
    settings = changed(identity, "bf16_weights", states=states)
    model = small_model(torch.bfloat16)
    optimizer = make_optimizer(model, settings)
    train(model, optimizer, 3)
    tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(model, optimizer).items()}
    fresh = make_optimizer(model, settings)
    load_optimizer_tensors(model, fresh, tensors)
    again = optimizer_tensors(model, fresh)
    assert set(again) == set(tensors)
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype
        for name, tensor in tensors.items()
    )
    codes = sum(tensor.dtype == torch.uint8 for tensor in tensors.values())
    assert codes == (2 * 2 * 5 if states == "8bit" else 0)  # q, o, gate, up, down of two layers

    other = make_optimizer(
        model, changed(settings, "bf16_weights", states="8bit" if states == "fp32" else "fp32")
    )
    with pytest.raises(ConfigError, match=r"another optimizer\.states"):
        load_optimizer_tensors(model, other, tensors)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    with pytest.raises(DamagedArtifact, match=f"does not fit the model at {name}"):
        load_optimizer_tensors(model, fresh, {**tensors, name: tensors[name][1:]})
    with pytest.raises(DamagedArtifact, match=r"more\.step"):
        load_optimizer_tensors(model, fresh, {**tensors, "more.step": torch.ones(())})


def test_a_base_of_another_shape_is_refused(identity: Identity) -> None:
    model, other = small_model(), small_model(hidden_size=32)
    base = {name: parameter.detach() for name, parameter in other.named_parameters()}
    with pytest.raises(ConfigError, match="has no model"):
        make_optimizer(model, changed(identity, pull_to_base=1.0), base)
