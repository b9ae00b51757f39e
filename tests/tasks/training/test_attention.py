"""The logits of a packed document equal those of the same document alone, in every family, and nothing leaks."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
)

from storage.errors import ConfigError
from tasks.training import attention
from tasks.training.attention import Packing, packed_attention
from tasks.training.config import Identity, parse_spec
from tasks.training.model import LanguageModel, load_model, read_config
from tests.tasks.training.helpers import VOCABULARY, World, llama_config, save_model

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
FAMILIES: dict[str, Any] = {
    "llama": lambda: llama_config(),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "neox": lambda: GPTNeoXConfig(**SMALL, intermediate_size=64, max_position_embeddings=64),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=16),
}
LENGTHS = (11, 3, 1, 20, 7)


def load(world: World, path: Path, **identity: Any) -> LanguageModel:
    made = {f"identity__{name}": value for name, value in identity.items()}
    wanted: Identity = parse_spec(world.spec(path, **made)).identity
    execution = {"device": "cpu", "gradient_checkpointing": False, "compile": False}
    return load_model(path, read_config(path, wanted), wanted, execution)


def logits(model: LanguageModel, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad(), model.autocast():
        packing = Packing.of(lengths, torch.device("cpu"))
        return model.head(model.hidden(ids[None], positions[None], packing)).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_document_is_as_if_alone(world: World, tmp_path: Path, family: str) -> None:
    save_model(FAMILIES[family](), tmp_path, spread=6.0)
    ids = torch.randint(VOCABULARY, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    packed = logits(load(world, tmp_path), ids, LENGTHS)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        alone = torch.cat([plain(part[None]).logits[0] for part in ids.split(list(LENGTHS))])
        joined = plain(ids[None]).logits[0]
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
    assert float((packed - joined)[LENGTHS[0] :].abs().max()) > 1e-2 * float(alone.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_no_bit_depends_on_the_documents_around(world: World, tmp_path: Path, family: str) -> None:
    save_model(FAMILIES[family](), tmp_path, spread=6.0)
    model = load(world, tmp_path, precision="bf16")
    ids = torch.randint(VOCABULARY, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[:11] += 1
    changed[15:] += 1
    before, after = logits(model, ids, LENGTHS), logits(model, changed % VOCABULARY, LENGTHS)
    assert torch.equal(before[11:15], after[11:15])
    assert not torch.equal(before[:11], after[:11])


def test_documents_of_one_length_share_a_call_exactly() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 24, 8, requires_grad=True) for heads in (4, 2, 2))
    module = torch.nn.Module()
    shared, _ = packed_attention(module, query, key, value, None, packing=Packing((8, 8, 8), None, 8))
    single = [
        packed_attention(
            module, *(t[:, :, at : at + 8] for t in (query, key, value)), None, packing=Packing((8,), None, 8)
        )
        for at in (0, 8, 16)
    ]
    assert torch.equal(shared, torch.cat([out for out, _ in single], 1))


def test_without_masking_a_sequence_is_one_document(world: World) -> None:
    model = load(world, world.export)
    ids = torch.randint(VOCABULARY, (40,), generator=torch.Generator().manual_seed(1))
    plain = AutoModelForCausalLM.from_pretrained(world.export).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            logits(model, ids, (40,)), plain(ids[None]).logits[0], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "neox"])
def test_dropout_is_what_the_specification_says(world: World, tmp_path: Path, family: str) -> None:
    save_model(FAMILIES[family](), tmp_path)
    none = load(world, tmp_path).whole
    assert {m.p for m in none.modules() if isinstance(m, torch.nn.Dropout)} <= {0.0}
    some = load(world, tmp_path, dropout=0.25).whole
    fields = {name: value for name, value in some.config.to_dict().items() if "drop" in name}
    assert 0.25 in fields.values()
    assert fields.get("layerdrop", 0.0) == 0.0


REFUSED: dict[str, tuple[Any, str]] = {
    "state beyond attention": (
        lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
        "cannot",
    ),
    "attention of its own": (
        lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
        "cannot",
    ),
    "soft-capping": (
        lambda: Gemma2Config(**SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8),
        "softcap",
    ),
    "scaled logits": (
        lambda: GraniteConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, logits_scaling=4.0),
        "cannot be packed",
    ),
    "a short window": (
        lambda: MistralConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, sliding_window=4),
        "sliding window",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_keep_documents_apart_is_refused(world: World, tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    save_model(make(), tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(world, tmp_path)


def test_a_mask_is_refused() -> None:
    row = torch.randn(1, 4, 8, 8)
    packing = Packing((8,), None, 8)
    with pytest.raises(ConfigError, match="mask"):
        packed_attention(torch.nn.Module(), row, row, row, torch.ones(1, 1, 8, 8), packing=packing)
    with pytest.raises(ConfigError, match="did not reach"):
        packed_attention(torch.nn.Module(), row, row, row, None)


def test_too_few_positions_are_refused(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    with pytest.raises(ConfigError, match=r"65, but the model has 64 positions"):
        read_config(world.export, replace(identity, sequence_length=65))


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: torch.Tensor, scale: float
) -> torch.Tensor:
    """What torch's kernel computes, written out: rows [tokens, heads, size], documents by cumulative lengths."""
    parts = []
    for begin, end in itertools.pairwise(bounds.tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * scale
        above = torch.ones(end - begin, end - begin).triu(1).bool()
        parts.append(
            torch.einsum("hqk,khd->qhd", scores.masked_fill(above, -torch.inf).softmax(-1), v[begin:end])
        )
    return torch.cat(parts)


def varlen_now(q, k, v, bounds, same, longest, _, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
    assert window_size == (-1, 0) and bounds is same and longest == 5 and enable_gqa
    return _flash(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), bounds, scale)


def varlen_of_2_11(q, k, v, bounds, same, longest, _, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
    assert window_size == (-1, 0)
    return _flash(q, k, v, bounds, scale)


def varlen_at_first(q, k, v, bounds, same, longest, _, is_causal=False):  # type: ignore[no-untyped-def]
    assert is_causal
    return _flash(q, k, v, bounds, q.shape[-1] ** -0.5)


@pytest.mark.parametrize("kernel", [varlen_now, varlen_of_2_11, varlen_at_first])
def test_the_kernel_of_each_version_is_called_as_it_wants(
    kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout and options of the CUDA path, with the kernel written out: it runs on no CPU."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 10, 8) for heads in (4, 2, 2))
    lengths = (5, 2, 3)
    plain, _ = packed_attention(
        torch.nn.Module(), query, key, value, None, 0.3, packing=Packing(lengths, None, 5)
    )
    monkeypatch.setattr(attention, "VARLEN", (kernel, frozenset(inspect.signature(kernel).parameters)))
    packing = Packing(lengths, torch.tensor([0, 5, 7, 10], dtype=torch.int32), 5)
    out = attention._by_varlen(query, key, value, packing, 0.3)
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
    on_gpu = torch.empty(1, 4, 10, 8, dtype=torch.bfloat16, device="meta")
    assert not attention._varlen_fits(on_gpu, packing)  # of a CUDA device alone
