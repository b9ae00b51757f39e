"""Causal attention over a row of concatenated documents, none of which sees another.

A micro-batch is one row [1, tokens]; its `Packing` says where documents end and travels to every layer as a
keyword argument of the model's forward. It replaces a model's attention through transformers'
AttentionInterface, so that no mask is ever made or guessed from position ids. Two exact paths: on CUDA torch's
variable-length flash attention (bf16, fp16), elsewhere one SDPA call per document.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from storage.errors import ConfigError

NAME = "onward_packed"
"""The attention's name in transformers' AttentionInterface."""


@dataclass(frozen=True)
class Packing:
    """Where the documents of a row lie. `lengths` sum to the row's tokens."""

    lengths: tuple[int, ...]
    bounds: Tensor | None
    """[documents + 1] int32 on the device: cumulative lengths; None where only the SDPA path runs."""
    longest: int

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Packing:
        """The packing of documents of these lengths, with bounds where the device can use them."""
        bounds = None
        if device.type == "cuda":
            cumulative = torch.tensor((0, *accumulate(lengths)), dtype=torch.int32)
            bounds = cumulative.to(device, non_blocking=True)
        return cls(lengths, bounds, max(lengths))


def register(compiled: bool) -> None:
    """Make `attn_implementation=NAME` known to transformers.

    In a compiled model it stays outside the graphs, which otherwise would be made anew for each set of lengths.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(
        NAME, torch.compiler.disable(packed_attention) if compiled else packed_attention
    )


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, heads, tokens, size], key and value [1, groups, tokens, size].

    Returns [1, tokens, heads, size]. Raises ConfigError for whatever it would silently get wrong: a mask, a
    sliding window shorter than a document, soft-capping, sinks, position biases, attention that is not causal.
    """
    if packing is None:
        raise ConfigError("The packing did not reach the attention: this model cannot keep documents apart.")
    _refuse_what_is_not_plain(module, attention_mask, packing, kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if dropout == 0.0 and _varlen_fits(query, packing):
        return _by_varlen(query, key, value, packing, scale), None
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return _by_document(query, key, value, packing, scale, dropout), None


def _refuse_what_is_not_plain(
    module: torch.nn.Module, mask: Tensor | None, packing: Packing, kwargs: dict[str, Any]
) -> None:
    name = type(module).__name__
    if mask is not None:
        raise ConfigError(f"{name} passes an attention mask of its own: it cannot train on packed documents.")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        raise ConfigError(f"{name} is not causal: it cannot be trained as a language model here.")
    for option in ("softcap", "s_aux", "position_bias", "alibi"):
        if kwargs.get(option) is not None:
            raise ConfigError(f"{name} asks for {option}, which packed attention does not offer.")
    window = kwargs.get("sliding_window")
    if window is not None and window < packing.longest:
        raise ConfigError(
            f"{name} has a sliding window of {window} tokens, shorter than a packed document of "
            f"{packing.longest}. Choose packing.sequence_length <= {window}."
        )


def _by_document(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float, dropout: float
) -> Tensor:
    """One SDPA call per document; documents of one length share a call.

    `split` and `cat` have each other as their gradients; slices would fill a whole row with zeros per document.
    """
    lengths = list(packing.lengths)
    if lengths.count(lengths[0]) == len(lengths):
        parts = (_as_batch(query, lengths), _as_batch(key, lengths), _as_batch(value, lengths))
        out = functional.scaled_dot_product_attention(*parts, dropout_p=dropout, is_causal=True, scale=scale)
        return out.transpose(1, 2).flatten(0, 1).unsqueeze(0)
    split = zip(
        torch.split(query, lengths, 2),
        torch.split(key, lengths, 2),
        torch.split(value, lengths, 2),
        strict=True,
    )
    return torch.cat(
        [
            functional.scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scale
            ).transpose(1, 2)
            for q, k, v in split
        ],
        dim=1,
    )


def _as_batch(row: Tensor, lengths: list[int]) -> Tensor:
    """[1, heads, documents * length, size] -> [documents, heads, length, size], without a copy."""
    heads, size = row.shape[1], row.shape[3]
    return row.view(heads, len(lengths), lengths[0], size).transpose(0, 1)


def _varlen_fits(query: Tensor, packing: Packing) -> bool:
    size = query.shape[-1]
    return (
        packing.bounds is not None
        and query.dtype in (torch.bfloat16, torch.float16)
        and size % 8 == 0
        and size <= 256
        and varlen() is not None
    )


def varlen() -> tuple[Callable[..., Any], frozenset[str]] | None:
    """torch's variable-length attention with its parameters' names, which differ between versions."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def _by_varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scale: float) -> Tensor:
    found = varlen()
    assert found is not None
    attend, names = found
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in names else {"is_causal": True}
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1 and "enable_gqa" in names:
        options["enable_gqa"] = True
    elif repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if "scale" in names:
        options["scale"] = scale
    else:
        query = query * (scale * query.shape[-1] ** 0.5)
    rows = [tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value)]
    bounds, longest = packing.bounds, packing.longest
    out: Tensor = attend(*rows, bounds, bounds, longest, longest, **options)
    return out.unsqueeze(0)
