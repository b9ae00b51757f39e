"""One optimizer step from one global batch.

What must stay true: the state after step s is a function of the state before it, of the specification and of the
resolved execution. The rate is a function of the step, the random state of seed and step, the batch of the step.
"""

from __future__ import annotations

import hashlib
import math
import resource
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from tasks.training.attention import Packing
from tasks.training.data import MicroBatch
from tasks.training.optimizer import prepare_step
from tasks.training.processes import Processes
from tasks.training.schedule import learning_rate
from tasks.training.segment import Segment


def take_step(segment: Segment) -> None:
    """One update from one global batch, and its line in the journal."""
    started = time.perf_counter()
    identity, progress, optimizer = segment.spec.identity, segment.progress, segment.optimizer
    step = progress.step + 1
    processes = segment.processes
    torch.manual_seed(_seed(identity.seed, step, processes.rank))
    targets = segment.corpus.targets(step)
    losses: list[tuple[MicroBatch, Tensor]] = []
    share = processes.share(identity.sequences_per_step)
    for batch in segment.corpus.micro_batches(step, segment.execution["micro_batch"], share):
        losses.append((batch, _forward_backward(segment, batch, targets)))
    processes.add_up(segment.model.whole.parameters())
    squared, sums, counts = _of_the_batch(losses, len(segment.corpus.sources), processes)
    loss = float(sums.sum() / targets)
    clip = identity.optimizer.clip or math.inf
    norm = float(torch.nn.utils.clip_grad_norm_(segment.model.whole.parameters(), clip))
    rate = learning_rate(identity.schedule, step)
    skipped = not (math.isfinite(loss) and math.isfinite(norm))
    if not skipped:
        prepare_step(optimizer, rate, step)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    progress.step = step
    progress.tokens += targets
    progress.computed += targets
    progress.skipped += skipped
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
    progress.loss = progress.loss if skipped else loss
    row: dict[str, Any] = {"step": step, "tokens": progress.tokens, "loss": loss}
    for source, total, count in zip(segment.corpus.sources, sums, counts, strict=True):
        row[f"loss/{source}"] = float(total / count) if count else None
    row |= {"lr": rate, "grad_norm": norm, "skipped": skipped}
    if segment.journal:
        segment.journal.append(row | _clock(segment, targets, squared, time.perf_counter() - started))


def _forward_backward(segment: Segment, batch: MicroBatch, targets: int) -> Tensor:
    """Add the gradient of (sum of losses / `targets`) of one row; returns its losses [tokens], float32.

    The head and the loss run over chunks of tokens, backward at once, so that the logits of one chunk alone are
    ever held in float32; the body's backward follows with all chunks' gradients.
    """
    model, device = segment.model, segment.model.device
    wanted = batch.targets.to(device, non_blocking=True)
    with model.autocast():
        hidden = model.hidden(
            batch.inputs.to(device, non_blocking=True),
            batch.positions.to(device, non_blocking=True),
            Packing.of(batch.documents, device),
        )
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    chunk = segment.execution["loss_chunk"]
    for part, target in zip(torch.split(hidden.detach(), chunk), torch.split(wanted, chunk), strict=True):
        part.requires_grad_(True)
        with model.autocast():
            logits = model.head(part)
        loss = functional.cross_entropy(logits.float(), target, reduction="none")
        torch.autograd.backward(loss.sum() / targets)
        losses.append(loss.detach())
        assert part.grad is not None
        gradients.append(part.grad)
    torch.autograd.backward(hidden, torch.cat(gradients))
    return torch.cat(losses)


def _of_the_batch(
    losses: list[tuple[MicroBatch, Tensor]], sources: int, processes: Processes
) -> tuple[int, np.ndarray, np.ndarray]:
    """Of all processes' micro-batches: squared lengths of documents, and by source the losses and the targets."""
    sums, counts = _by_source(losses, sources)
    squared = sum(length * length for batch, _ in losses for length in batch.documents)
    if processes.count > 1:
        squared, *both = processes.total(np.concatenate([[squared], sums, counts])).tolist()
        sums, counts = np.array(both[:sources]), np.array(both[sources:], dtype=np.int64)
    return int(squared), sums, counts


def _by_source(losses: list[tuple[MicroBatch, Tensor]], sources: int) -> tuple[np.ndarray, np.ndarray]:
    """(sum of losses, number of targets), both [sources], summed in float64 on the host."""
    sums, counts = np.zeros(sources), np.zeros(sources, dtype=np.int64)
    for batch, values in losses:
        host = values.cpu().numpy().astype(np.float64)
        np.add.at(sums, batch.piece_sources, np.add.reduceat(host, batch.piece_starts))
        np.add.at(counts, batch.piece_sources, np.diff(batch.piece_starts, append=len(host)))
    return sums, counts


def _clock(segment: Segment, targets: int, squared: int, seconds: float) -> dict[str, Any]:
    flops = segment.shape.flops(targets, squared)
    device = segment.model.device
    cuda = device.type == "cuda"
    peak = segment.peak_flops * segment.processes.count if segment.peak_flops else None
    return {
        "seconds": seconds,
        "tokens_per_second": targets / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "peak_memory": torch.cuda.max_memory_allocated(device)
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of a step's random draws (dropout): so no random state outlives a step."""
    named = f"{seed}:{step}:{rank}" if rank else f"{seed}:{step}"
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big") >> 1
