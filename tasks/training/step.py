"""One optimizer step from one global batch.

What must stay true: the state after step s is a function of the state before it, the specification and the resolved
execution. The learning rate and the batch depend on the step alone, the random state on seed, step and rank.
"""

from __future__ import annotations

import hashlib
import math
import resource
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tasks.training.data import MicroBatch
from tasks.training.feed import DeviceBatch
from tasks.training.process.processes import Processes
from tasks.training.process.sharding import clip_gradients, keep_pace
from tasks.training.segment import Segment
from tasks.training.state.recovery import BAD_STEPS_IN_A_ROW, JournalRow
from tasks.training.update.optimizer import prepare_step
from tasks.training.update.schedule import learning_rate


def take_step(segment: Segment) -> None:
    """Update the weights from one global batch, and append the step's line to the journal."""
    started, waited = time.perf_counter(), segment.feed.waited
    identity, progress, optimizer = segment.spec.identity, segment.progress, segment.optimizer
    step = progress.step + 1
    processes = segment.processes
    torch.manual_seed(_seed(identity.seed, step, processes.rank))
    targets = segment.corpus.targets(step)
    losses: list[tuple[MicroBatch, Tensor]] = []
    for index, row in enumerate(segment.feed.rows(step), start=1):
        last = index == segment.feed.count
        losses.append((row.batch, _forward_backward(segment, row, targets, last)))
    _add_up(segment)
    norms = clip_gradients(segment.model.whole.parameters(), identity.optimizer.clip, processes)
    norm, hosted = _fetched(norms, losses)  # the only time that the host waits for the device
    squared, sums, counts = _of_the_batch(hosted, len(segment.corpus.sources), processes)
    loss = float(sums.sum() / targets)
    rate = learning_rate(identity.schedule, step)
    skipped = not (math.isfinite(loss) and math.isfinite(norm))
    if not skipped:
        prepare_step(optimizer, rate, step)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    segment.model.loss.renew()

    progress.count(targets, None if skipped else loss)
    line: dict[str, Any] = {"step": step, "tokens": progress.tokens, "loss": loss}
    for source, total, count in zip(segment.corpus.sources, sums, counts, strict=True):
        line[f"loss/{source}"] = float(total / count) if count else None
    line |= {"lr": rate, "grad_norm": norm, "skipped": skipped}
    line["rolled_back"] = progress.skipped_in_a_row == BAD_STEPS_IN_A_ROW  # done by the loop
    if segment.journal:
        wait = segment.feed.waited - waited
        segment.journal.append(line | _clock(segment, targets, squared, time.perf_counter() - started, wait))


def pass_over(segment: Segment, row: JournalRow) -> None:
    """Pass over a recorded bad step without computing it: its batch counts, and its recorded row goes to the
    journal.
    """
    segment.progress.count(row["tokens"] - segment.progress.tokens, None)
    if segment.journal:
        segment.journal.append(row)


def _add_up(segment: Segment) -> None:
    """Sum every gradient over the processes, to that of the global batch."""
    processes, micro_batch = segment.processes, segment.execution["micro_batch"]
    if segment.reduction is not None:
        segment.reduction.finish()
        return
    if segment.sharded:
        keep_pace(segment.model, segment.spec.identity.sequences_per_step, micro_batch, processes)
    processes.add_up(segment.model.whole.parameters())


def _forward_backward(segment: Segment, row: DeviceBatch, targets: int, last: bool) -> Tensor:
    """Add one row's gradient of (sum of losses / `targets`). Returns its losses [tokens] in float32.

    Head and loss run over chunks of tokens (head.py), so only one chunk's logits are held in float32 at a time. The
    body's backward follows with the gradients of all chunks. The loss of padding is 0.
    During the backward of the `last` row, gradients are summed over the processes.
    """
    model = segment.model
    with model.autocast():
        hidden = model.hidden(row.inputs, row.positions, row.packing)
    chunk = segment.execution["loss_chunk"]
    parts = zip(torch.split(hidden.detach(), chunk), torch.split(row.targets, chunk), strict=True)
    found = [model.loss.backward(part, target, targets) for part, target in parts]
    losses, gradients = (list(values) for values in zip(*found, strict=True))
    with segment.reduction.begun() if last and segment.reduction else nullcontext():
        torch.autograd.backward(hidden, torch.cat(gradients))
    return torch.cat(losses)[: len(row.batch.targets)]


def _fetched(
    norm: Tensor, losses: list[tuple[MicroBatch, Tensor]]
) -> tuple[float, list[tuple[MicroBatch, np.ndarray]]]:
    """The gradient norm and all losses on the host, in one copy."""
    together = torch.cat([norm.reshape(1).float(), *(values for _, values in losses)]).cpu().numpy()
    ends = np.cumsum([len(values) for _, values in losses])
    parts = np.split(together[1:].astype(np.float64), ends[:-1])
    return float(together[0]), [(batch, part) for (batch, _), part in zip(losses, parts, strict=True)]


def _of_the_batch(
    losses: list[tuple[MicroBatch, np.ndarray]], sources: int, processes: Processes
) -> tuple[int, np.ndarray, np.ndarray]:
    """Totals over all processes: the squared lengths of documents; losses and targets by source."""
    sums, counts = _by_source(losses, sources)
    squared = sum(length * length for batch, _ in losses for length in batch.documents)
    if processes.count > 1:
        squared, *both = processes.total(np.concatenate([[squared], sums, counts])).tolist()
        sums, counts = np.array(both[:sources]), np.array(both[sources:], dtype=np.int64)
    return int(squared), sums, counts


def _by_source(losses: list[tuple[MicroBatch, np.ndarray]], sources: int) -> tuple[np.ndarray, np.ndarray]:
    """(sum of losses, number of targets), both [sources], summed in float64 on the host."""
    sums, counts = np.zeros(sources), np.zeros(sources, dtype=np.int64)
    for batch, values in losses:
        np.add.at(sums, batch.piece_sources, np.add.reduceat(values, batch.piece_starts))
        np.add.at(counts, batch.piece_sources, np.diff(batch.piece_starts, append=len(values)))
    return sums, counts


def _clock(segment: Segment, targets: int, squared: int, seconds: float, waited: float) -> dict[str, Any]:
    flops = segment.shape.flops(targets, squared)
    device = segment.model.device
    cuda = device.type == "cuda"
    peak = segment.peak_flops * segment.processes.count if segment.peak_flops else None
    return {
        "seconds": seconds,
        "tokens_per_second": targets / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "data_wait": waited / seconds,
        "peak_memory": torch.cuda.max_memory_allocated(device)
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of a step's random draws (dropout). No random state lives longer than a step."""
    named = f"{seed}:{step}:{rank}" if rank else f"{seed}:{step}"
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big") >> 1
