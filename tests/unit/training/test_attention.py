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
    HyperCLOVAXConfig,
)

from storage.errors import ConfigError
from tasks.training import attention
from tasks.training.attention import RowDocuments, packed_attention
from tasks.training.model import LanguageModel, load_model, read_config
from tasks.training.read_spec import parse_spec
from tests.support.training.families import FAMILIES, SCALED, SMALL, WINDOWED
from tests.support.training.packed import load, random_row
from tests.support.training.world import VOCABULARY, World, save_model

LENGTHS = (11, 3, 1, 20, 7)
KINDS = {**FAMILIES, **SCALED, **{f"{name} with a window": made for name, made in WINDOWED.items()}}


def logits(model: LanguageModel, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    positions = torch.cat([torch.arange(length) for length in lengths])
    with torch.no_grad(), model.autocast():
        packing = RowDocuments.of(lengths, torch.device("cpu"))
        return model.head(model.hidden(ids[None], positions[None], packing)).float()


@pytest.mark.parametrize("family", KINDS)
def test_a_packed_document_is_as_if_alone(world: World, tmp_path: Path, family: str) -> None:
    save_model(KINDS[family](), tmp_path, spread=6.0)
    ids = torch.randint(VOCABULARY, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    packed = logits(load(world, tmp_path), ids, LENGTHS)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        alone = torch.cat([plain(part[None]).logits[0] for part in ids.split(list(LENGTHS))])
        joined = plain(ids[None]).logits[0]
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
    assert float((packed - joined)[LENGTHS[0] :].abs().max()) > 1e-2 * float(alone.abs().max())


@pytest.mark.parametrize("family", KINDS)
def test_in_a_row_of_fixed_size_a_document_is_as_if_alone(world: World, tmp_path: Path, family: str) -> None:
    save_model(KINDS[family](), tmp_path, spread=6.0)
    model = load(world, tmp_path)
    ids, positions, lengths = random_row(1, 96, 48)
    with torch.no_grad():
        packing = RowDocuments.of_fixed_size(lengths, 40, 48)
        packed = model.head(model.hidden(ids[None], positions[None], packing))
        plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        alone = torch.cat([plain(part[None]).logits[0] for part in ids.split(list(lengths))])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_operator_over_bounds_is_attention_by_document(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = [torch.randn(1, 4, 40, 8, dtype=precision, requires_grad=True) for _ in range(3)]
    packing = RowDocuments.of_fixed_size((17, 1, 22), 9, 24)
    assert packing.bounds is not None and packing.bounds.tolist() == [0, 17, 18, 40, 40, 40, 40, 40, 40, 40]
    wanted, out = (
        attention._by_document(*rows, packing, 0.3, 0.0, None),
        attention.by_bounds(*rows, packing.bounds, 0.3)[0],
    )
    near = {} if precision == torch.float32 else {"rtol": 2e-2, "atol": 3e-2}  # there by blocks
    assert precision != torch.float32 or torch.equal(out, wanted)
    torch.testing.assert_close(out, wanted, **near)
    upstream = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(out, rows, upstream), torch.autograd.grad(wanted, rows, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, **near)
    # shapes without computing, gradients and tracing agree with the operator
    torch.library.opcheck(attention.by_bounds, (*rows, packing.bounds, 0.3))


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "opt", "mistral with a window"])
def test_the_kernel_of_a_gpu_is_in_the_one_graph(
    world: World, tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced here as there (the kernel itself runs on no CPU): no break at a layer, one call of it in each, with the
    window."""
    if attention.VARLEN is None:
        pytest.skip("this torch has no variable-length attention")
    save_model(KINDS[family](), tmp_path)
    model = load(world, tmp_path, precision="bf16")
    monkeypatch.setattr(attention, "_varlen_fits", lambda query, packing, window: packing.bounds is not None)
    graphs: list[torch.fx.GraphModule] = []

    class Seen(Exception):
        pass

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        raise Seen

    ids, positions, lengths = random_row(1, 96, 48)
    body = torch.compile(model.body, backend=look, dynamic=False, fullgraph=True)
    with pytest.raises(Exception, match="Seen"), model.autocast():
        body(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=None,
            use_cache=False,
            packing=RowDocuments.of_fixed_size(lengths, 40, 48),
        )
    calls = [node for node in graphs[0].graph.nodes if "varlen_attn" in str(node.target)]
    assert len(graphs) == 1 and len(calls) == 2
    for call in calls:
        assert ([6, 0] if "window" in family else [-1, 0]) in [*call.args, *call.kwargs.values()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("fixed", [False, True])
def test_on_a_gpu_a_document_is_as_if_alone(world: World, tmp_path: Path, family: str, fixed: bool) -> None:
    save_model(KINDS[family](), tmp_path, spread=6.0)
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 6e-2)):
        identity = parse_spec(world.spec(tmp_path, identity__precision=precision)).identity
        execution = {"device": "cuda", "gradient_checkpointing": "none", "compile": False}
        model = load_model(tmp_path, read_config(tmp_path, identity), identity, execution)
        ids, positions, lengths = random_row(1, 96, 48)
        packing = (
            RowDocuments.of_fixed_size(lengths, 40, 48).to(model.device)
            if fixed
            else RowDocuments.of(lengths, model.device)
        )
        plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            with model.autocast():
                hidden = model.hidden(ids[None].cuda(), positions[None].cuda(), packing)
                packed = model.head(hidden).float().cpu()
            alone = torch.cat([plain(part[None]).logits[0] for part in ids.split(list(lengths))])
        torch.testing.assert_close(packed, alone, rtol=0.0, atol=tolerance * float(alone.abs().max()))


@pytest.mark.parametrize("family", KINDS)
def test_no_bit_depends_on_the_documents_around(world: World, tmp_path: Path, family: str) -> None:
    save_model(KINDS[family](), tmp_path, spread=6.0)
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
    shared, _ = packed_attention(module, query, key, value, None, packing=RowDocuments((8, 8, 8), None, 8))
    single = [
        packed_attention(
            module,
            *(t[:, :, at : at + 8] for t in (query, key, value)),
            None,
            packing=RowDocuments((8,), None, 8),
        )
        for at in (0, 8, 16)
    ]
    assert torch.equal(shared, torch.cat([out for out, _ in single], 1))


@pytest.mark.parametrize("window", [1, 2, 7, 8, 15, 16, 23, 24, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_is_attention_with_a_band(window: int, dtype: torch.dtype) -> None:
    """By blocks, for every remainder of the lengths: values and gradients of the one large mask."""
    torch.manual_seed(0)
    rows = [torch.randn(1, 3, 48, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    lengths = (23, 1, 24)
    out = attention._by_document(*rows, RowDocuments(lengths, None, 24), 0.3, 0.0, window)
    at = torch.arange(48)
    document = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    back = at[:, None] - at[None, :]
    seen = (back >= 0) & (back < window) & (document[:, None] == document[None, :])
    wanted = torch.nn.functional.scaled_dot_product_attention(*rows, attn_mask=seen, scale=0.3).transpose(
        1, 2
    )
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(out, wanted, **tolerance)
    upstream = torch.randn_like(out)
    for one, other in zip(
        torch.autograd.grad(out, rows, upstream), torch.autograd.grad(wanted, rows, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, **tolerance)


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
    "attention of its own": (
        lambda: BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
        "cannot",
    ),
    "soft-capping": (
        lambda: Gemma2Config(**SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8),
        "caps the scores",
    ),
    "logits of another kind": (
        lambda: HyperCLOVAXConfig(**SMALL, intermediate_size=64, num_key_value_heads=2, logits_scaling=4.0),
        "changes its logits",
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
    packing = RowDocuments((8,), None, 8)
    with pytest.raises(ConfigError, match="mask"):
        packed_attention(torch.nn.Module(), row, row, row, torch.ones(1, 1, 8, 8), packing=packing)
    with pytest.raises(ConfigError, match="where documents end"):
        packed_attention(torch.nn.Module(), row, row, row, None)


def test_too_few_positions_are_refused(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    with pytest.raises(ConfigError, match=r"65, but the model has 64 positions"):
        read_config(world.export, replace(identity, sequence_length=65))


def _flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bounds: torch.Tensor,
    scale: float,
    window_size: tuple[int, int] = (-1, 0),
) -> torch.Tensor:
    """What torch's kernel computes, written out: rows [tokens, heads, size], documents by cumulative lengths."""
    before, after = window_size
    assert after == 0
    parts = []
    for begin, end in itertools.pairwise(bounds.tolist()):
        scores = torch.einsum("qhd,khd->hqk", q[begin:end], k[begin:end]) * scale
        at = torch.arange(end - begin)
        back = at[:, None] - at[None, :]
        above = (back < 0) | (back > (end if before == -1 else before))
        parts.append(
            torch.einsum("hqk,khd->qhd", scores.masked_fill(above, -torch.inf).softmax(-1), v[begin:end])
        )
    return torch.cat(parts)


def varlen_now(q, k, v, bounds, same, longest, _, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
    assert bounds is same and longest == 5 and enable_gqa
    return _flash(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), bounds, scale, window_size)


def varlen_of_2_11(q, k, v, bounds, same, longest, _, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
    return _flash(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), bounds, scale, window_size)


def varlen_at_first(q, k, v, bounds, same, longest, _, is_causal=False):  # type: ignore[no-untyped-def]
    assert is_causal
    return _flash(q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), bounds, q.shape[-1] ** -0.5)


@pytest.mark.parametrize(
    ("kernel", "window"),
    [
        (varlen_now, None),
        (varlen_of_2_11, None),
        (varlen_at_first, None),
        (varlen_now, 2),
        (varlen_of_2_11, 3),
    ],
)
def test_the_kernel_of_each_version_is_called_as_it_wants(
    kernel: Any, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout and options of the CUDA path, with the kernel written out: it runs on no CPU. Heads reach it in groups,
    also where its function has no word for them."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 10, 8) for heads in (4, 2, 2))
    lengths = (5, 2, 3)
    plain, _ = packed_attention(
        torch.nn.Module(),
        query,
        key,
        value,
        None,
        0.3,
        packing=RowDocuments(lengths, None, 5),
        sliding_window=window,
    )
    monkeypatch.setattr(attention, "VARLEN", (kernel, frozenset(inspect.signature(kernel).parameters)))
    packing = RowDocuments(lengths, torch.tensor([0, 5, 7, 10], dtype=torch.int32), 5)
    out = attention._by_varlen(query, key, value, packing, 0.3, window)
    torch.testing.assert_close(out, plain, rtol=1e-5, atol=1e-5)
    on_gpu = torch.empty(1, 4, 10, 8, dtype=torch.bfloat16, device="meta")
    assert not attention._varlen_fits(on_gpu, packing, window)  # of a CUDA device alone
