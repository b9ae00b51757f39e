"""Attention in blocks is attention: in any row of documents, with shared heads, and no document touches another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from tasks.training import attention, blocks
from tasks.training.attention import RowDocuments
from tests.support.training.world import World, make_corpus, run

HEADS, SIZE = 6, 16
ROWS = {
    "whole blocks": (128, 128),
    "one of four blocks": (512,),
    "of every kind": (3, 64, 65, 128, 200, 1, 300, 512, 40),
    "some too long": (100, 520, 520, 77, 600, 30),
    "all too long": (513, 700),
}


def rows_of(tokens: int, groups: int, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    return [
        torch.randn(1, tokens, heads, SIZE).bfloat16().transpose(1, 2).requires_grad_(True)
        for heads in (HEADS, groups, groups)
    ]


def by_document(rows: list[Tensor], lengths: tuple[int, ...]) -> Tensor:
    """In float32, each document by itself."""
    wide = [tensor.float() for tensor in rows]
    repeats = HEADS // rows[1].shape[1]
    wide[1:] = [tensor.repeat_interleave(repeats, 1) for tensor in wide[1:]]
    parts = zip(*(tensor.split(list(lengths), 2) for tensor in wide), strict=True)
    found = [functional.scaled_dot_product_attention(*part, is_causal=True, scale=0.3) for part in parts]
    return torch.cat([part.transpose(1, 2) for part in found], 1)


def in_blocks(rows: list[Tensor], lengths: tuple[int, ...]) -> Tensor:
    packing = RowDocuments.of_fixed_size(lengths, len(lengths) + 3, max(lengths))
    assert packing.bounds is not None
    out: Tensor = attention.by_bounds(*rows, packing.bounds, 0.3)[0]
    return out


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("row", ROWS)
def test_it_is_attention(row: str, groups: int) -> None:
    lengths = ROWS[row]
    rows = rows_of(sum(lengths), groups)
    out, wanted = in_blocks(rows, lengths), by_document(rows, lengths)
    upstream = torch.randn(wanted.shape).bfloat16()
    found, others = (torch.autograd.grad(o, rows, upstream.to(o.dtype)) for o in (out, wanted))
    for one, other in zip((out, *found), (wanted, *others), strict=True):
        assert one.dtype == torch.bfloat16 and one.shape == other.shape
        difference = (one.float() - other.float()).norm() / other.float().norm()
        assert difference < 6e-3, difference  # bf16 rounds to 2e-3


def test_no_bit_depends_on_the_documents_around() -> None:
    """The same documents alone, and in rows where others stand before, between and after them."""
    own = rows_of(300, 2)
    upstream = torch.randn(1, 300, HEADS, SIZE).bfloat16()
    out = in_blocks(own, (300,))
    alone = (out, *torch.autograd.grad(out, own, upstream))
    for before, after in ((7, 290), (300, 64), (513, 130)):
        lengths = (before, 300, after)
        around = [rows_of(length, 2, seed=length) for length in (before, after)]
        rows = [torch.cat(parts, 2) for parts in zip(around[0], own, around[1], strict=True)]
        out = in_blocks(rows, lengths)
        whole = torch.ones(1, sum(lengths), HEADS, SIZE).bfloat16()
        whole[:, before : before + 300] = upstream
        found = (out.transpose(1, 2), *torch.autograd.grad(out, rows, whole))
        for one, other in zip(found, (alone[0].transpose(1, 2), *alone[1:]), strict=True):
            assert torch.equal(one[:, :, before : before + 300], other)


def test_autocast_narrows_no_scores() -> None:
    lengths = (200, 300)
    rows = rows_of(500, 2)
    plain = in_blocks(rows, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(in_blocks(rows, lengths), plain)


def test_torchs_own_setting_of_products_is_left_as_it_was() -> None:
    mkldnn: object = torch.backends.mkldnn
    before = mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    wide, other = torch.randn(64, 64), torch.randn(64, 64)
    product = wide @ other
    in_blocks(rows_of(64, 2), (64,))
    assert mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
    assert torch.equal(wide @ other, product)


def test_documents_of_as_many_blocks_are_one_batch() -> None:
    row = blocks.row_of((100, 128, 300, 310, 20, 600, 600, 512), 512)
    assert [(batch.documents, batch.blocks, batch.block) for batch in row.batches] == [
        (1, 1, 64),
        (2, 1, 128),
        (2, 3, 128),
        (1, 4, 128),
    ]
    assert row.long == (blocks.Stretch(858, 2, 600),)
    assert blocks.row_of((128, 128), 512).places is None  # nothing is moved


@pytest.mark.slow
def test_blocks_train_as_calls_by_document_do(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 steps in bf16: losses differ as little as those of another order of summing, here of the micro-batch."""
    manifest, shards, _ = make_corpus(tmp_path, documents=600)
    paths = {
        "paths__manifests": [str(manifest)],
        "paths__shards": {d: str(path) for d, path in shards.items()},
    }
    long = {"identity__precision": "bf16", "identity__last_step": 200, "identity__sequences_per_step": 2}

    def losses(name: str, micro_batch: int = 2) -> np.ndarray:
        work = run(
            world,
            tmp_path / name,
            **paths,
            **long,
            execution__micro_batch=micro_batch,
            execution__checkpoint_every=1000,
        )
        found: np.ndarray = pq.read_table(work / "journal" / "journal.parquet")["loss"].to_numpy()
        return found

    by_blocks, other = losses("blocks"), losses("micro", 1)
    monkeypatch.setattr(blocks, "LONGEST", 0)
    by_call = losses("calls")
    assert not np.array_equal(by_blocks, by_call) and by_blocks[-1] < by_blocks[0] - 1
    assert np.abs(by_blocks - by_call).mean() < 2 * np.abs(by_blocks - other).mean()
