"""Causal attention of short documents on a CPU in bf16, as products of blocks.

torch's fused attention on a CPU computes many small products. Documents of up to `LONGEST` tokens are faster as batched
products of 128 queries with all keys up to their own: documents of as many blocks are one batch, heads that share keys
are more rows of one product. Scores and their softmax are float32; probabilities are bf16 where they are multiplied.
What must stay true: no bit of a document depends on the other documents of its row.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

LONGEST = 512
"""Tokens of the longest document that is computed in blocks. At 1,024, fused attention is as fast."""
_BLOCK = 128
_SMALL = 64
"""Documents of so few tokens have a block of their own size."""


@dataclass(frozen=True)
class Batch:
    """Documents of the same number of blocks, each filled up to whole blocks."""

    documents: int
    blocks: int
    block: int
    """Tokens of a block."""
    tokens: Tensor | None
    """Where each token lies in the row, [documents * blocks * block]; None if the row is just that. What fills up is
    token 0, which no earlier query sees."""
    filling: Tensor
    """Places in the batch that fill up."""


@dataclass(frozen=True)
class Stretch:
    """Documents of one length, one after the other."""

    first: int
    """Where they begin in the row."""
    documents: int
    tokens: int
    """Of each."""


@dataclass(frozen=True)
class Row:
    """How a row's documents are computed."""

    batches: tuple[Batch, ...]
    places: Tensor | None
    """Where each token of short documents lies in the batches, one after the other, in the order of the row."""
    short: Tensor
    """Tokens of the row that belong to short documents."""
    long: tuple[Stretch, ...]
    """The other documents."""


@functools.lru_cache(maxsize=64)
def row_of(lengths: tuple[int, ...], longest: int) -> Row:
    """The batches of a row's documents of up to `longest` tokens. Remembered, because every layer asks."""
    starts = [0, *accumulate(lengths)]
    kinds: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    long: list[Stretch] = []
    for start, length in zip(starts, lengths, strict=False):
        if length > longest:
            before = long[-1] if long else Stretch(0, 0, 0)
            if before.tokens == length and before.first + before.documents * length == start:
                long[-1] = Stretch(before.first, before.documents + 1, length)
            else:
                long.append(Stretch(start, 1, length))
        elif length:
            kinds[(1, _SMALL) if length <= _SMALL else (-(-length // _BLOCK), _BLOCK)].append((start, length))
    batches: list[Batch] = []
    places = torch.full((starts[-1],), -1, dtype=torch.int64)
    filled = 0
    for (blocks, block), documents in sorted(kinds.items()):
        size = blocks * block
        tokens = torch.full((len(documents), size), -1, dtype=torch.int64)
        for number, (start, length) in enumerate(documents):
            tokens[number, :length] = torch.arange(start, start + length)
            first = filled + number * size
            places[start : start + length] = torch.arange(first, first + length)
        flat = tokens.view(-1)
        filling = (flat < 0).nonzero().squeeze(1)
        batches.append(Batch(len(documents), blocks, block, flat.clamp(min=0), filling))
        filled += len(flat)
    short = (places >= 0).nonzero().squeeze(1)
    places = places[short]
    if len(batches) == 1 and torch.equal(places, torch.arange(starts[-1])) and filled == starts[-1]:
        whole = batches[0]
        batches = [Batch(whole.documents, whole.blocks, whole.block, None, whole.filling)]
        return Row(tuple(batches), None, short, tuple(long))
    return Row(tuple(batches), places, short, tuple(long))


def forward(query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float) -> Tensor:
    """Attention of the short documents, [1, their tokens, heads, size].

    query is [1, heads, tokens, size]; key and value are [1, groups, tokens, size], all in bf16.
    """
    found = []
    query, scale = _scaled(query, scale)
    for batch in row.batches:
        queries, keys, values = _queries(query, batch, key.shape[1]), _keys(key, batch), _keys(value, batch)
        out = torch.empty_like(queries)
        with _scores_in_float32():
            wide = queries.float(), keys.float()
            for at in range(batch.blocks):
                end = (at + 1) * batch.block
                chance = torch.softmax(_scores(wide[0][at], wide[1][:, :end], batch, scale), -1)
                torch.bmm(chance.to(values.dtype), values[:, :end], out=out[at])
        found.append(_tokens(out, batch, query.shape[1]))
    return _in_order(found, row.places).unsqueeze(0)


def backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, row: Row, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the short documents' query, key and value, each [1, heads or groups, their tokens, size].

    `gradient` is that of the output, [1, tokens, heads, size] of the whole row.
    """
    heads, groups = query.shape[1], key.shape[1]
    (query, left), whole = _scaled(query, scale), scale
    of_query, of_key, of_value = list[Tensor](), list[Tensor](), list[Tensor]()
    for batch in row.batches:
        queries, keys, values = _queries(query, batch, groups), _keys(key, batch), _keys(value, batch)
        upstream = _queries(gradient.transpose(1, 2), batch, groups, fill=True)
        by_query = torch.empty_like(queries)
        by_key, by_value = (torch.zeros(keys.shape, dtype=torch.float32) for _ in range(2))
        with _scores_in_float32():
            wide = queries.float(), keys.float(), values.float(), upstream.float()
            for at in range(batch.blocks):
                end = (at + 1) * batch.block
                chance = torch.softmax(_scores(wide[0][at], wide[1][:, :end], batch, left), -1)
                of_chance = torch.bmm(wide[3][at], wide[2][:, :end].transpose(1, 2))
                by_value[:, :end] += torch.bmm(chance.to(values.dtype).transpose(1, 2), upstream[at])
                of_scores = torch._softmax_backward_data(of_chance, chance, -1, torch.float32)
                narrow = (of_scores if left == 1.0 else of_scores.mul_(left)).to(values.dtype)
                torch.bmm(narrow, keys[:, :end], out=by_query[at])
                by_key[:, :end] += torch.bmm(narrow.transpose(1, 2), queries[at])
        if left != whole:
            by_query.mul_(whole)
        of_query.append(_tokens(by_query, batch, heads))
        for by, of in ((by_key, of_key), (by_value, of_value)):
            of.append(_tokens(by.to(key.dtype).unsqueeze(0), batch, groups, blocks=1))
    found = (_in_order(parts, row.places) for parts in (of_query, of_key, of_value))
    first, second, third = (part.transpose(0, 1).unsqueeze(0) for part in found)
    return first, second, third


def _scaled(query: Tensor, scale: float) -> tuple[Tensor, float]:
    """Scaled queries and what is left to scale scores with. A power of two, as with heads of 64, rounds nothing: so one
    pass over the queries takes the place of one over all scores, bit for bit."""
    return (query * scale, 1.0) if math.frexp(scale)[0] == 0.5 else (query, scale)


def _queries(rows: Tensor, batch: Batch, groups: int, fill: bool = False) -> Tensor:
    """[1, heads, tokens, size] -> [blocks, documents * groups, heads of a group * block, size]; `fill`: with zeros."""
    heads, size = rows.shape[1], rows.shape[3]
    picked = rows[0] if batch.tokens is None else rows[0].index_select(1, batch.tokens)
    if fill and len(batch.filling):
        picked = picked.index_fill(1, batch.filling, 0.0)
    cut = picked.unflatten(1, (batch.documents, batch.blocks, batch.block))
    cut = cut.unflatten(0, (groups, heads // groups)).permute(3, 2, 0, 1, 4, 5)
    return cut.reshape(batch.blocks, batch.documents * groups, heads // groups * batch.block, size)


def _keys(rows: Tensor, batch: Batch) -> Tensor:
    """[1, groups, tokens, size] -> [documents * groups, blocks * block, size]."""
    picked = rows[0] if batch.tokens is None else rows[0].index_select(1, batch.tokens)
    cut = picked.unflatten(1, (batch.documents, batch.blocks * batch.block)).transpose(0, 1)
    return cut.reshape(-1, batch.blocks * batch.block, rows.shape[3])


def _scores(queries: Tensor, keys: Tensor, batch: Batch, scale: float) -> Tensor:
    """Scaled scores [documents * groups, heads of a group * block, keys]; minus infinity at later keys."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if scale != 1.0:
        scores.mul_(scale)
    last = scores.unflatten(1, (-1, batch.block))[..., -batch.block :]
    last.add_(_later(batch.block))
    return scores


@functools.lru_cache(maxsize=4)
def _later(block: int) -> Tensor:
    return torch.full((block, block), float("-inf")).triu(1)


def _tokens(blocks_of: Tensor, batch: Batch, heads: int, blocks: int | None = None) -> Tensor:
    """The inverse of `_queries` and `_keys`: [documents * blocks * block, heads, size]."""
    blocks = blocks or batch.blocks
    groups = blocks_of.shape[1] // batch.documents
    cut = blocks_of.unflatten(1, (batch.documents, groups)).unflatten(3, (heads // groups, -1))
    return cut.permute(1, 0, 4, 2, 3, 5).reshape(-1, heads, blocks_of.shape[-1])


def _in_order(found: list[Tensor], places: Tensor | None) -> Tensor:
    together = found[0] if len(found) == 1 else torch.cat(found)
    return together if places is None else together.index_select(0, places)


@contextmanager
def _scores_in_float32() -> Iterator[None]:
    """Products of float32 tensors multiply in bf16, which the factors are, and sum and return float32."""
    mkldnn: Any = torch.backends.mkldnn
    held = mkldnn.matmul
    before = held.fp32_precision
    held.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", enabled=False):  # it would narrow them
            yield
    finally:
        held.fp32_precision = before
