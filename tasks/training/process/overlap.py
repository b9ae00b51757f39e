"""Sums gradients over the processes while the last backward of a step still computes the remaining ones.

Gradients are summed in buckets of neighbouring parameters, last layers first, in the order of backward (Li et al.
2020, arXiv:2006.15704). What must stay true: buckets and their order depend on the model's shape alone. Every
process and every run therefore computes the same sums in the same order. For two processes, the bits equal those of
summing after backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from tasks.training.process.processes import Processes

BUCKET_BYTES = 25 << 20
"""The size that keeps a network busy, according to the paper's authors. Only the last bucket is waited for."""


class Reduction:
    """The sum of one model's gradients. The body's backward must come last; all processes must use it in the same
    way.
    """

    def __init__(self, whole: nn.Module, body: nn.Module, processes: Processes) -> None:
        self._processes = processes
        self._buckets = list(_buckets(list(whole.parameters())[::-1]))
        self._place = {p: place for place, bucket in enumerate(self._buckets) for p in bucket}
        inside = set(body.parameters())
        self._missing_at_first = [sum(p in inside for p in bucket) for bucket in self._buckets]
        self._missing: list[int] | None = None
        self._under_way: list[Any] = []
        self._lacking: set[nn.Parameter] = set()
        for parameter in inside:
            parameter.register_post_accumulate_grad_hook(self._made)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Wrap the last backward through the body: from here on, gradients are summed as they are made."""
        self._missing = list(self._missing_at_first)
        try:
            self._go_on()
            yield
        finally:
            self._missing = None

    def finish(self) -> None:
        """Complete the sums: every gradient is then the sum over all processes. A gradient that no process has
        stays None.
        """
        for bucket in self._buckets[len(self._under_way) :]:
            self._begin(bucket)
        anywhere = self._processes.total(np.array([p not in self._lacking for p in self._place], dtype=float))
        self._processes.wait_for(self._under_way)
        for parameter, there in zip(self._place, anywhere, strict=True):
            if not there:
                parameter.grad = None
        self._under_way, self._lacking = [], set()

    def _made(self, parameter: torch.Tensor) -> None:
        if self._missing is not None:
            self._missing[self._place[parameter]] -= 1  # type: ignore[index]
            self._go_on()

    def _go_on(self) -> None:
        """Start the sum of each complete bucket, in the fixed order."""
        assert self._missing is not None
        while (at := len(self._under_way)) < len(self._buckets) and self._missing[at] == 0:
            self._begin(self._buckets[at])

    def _begin(self, bucket: list[nn.Parameter]) -> None:
        """Make the bucket's gradients views of one tensor, and sum that tensor in place."""
        self._lacking.update(p for p in bucket if p.grad is None)
        gradients = [torch.zeros_like(p, dtype=_kind(p)) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        for parameter, part in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)
        self._under_way.append(self._processes.begin_to_add_up(flat))


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.nbytes > BUCKET_BYTES or _kind(parameter) != _kind(bucket[0])):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket


def _kind(parameter: nn.Parameter) -> Any:
    """A gradient's dtype; bf16 weights may have float32 gradients."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype
