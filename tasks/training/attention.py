"""Causal attention over a row of concatenated documents. No document sees another.

A micro-batch is one row [1, tokens]. Its `RowDocuments` says where documents end; every layer gets it as a keyword
argument of the model's forward. This attention replaces the model's own through transformers' AttentionInterface,
so no mask is ever built or guessed from position ids. There are three exact paths:

1. on CUDA in bf16 or fp16: torch's variable-length flash attention, which torch.compile can trace;
2. one SDPA call per document, outside any graph, wherever 1 cannot run (CPU, float32, dropout, older torch);
3. for a compiled model on CPU: path 2 as a single operator over bounds of a fixed size. The graph never sees lengths.

A sliding window of w tokens (a token sees itself and the w - 1 before it) is part of 1 and 2, for documents that are
longer: in 2 by blocks of w tokens, each of which sees itself and the one before. 3 has none: a model with windows is not
compiled on a CPU (segment.py).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from tasks.training import blocks
from tasks.training.refusal import refusal

NAME = "onward_packed"
"""The attention's name in transformers' AttentionInterface."""


_NOT_OFFERED = {
    "softcap": "it caps the scores of its attention (soft-capping)",
    "s_aux": "its attention has sinks",
    "position_bias": "its attention has a bias by position",
    "alibi": "its attention has a bias by position (ALiBi)",
}


@dataclass(frozen=True)
class RowDocuments:
    """Where the documents of a row lie. The sum of `lengths` is the row's number of tokens."""

    lengths: tuple[int, ...]
    bounds: Tensor | None
    """Cumulative lengths, int32 [documents + 1]; longer in a compiled model, where the last value is repeated for
    documents of no tokens. None if only SDPA by document runs.
    """
    longest: int
    """Tokens of the longest document, or a constant upper bound."""
    fixed: bool = False
    """True if the size of `bounds` and `longest` do not depend on the documents. A graph may read nothing else."""

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> RowDocuments:
        """The row's documents from their lengths. `bounds` are made only for a device that can use them."""
        bounds = _cumulative(lengths, len(lengths)) if device.type == "cuda" else None
        return cls(lengths, bounds, max(lengths)).to(device)

    @classmethod
    def of_fixed_size(cls, lengths: tuple[int, ...], documents: int, longest: int) -> RowDocuments:
        """On the host: `documents` + 1 bounds, whatever the lengths. No length may exceed `longest`."""
        return cls(lengths, _cumulative(lengths, documents), longest, fixed=True)

    def to(self, device: torch.device) -> RowDocuments:
        """A copy with the bounds on `device`; the transfer may still be under way."""
        if self.bounds is None:
            return self
        return replace(self, bounds=self.bounds.to(device, non_blocking=True))


def _cumulative(lengths: tuple[int, ...], documents: int) -> Tensor:
    bounds = torch.full((documents + 1,), sum(lengths), dtype=torch.int32)
    bounds[: len(lengths) + 1] = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32)
    return bounds


def register(compiled: bool) -> None:
    """Make `attn_implementation=NAME` known to transformers.

    In a compiled model, attention by document stays outside the graphs. Inside, each set of lengths would force a
    new graph.
    """
    from transformers import AttentionInterface

    apart: Any = torch.compiler.disable(_by_document) if compiled else _by_document
    AttentionInterface.register(NAME, partial(packed_attention, by_document=apart))


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: RowDocuments | None = None,
    by_document: Callable[..., Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, heads, tokens, size], key and value [1, groups, tokens, size].

    Returns [1, tokens, heads, size]. Raises ConfigError for everything that it would silently compute wrong: a
    mask, soft-capping, sinks, position biases, attention that is not causal.
    """
    config = getattr(module, "config", None)
    if packing is None:
        raise refusal(config, "it does not tell its attention where documents end")
    _refuse_what_is_not_plain(module, config, attention_mask, kwargs)
    window = kwargs.get("sliding_window")
    if window is not None and window >= packing.longest:
        window = None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if dropout == 0.0 and _varlen_fits(query, packing, window):
        return _by_varlen(query, key, value, packing, scale, window), None
    if query.device.type == "cpu" and dropout == 0.0 and window is None:
        narrow = query.dtype == torch.bfloat16
        if packing.fixed or narrow:
            bounds = packing.bounds
            if bounds is None:
                bounds = _cumulative(packing.lengths, len(packing.lengths))
            return by_bounds(query, key, value, bounds, scale)[0], None
    key, value = _repeated(key, value, query.shape[1])
    return (by_document or _by_document)(query, key, value, packing, scale, dropout, window), None


def _repeated(key: Tensor, value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Keys and values for each head, where heads share them."""
    repeats = heads // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)


def _refuse_what_is_not_plain(
    module: torch.nn.Module,
    config: Any,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    if mask is not None:
        raise refusal(config, "its attention has a mask of its own, which packed documents do not go with")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise refusal(config, "its attention sees later tokens, so it is no causal language model")
    for option, reason in _NOT_OFFERED.items():
        if kwargs.get(option) is not None:
            raise refusal(config, reason)


def _by_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: RowDocuments,
    scale: float,
    dropout: float,
    window: int | None,
) -> Tensor:
    """One SDPA call per document, or a single call if all documents have the same length and fit the window.

    `split` and `cat` are each other's gradients. The gradient of a slice would fill a whole row with zeros per
    document.
    """
    lengths = list(packing.lengths)
    if lengths.count(lengths[0]) == len(lengths) and (window is None or lengths[0] <= window):
        parts = (_as_batch(query, lengths), _as_batch(key, lengths), _as_batch(value, lengths))
        out = functional.scaled_dot_product_attention(*parts, dropout_p=dropout, is_causal=True, scale=scale)
        return out.transpose(1, 2).flatten(0, 1).unsqueeze(0)
    split = zip(
        torch.split(query, lengths, 2),
        torch.split(key, lengths, 2),
        torch.split(value, lengths, 2),
        strict=True,
    )
    found: list[Tensor] = []
    for q, k, v in split:
        if window is not None and q.shape[2] > window:
            out = _in_a_window(q, k, v, window, scale, dropout)
        else:
            out = functional.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scale
            )
        found.append(out.transpose(1, 2))
    return torch.cat(found, dim=1)


def _in_a_window(
    query: Tensor, key: Tensor, value: Tensor, window: int, scale: float, dropout: float
) -> Tensor:
    """Attention of one document [1, heads, tokens, size] in which each token sees the last `window`, with itself.

    Blocks of `window` tokens are a batch; each has the keys of the block before it and its own. The last block is
    filled up, where no token sees it. The cost grows with tokens times window.
    """
    tokens = query.shape[2]
    blocks = -(-tokens // window)
    mine, theirs, said = (_as_blocks(tensor, blocks, window) for tensor in (query, key, value))
    keys, values = (
        torch.cat((functional.pad(one[:-1], (0, 0, 0, 0, 0, 0, 1, 0)), one), 2) for one in (theirs, said)
    )
    at = torch.arange(window, device=query.device)[:, None]
    of = torch.arange(2 * window, device=query.device)[None, :]
    seen = ((of > at) & (of <= at + window)).expand(blocks, 1, -1, -1)
    first = torch.arange(blocks, device=query.device)[:, None, None, None] == 0
    seen = seen & ~(first & (of < window))
    out = functional.scaled_dot_product_attention(
        mine, keys, values, attn_mask=seen, dropout_p=dropout, scale=scale
    )
    return out.transpose(0, 1).flatten(1, 2).unsqueeze(0)[:, :, :tokens]


def _as_blocks(document: Tensor, blocks: int, window: int) -> Tensor:
    """[1, heads, tokens, size] -> [blocks, heads, window, size], with zeros at the end."""
    _, heads, tokens, size = document.shape
    filled = functional.pad(document, (0, 0, 0, blocks * window - tokens))
    return filled.view(heads, blocks, window, size).transpose(0, 1)


def _as_batch(row: Tensor, lengths: list[int]) -> Tensor:
    """[1, heads, documents * length, size] -> [documents, heads, length, size], without a copy."""
    heads, size = row.shape[1], row.shape[3]
    return row.view(heads, len(lengths), lengths[0], size).transpose(0, 1)


def _varlen_fits(query: Tensor, packing: RowDocuments, window: int | None) -> bool:
    size = query.shape[-1]
    return (
        packing.bounds is not None
        and query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and size % 8 == 0
        and size <= 256
        and VARLEN is not None
        and (window is None or "window_size" in VARLEN[1])
    )


def varlen() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """torch's variable-length attention and the names of its parameters, which differ between versions."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


VARLEN = varlen()
"""Looked up once at import: torch.compile cannot trace the lookup."""


def _by_varlen(
    query: Tensor, key: Tensor, value: Tensor, packing: RowDocuments, scale: float, window: int | None
) -> Tensor:
    assert VARLEN is not None
    attend, names = VARLEN
    before = -1 if window is None else window - 1
    options: dict[str, Any] = {"window_size": (before, 0)} if "window_size" in names else {"is_causal": True}
    if query.shape[1] != key.shape[1] and "enable_gqa" in names:
        options["enable_gqa"] = (
            True  # torch without this parameter hands grouped heads to the kernel, which takes them
        )
    if "scale" in names:
        options["scale"] = scale
    else:
        query = query * (scale * query.shape[-1] ** 0.5)
    rows = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]
    bounds, longest = packing.bounds, packing.longest
    out: Tensor = attend(*rows, bounds, bounds, longest, longest, **options)
    return out.unsqueeze(0)


@torch.library.custom_op("onward::attention_by_bounds", mutates_args=())
def by_bounds(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Causal attention within each document, on CPU.

    query is [1, heads, tokens, size], key and value [1, groups, tokens, size]; `bounds` are int32 as in RowDocuments.
    Returns [1, tokens, heads, size] and the log-sum-exp values [1, heads, tokens] in float32, which are zero in documents
    that are computed in blocks (blocks.py).
    """
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    row, (_, heads, tokens, size) = _row(query, bounds), query.shape
    out = query.new_empty(1, tokens, heads, size)
    lse = query.new_zeros(1, heads, tokens, dtype=torch.float32)
    if row.batches:
        found = blocks.forward(query, key, value, row, scale)
        out = _with_short(out, found, row, 1)
    for stretch in row.long:
        q, (k, v) = _cut(query, stretch), _repeated(_cut(key, stretch), _cut(value, stretch), heads)
        attended, values = attend(q, k, v, 0.0, True, scale=scale)
        _cut(out.transpose(1, 2), stretch).copy_(attended)
        _cut(lse, stretch).copy_(values)
    return out, lse


def _cut(rows: Tensor, stretch: blocks.Stretch) -> Tensor:
    """A stretch of equal documents out of [1, heads, tokens, …], without a copy: [documents, heads, tokens, …]."""
    held = rows[0].narrow(1, stretch.first, stretch.documents * stretch.tokens)
    return held.unflatten(1, (stretch.documents, stretch.tokens)).transpose(0, 1)


@torch.library.custom_op("onward::attention_by_bounds_backward", mutates_args=())
def _by_bounds_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    bounds: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    row, heads = _row(query, bounds), query.shape[1]
    found = [tensor.new_empty(tensor.shape) for tensor in (query, key, value)]
    if row.batches:
        short = blocks.backward(gradient, query, key, value, row, scale)
        found = [_with_short(whole, part, row, 2) for whole, part in zip(found, short, strict=True)]
    for stretch in row.long:
        q, (k, v) = _cut(query, stretch), _repeated(_cut(key, stretch), _cut(value, stretch), heads)
        upstream, attended = _cut(gradient.transpose(1, 2), stretch), _cut(out.transpose(1, 2), stretch)
        parts = attend(upstream, q, k, v, attended, _cut(lse, stretch), 0.0, True, scale=scale)
        for whole, part in zip(found, parts, strict=True):
            groups = whole.shape[1]
            if groups != heads:
                part = part.unflatten(1, (groups, -1)).sum(2)
            _cut(whole, stretch).copy_(part)
    return found[0], found[1], found[2]


def _row(query: Tensor, bounds: Tensor) -> blocks.Row:
    in_blocks = query.dtype == torch.bfloat16 and _products_in_bf16()
    return blocks.row_of(tuple(_lengths(bounds)), blocks.LONGEST if in_blocks else 0)


@functools.cache
def _products_in_bf16() -> bool:
    """Whether this processor's products in bf16 are faster than those in float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _with_short(whole: Tensor, part: Tensor, row: blocks.Row, dimension: int) -> Tensor:
    """`whole` with the tokens of short documents; what is there of others is written later."""
    return whole.index_copy_(dimension, row.short, part) if row.long else part.contiguous()


@by_bounds.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    _, heads, tokens, size = query.shape
    return query.new_empty(1, tokens, heads, size), query.new_empty(1, heads, tokens, dtype=torch.float32)


@_by_bounds_backward.register_fake
def _(gradient: Tensor, query: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    key, value = rest[0], rest[1]
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bounds, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, bounds)


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Any, ...]:
    return *_by_bounds_backward(gradient.contiguous(), *ctx.saved_tensors, ctx.scale), None, None


by_bounds.register_autograd(_differentiate, setup_context=_save)


def _lengths(bounds: Tensor) -> list[int]:
    """Lengths of the documents that have tokens."""
    return [length for length in bounds.diff().tolist() if length]
