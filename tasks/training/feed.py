"""Rows for the model. One thread makes the next row while the model computes.

A row is a micro-batch on the model's device. For a compiled model every row has the same size: as many tokens as
its sequences could hold. The rest is filled with padding documents, which no loss counts, and the bounds have a
fixed length (attention.RowDocuments). Otherwise no padding is computed.

What must stay true: a row is a function of the step and of its index in the step. If a row was made ahead but is
not used (another step follows, the process dies), it is made again from the same integers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tasks.training.attention import RowDocuments
from tasks.training.data import Corpus, MicroBatch
from tasks.training.head import NO_TARGET

_HOST = torch.device("cpu")


@dataclass(frozen=True)
class DeviceBatch:
    """A micro-batch as tensors on the model's device. A copy to a GPU may still be under way in its queue."""

    batch: MicroBatch
    inputs: Tensor
    """[1, tokens] int64"""
    positions: Tensor
    """[1, tokens] int64"""
    targets: Tensor
    """[tokens] int64; NO_TARGET after the micro-batch's own targets."""
    packing: RowDocuments


@dataclass(frozen=True)
class FixedSize:
    """Sizes for the rows of a compiled model: tokens of a sequence, and the most documents of a row without padding."""

    sequence_length: int
    documents: int


class Feed:
    """The rows of one process's share of every step, in order."""

    def __init__(
        self,
        corpus: Corpus,
        device: torch.device,
        *,
        micro_batch: int,
        share: tuple[int, int],
        last_step: int,
        fixed: FixedSize | None = None,
    ) -> None:
        """`share`: sequences [first, end) of each step, cut into rows of `micro_batch` sequences, up to `last_step`."""
        self._corpus, self._device, self._fixed = corpus, device, fixed
        self._micro_batch, self._share, self._last_step = micro_batch, share, last_step
        self._ahead: tuple[tuple[int, int], Future[DeviceBatch]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self.count = -(-(share[1] - share[0]) // micro_batch)
        """Rows of a step."""
        self.waited = 0.0
        """Seconds that the model has waited for rows so far."""

    def rows(self, step: int) -> Iterator[DeviceBatch]:
        """The rows of one step. While a row is used, the next one is made, even if it belongs to the next step."""
        for index in range(self.count):
            began = time.perf_counter()
            row = self._take(step, index)
            follows = (step, index + 1) if index + 1 < self.count else (step + 1, 0)
            if follows[0] <= self._last_step:
                self._ahead = follows, self._thread.submit(self._make, *follows)
            if self._device.type != "cpu":
                row = _moved(row, self._device)
            self.waited += time.perf_counter() - began
            yield row

    def close(self) -> None:
        """End the thread. A row that was made ahead is dropped."""
        self._thread.shutdown(cancel_futures=True)

    def _take(self, step: int, index: int) -> DeviceBatch:
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return self._make(step, index)
        made = ahead[1].result()
        return made if ahead[0] == (step, index) else self._make(step, index)

    def _make(self, step: int, index: int) -> DeviceBatch:
        first = self._share[0] + index * self._micro_batch
        end = min(first + self._micro_batch, self._share[1])
        (batch,) = self._corpus.micro_batches(step, self._micro_batch, (first, end))
        if self._fixed is None:
            row = DeviceBatch(
                batch, batch.inputs, batch.positions, batch.targets, RowDocuments.of(batch.documents, _HOST)
            )
        else:
            row = _padded(batch, end - first, self._fixed)
        if self._device.type == "cpu":
            return row
        with torch.cuda.device(self._device):
            return _pinned(row)


def _padded(batch: MicroBatch, sequences: int, fixed: FixedSize) -> DeviceBatch:
    """The same documents, then padding up to `sequences` whole sequences: documents of their own, made of token 0."""
    length, tokens = fixed.sequence_length, len(batch.targets)
    missing = sequences * length - tokens
    padding = [length] * (missing // length) + [missing % length] * (missing % length > 0)
    inputs = torch.zeros(1, tokens + missing, dtype=torch.int64)
    positions = torch.empty_like(inputs)
    targets = torch.full((tokens + missing,), NO_TARGET, dtype=torch.int64)
    inputs[:, :tokens], positions[:, :tokens], targets[:tokens] = batch.inputs, batch.positions, batch.targets
    if padding:
        torch.cat([torch.arange(part) for part in padding], out=positions[0, tokens:])
    lengths = (*batch.documents, *padding)
    packing = RowDocuments.of_fixed_size(lengths, fixed.documents + sequences, length)
    return DeviceBatch(batch, inputs, positions, targets, packing)


def _pinned(row: DeviceBatch) -> DeviceBatch:
    """Move the row to page-locked memory: a GPU can then copy it while the host goes on."""
    inputs, positions, targets = (tensor.pin_memory() for tensor in (row.inputs, row.positions, row.targets))
    bounds = row.packing.bounds
    packing = row.packing if bounds is None else replace(row.packing, bounds=bounds.pin_memory())
    return DeviceBatch(row.batch, inputs, positions, targets, packing)


def _moved(row: DeviceBatch, device: torch.device) -> DeviceBatch:
    inputs, positions, targets = (
        tensor.to(device, non_blocking=True) for tensor in (row.inputs, row.positions, row.targets)
    )
    packing = row.packing.to(device) if row.packing.fixed else RowDocuments.of(row.packing.lengths, device)
    return DeviceBatch(row.batch, inputs, positions, targets, packing)
