"""Checkpointing changes no bit; what a model holds is counted as it is; the rule chooses the fastest that fits."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, OPTConfig

from tasks.training.attention import NAME, RowDocuments, register
from tasks.training.device import memory
from tasks.training.device.activations import Activations, count_activations
from tasks.training.device.memory import Device, Step, choose
from tasks.training.fused import fuse_activations
from tasks.training.read_spec import parse_spec
from tasks.training.recompute import MODES, checkpoint_layers, to_train
from tasks.training.spec import AUTO, Identity
from tests.support.training.families import SMOLLM, counted
from tests.support.training.world import VOCABULARY, World, llama_config, outputs, run_here

DROPOUTS = {
    "llama": ("attention_dropout",),
    "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    "neox": ("attention_dropout", "hidden_dropout"),
    "opt": ("dropout", "attention_dropout"),
}
FAMILIES = tuple(DROPOUTS)
GB = 10**9


def config_of(family: str, dropout: float = 0.0) -> Any:
    """Three layers of width 64, with this dropout wherever the family has one."""
    drops = dict.fromkeys(DROPOUTS[family], dropout)
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    if family == "llama":
        return llama_config(hidden_size=64, intermediate_size=160, num_hidden_layers=3, **drops)
    if family == "gpt2":
        return GPT2Config(**ids, n_embd=64, n_layer=3, n_head=4, n_positions=64, **drops)
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    if family == "neox":
        return GPTNeoXConfig(**ids, **sizes, intermediate_size=256, **drops)
    return OPTConfig(**ids, **sizes, ffn_dim=256, word_embed_proj_dim=64, pad_token_id=1, **drops)


def model_of(family: str, mode: str, precision: str, dropout: float = 0.0) -> Any:
    register(False)
    torch.manual_seed(1)
    dtype = torch.bfloat16 if precision == "bf16_weights" else torch.float32
    whole = AutoModelForCausalLM.from_config(
        config_of(family, dropout), attn_implementation=NAME, dtype=dtype
    )
    checkpoint_layers(whole, mode)
    fuse_activations(whole)
    return whole.train()


def forward(whole: Any, precision: str, lengths: tuple[int, ...]) -> Tensor:
    torch.manual_seed(2)
    ids = torch.randint(0, VOCABULARY, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    packing = RowDocuments.of(lengths, torch.device("cpu"))
    autocast = (
        torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    )
    with autocast:
        output = whole.base_model(
            input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, packing=packing
        )
    hidden: Tensor = output.last_hidden_state
    return hidden


def gradients(family: str, mode: str, precision: str, dropout: float) -> dict[str, Tensor]:
    """Of every parameter, and the random numbers that come next."""
    whole = model_of(family, mode, precision, dropout)
    forward(whole, precision, (30, 20, 50)).float().square().sum().backward()
    found = {
        name: parameter.grad for name, parameter in whole.named_parameters() if parameter.grad is not None
    }
    assert len(found) > 25
    return {**found, "random": torch.rand(3)}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same_to_the_bit(family: str, precision: str, dropout: float) -> None:
    torch.use_deterministic_algorithms(True)
    plain = gradients(family, "none", precision, dropout)
    for mode in ("selective", "full"):
        found = gradients(family, mode, precision, dropout)
        assert found.keys() == plain.keys()
        different = [name for name in plain if not torch.equal(plain[name], found[name])]
        assert not different, f"{mode}: {different}"


def test_dropout_draws_at_all() -> None:
    # or the test above would show nothing of random states
    kept, dropped = (gradients("gpt2", "none", "fp32", dropout) for dropout in (0.0, 0.1))
    assert not torch.equal(
        kept["wte.weight" if "wte.weight" in kept else next(iter(kept))], next(iter(dropped.values()))
    )


def held(whole: Any, precision: str, lengths: tuple[int, ...]) -> int:
    """Bytes that autograd really holds after forward, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in whole.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = forward(whole, precision, lengths)
    keep(hidden)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_counted_is_what_is_held(family: str, precision: str) -> None:
    whole = model_of(family, "none", precision)
    one, two = held(whole, precision, (32, 16)), held(whole, precision, (32, 16, 48))
    found = count_activations(config_of(family), precision, 48, "none")
    assert found.token == pytest.approx((two - one) / 48, rel=0.01)
    assert found.fixed == pytest.approx(2 * one - two, abs=0.02 * one)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_mode_holds_less(family: str) -> None:
    none, selective, full = (count_activations(config_of(family), "bf16", 48, mode).token for mode in MODES)
    assert full < 0.5 * selective < 0.5 * none
    assert full >= 3 * 4 * 64  # the residual stream before each layer, in float32


def test_smollm_holds_what_the_table_says() -> None:
    shape = llama_config(
        vocab_size=512,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
    )
    # docs/training.md, of documents of 1,024 tokens
    assert count_activations(shape, "bf16", 2048, "none").token / 1024 == pytest.approx(897, rel=0.1)
    assert count_activations(shape, "bf16", 2048, "full").token / 1024 == pytest.approx(74, rel=0.05)


@pytest.fixture
def identity(world: World, tmp_path: Path) -> Identity:
    return replace(parse_spec(world.spec(tmp_path)).identity, sequence_length=2048, precision="bf16")


def chosen(identity: Identity, memory: int, mode: Any = AUTO, micro: Any = AUTO) -> tuple[str, int]:
    return choose(Step(SMOLLM, identity, Device("cuda", memory), counted), 64, mode, micro)


def test_the_fastest_that_fits_is_chosen(identity: Identity) -> None:
    assert chosen(identity, 8 * GB) == ("full", 13)  # "selective" leaves room for 3
    assert chosen(identity, 80 * GB)[0] == "none"
    assert chosen(identity, 141 * GB) == ("none", 32)  # a micro-batch of all 64 sequences does not fit
    assert chosen(identity, 200 * GB) == ("none", 64)  # 131,072 tokens
    modes = [chosen(identity, size * GB)[0] for size in (4, 6, 8, 12, 16, 24, 48, 80)]
    assert modes == sorted(modes, key=("full", "selective", "none").index), modes


def test_what_is_chosen_fits_and_one_more_would_not(identity: Identity) -> None:
    for gigabytes in (6, 8, 16, 24):
        step = Step(SMOLLM, identity, Device("cuda", gigabytes * GB), counted)
        for mode in MODES:
            most = step.fits(mode)
            assert step.peak(mode, most + 1) > step.device.usable
            assert most == 0 or step.peak(mode, most) <= step.device.usable


def test_what_is_given_is_taken(identity: Identity) -> None:
    assert chosen(identity, 8 * GB, mode="none") == ("none", 1)
    assert chosen(identity, 8 * GB, micro=16) == ("full", 16)
    assert chosen(identity, 8 * GB, mode="none", micro=7) == ("none", 7)  # for the device to refuse
    assert chosen(identity, 1 * GB) == ("full", 1)


def test_states_shared_out_leave_more_room(identity: Identity) -> None:
    alone, shared = (Step(SMOLLM, identity, Device("cuda", 8 * GB), counted, shards) for shards in (1, 8))
    assert shared.state < 0.4 * alone.state
    assert shared.fits("none") > alone.fits("none")


def test_the_hosts_memory_does_not_depend_on_what_is_free() -> None:
    before = memory.host_memory()
    ballast = bytearray(200 << 20)
    ballast[::4096] = b"1" * len(ballast[::4096])
    assert memory.host_memory() == before > (1 << 30)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_training_gives_the_same_bytes_in_every_mode(world: World, tmp_path: Path, dropout: float) -> None:
    found = []
    for mode in MODES:
        work = tmp_path / mode
        work.mkdir()
        changes = {"execution__gradient_checkpointing": mode, "identity__dropout": dropout}
        assert run_here(world.spec(work, identity__last_step=4, **changes))[0] == 0
        found.append(outputs(work))
    assert found[0] == found[1] == found[2]


def test_the_rule_asks_only_for_what_it_needs(identity: Identity) -> None:
    asked: list[str] = []

    def count(mode: str) -> Activations:
        asked.append(mode)
        return counted(mode)

    choose(Step(SMOLLM, identity, Device("cuda", 200 * GB), count), 64, AUTO, AUTO)
    assert set(asked) == {"none"}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_is_in_training_but_what_could_leave_layers_out(family: str) -> None:
    whole = model_of(family, "none", "fp32", dropout=0.5).eval()
    to_train(whole)
    resting = [type(module).__name__ for module in whole.modules() if not module.training]
    assert resting == (["OPTDecoder"] if family == "opt" else [])
    first, again = (forward(whole, "fp32", (8,)) for _ in range(2))
    assert torch.equal(first, again), "the draws of a seed"
    torch.manual_seed(3)
    assert not torch.equal(first, forward(whole.eval(), "fp32", (8,))), "dropout is at work"
