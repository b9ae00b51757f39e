"""The processes of one trainer, as torchrun starts them: their ranks, their shares of the data, what they agree on.

What must stay true: all processes call the same methods in the same order and hold the same weights to the bit.
Each takes its share of a step's sequences and divides its losses by the targets of the whole batch. The sum of
gradients over processes is therefore the gradient of the batch, whatever their number. Only the first process
writes.

A single process (`ALONE`) never loads torch.distributed: every method returns its input.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from storage.errors import ConfigError
from tasks.training.process.restart import LostOthers, reason_of

_PATIENCE = datetime.timedelta(minutes=30)
"""Longest wait for another process, for example while the first reads all shards or writes the outputs."""
_MEETING = datetime.timedelta(minutes=5)
"""Longest wait for another process at the start, when each has only loaded torch."""
_BUCKET_BYTES = 64 << 20
"""Gradients summed in one call. It bounds the extra memory that the sum needs."""


@dataclass(frozen=True)
class Processes:
    """This process among `count`. `local_count` of them run on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, sequences: int) -> tuple[int, int]:
        """This process's sequences [first, end) of a step: contiguous, and as even as possible."""
        return self.rank * sequences // self.count, (self.rank + 1) * sequences // self.count

    def device(self, kind: str) -> str:
        """This process's own device, if all processes use the same kind."""
        return f"cuda:{self.local_rank}" if kind == "cuda" and self.count > 1 else kind

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        return flag if self.count == 1 else bool(self.total(np.array([float(flag)]))[0])

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes, element by element, in float64."""
        if self.count == 1:
            return values
        tensor = torch.from_numpy(values.astype(np.float64))
        with _together():
            _distributed().all_reduce(tensor)
        return tensor.numpy()

    def tell(self, value: Any) -> Any:
        """The first process's value (plain JSON). The values of the others are ignored."""
        if self.count == 1:
            return value
        held = [value if self.first else None]
        with _together():
            _distributed().broadcast_object_list(held, src=0)
        return held[0]

    def same(self, value: str, what: str) -> None:
        """Raise ConfigError in all processes unless all have this value. The error names the first process that
        differs.
        """
        if self.count == 1:
            return
        found: list[Any] = [None] * self.count
        with _together():
            _distributed().all_gather_object(found, (platform.node(), value))
        for rank, (host, its) in enumerate(found):
            if its != found[0][1]:
                raise ConfigError(
                    f"{what} of process {rank} ({host}) differ from those of process 0 ({found[0][0]}): {its}, not "
                    f"{found[0][1]}. Make all machines equal first."
                )

    def same_tensors(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise ConfigError in all processes unless all hold the same bits. Shards are skipped: no other process
        has them.
        """
        if self.count > 1:
            self.same(mark_of([tensor for tensor in tensors if not is_shard(tensor)]), what)

    def add_up_values(self, tensor: Tensor) -> None:
        """Replace this tensor by its sum over all processes, in place, on its device."""
        if self.count > 1:
            with _together():
                _distributed().all_reduce(tensor)

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes. A gradient that no process has stays None.

        Gradients of shards are left alone: they were summed on their way to the shard (sharding.py).
        """
        if self.count == 1:
            return
        own = [parameter for parameter in parameters if not is_shard(parameter)]
        anywhere = self.total(np.array([float(parameter.grad is not None) for parameter in own]))
        gradients = []
        for parameter, there in zip(own, anywhere, strict=True):
            if there and parameter.grad is None:
                held: Any = parameter  # bf16 weights may have float32 gradients
                parameter.grad = torch.zeros_like(parameter, dtype=getattr(held, "grad_dtype", None))
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with _together():
                _distributed().all_reduce(flat)
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, part in zip(bucket, torch.split(flat, sizes), strict=True):
                gradient.copy_(part.view_as(gradient))

    def begin_to_add_up(self, tensor: Tensor) -> Any:
        """Like `add_up_values`, but asynchronous: pass the result to `wait_for`. For several processes only."""
        with _together():
            return _distributed().all_reduce(tensor, async_op=True)

    def wait_for(self, under_way: Iterable[Any]) -> None:
        """Wait until these sums are complete on their devices."""
        with _together():
            for work in under_way:
                work.wait()

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.total(np.zeros(1))

    def leave(self) -> None:
        """Leave the process group at the end. All processes must call it."""
        if self.count > 1:
            _distributed().destroy_process_group()


ALONE = Processes()


def join_processes() -> Processes:
    """This process as torchrun's environment names it; waits for the others if there are any. Raises LostOthers.

    They meet under the number of torchrun's attempt, so entries of a failed attempt in the store mislead nobody.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if not torch.distributed.is_available():
        raise ConfigError("This build of torch cannot train with several processes; set processes to 1.")
    rank, address = int(os.environ["RANK"]), (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    cuda = torch.cuda.is_available() and _distributed().is_nccl_available()
    with _together():
        held = _distributed().TCPStore(*address, is_master=False, timeout=_MEETING)
        store = _distributed().PrefixStore(
            f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", held
        )
        _distributed().init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=count,
            timeout=_PATIENCE,
        )
    return Processes(
        rank=rank,
        count=count,
        local_rank=int(os.environ["LOCAL_RANK"]),
        local_count=int(os.environ["LOCAL_WORLD_SIZE"]),
    )


def is_shard(tensor: Tensor) -> bool:
    """Whether this process holds only a part of the tensor (a DTensor). Never loads torch.distributed."""
    return hasattr(tensor, "full_tensor")


def mark_of(tensors: Sequence[Tensor]) -> str:
    """A short checksum of float32 tensors. Almost any change of bits changes it; a few collisions are possible."""
    sums = [int(tensor.detach().float().view(torch.int32).sum(dtype=torch.int64)) for tensor in tensors]
    return f"{sum((place + 1) * one for place, one in enumerate(sums)) & (1 << 64) - 1:016x}"


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # every backend raises it, for a dead peer and for a silent one
        reason = reason_of(error)
        raise LostOthers(
            f"This process lost the others ({reason}). One of them died or its machine is gone."
        ) from error


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > _BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
