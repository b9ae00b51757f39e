"""Models whose layers carry state (Mamba, LFM2, Qwen3.5): one document to a row, filled up on the right, no packing.

A state cannot be told where documents end, so documents of one row would not be apart. What is packed stays packed in
the manifests: the documents of a micro-batch are taken out of its row, computed as rows of their own, and their hidden
states are put back in their places. So the order of data, budgets, losses and resuming are those of every model. What
fills a row up is on the right, where no token of a causal model sees it, and has no target.

Rows of like length are one batch: each document has at least `LEAST` of the longest one's tokens, so at most a quarter
of what is computed is filling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

LEAST = 0.75
"""Share of a batch's longest document that its shortest one has at least."""
COST = "at most a quarter of what is computed is filling"
_PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


def carries_state(maker: Any, config: Any) -> bool:
    """Whether a transformers class of causal models has layers that carry a state from token to token."""
    kinds = getattr(config, "layer_types", None) or ()
    return bool(getattr(maker, "_is_stateful", False)) or not set(kinds) <= _PLAIN_LAYERS


def own_attention(maker: Any) -> str:
    """The name of the attention that transformers itself would choose for a class."""
    return "sdpa" if getattr(maker, "_supports_sdpa", False) else "eager"


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of the documents that are computed together, the longest first."""
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    batch: list[int] = []
    for number in order:
        if batch and lengths[number] < LEAST * lengths[batch[0]]:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def hidden_apart(body: nn.Module, row: Tensor, lengths: Sequence[int]) -> Tensor:
    """Last hidden states [tokens, width] of the documents of a row [1, tokens], each computed in a row of its own."""
    documents = torch.split(row[0], list(lengths))
    found: dict[int, Tensor] = {}
    for batch in batches(lengths):
        ids = nn.utils.rnn.pad_sequence([documents[number] for number in batch], batch_first=True)
        states = body(input_ids=ids, attention_mask=None, use_cache=False).last_hidden_state
        for state, number in zip(states, batch, strict=True):
            found[number] = state[: lengths[number]]
    return torch.cat([found[number] for number in range(len(lengths))])
