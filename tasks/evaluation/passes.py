"""How batches go through a model: several at a time on a CPU, and with the head at scored positions alone.

On a CPU each thread computes a batch of its own, alone, in place of all threads sharing every operation. No thread waits
for another at the end of each of a thousand small operations, so a busy machine slows a measurement no more than by what
is taken from it; and a batch has the same bits whatever the number of threads. Imports torch: import it inside `run`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

J = TypeVar("J")
T = TypeVar("T")

_AT_ONCE = 128
"""Positions whose logits are converted to fp32 and normalised together: 24 MiB of 49,152 words, which a cache holds."""
_GROWING_ROPE = {"dynamic", "longrope"}
"""Rotary positions that a forward pass changes in the model itself."""


class Positions(threading.local):
    """Where the head is applied in the pass of this thread: hidden states [batch, length] → logits [1, scored]."""

    rows: Tensor
    columns: Tensor


@contextmanager
def head_at_scored(model: Any) -> Iterator[Positions]:
    """Apply the head only at the positions that each thread writes into what is yielded."""
    wanted = Positions()

    def pick(module: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0][wanted.rows, wanted.columns].unsqueeze(0), *given[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield wanted
    finally:
        handle.remove()


def log_likelihoods(logits: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """Of each position, the target's log-likelihood in nats, and whether it is the most likely token.

    logits: [positions, vocabulary] in the model's precision; targets: [positions]. Sums are in fp32, a part at a time.
    """
    values: list[float] = []
    greedy: list[bool] = []
    for some, wanted in zip(logits.split(_AT_ONCE), targets.split(_AT_ONCE), strict=True):
        whole = some.float()
        picked = whole.gather(1, wanted[:, None])[:, 0] - whole.logsumexp(dim=1)
        values += picked.double().tolist()
        greedy += (whole.argmax(dim=1) == wanted).tolist()
    return values, greedy


def computed(model: Any, jobs: Sequence[J], compute: Callable[[J], T]) -> Iterator[T]:
    """`compute` of each job, in their order, in inference mode. A CPU's threads take a job each."""
    compute = torch.inference_mode()(compute)
    threads = _threads(model)
    if threads == 1:
        yield from map(compute, jobs)
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "measure", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(compute, jobs)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # also what threads begin with that come later


def _threads(model: Any) -> int:
    """How many jobs are computed at a time: on a CPU one for each thread of torch's, else one."""
    if model.device.type != "cpu":
        return 1
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = {rope.get("rope_type")} | {one.get("rope_type") for one in rope.values() if isinstance(one, dict)}
    return 1 if kinds & _GROWING_ROPE else torch.get_num_threads()
