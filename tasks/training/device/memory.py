"""What a step takes of the device's memory, and the rule that chooses micro-batch and checkpointing by it.

    peak = state + loss + kernels + tokens of the micro-batch x (held + working) x holes

state    parameters x optimizer.bytes_per_parameter (weights, gradients, moments, copies)
loss     one chunk of logits with its gradients, and the head's gradient before it is added up
held     what the body keeps for backward at the mode of checkpointing (activations.py counts it)
working  what backward needs beside it: gradients of one layer's activations, of checkpointed modes one layer computed
         again whole, and the gradient of the last hidden states

A rule of the model's shape and the device's memory, never of timing. What it takes for known of speed is stated in
`cost`: constants, so that every run on such a device chooses alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.training.device.activations import Activations
from tasks.training.model import Shape
from tasks.training.recompute import FULL, MODES, NONE, SELECTIVE
from tasks.training.spec import AUTO, BF16_WEIGHTS, FP32, SegmentSpec
from tasks.training.update.optimizer import bytes_per_parameter

MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Of a micro-batch: on CPU enough for the products and little enough for the caches; no gain expected beyond on a GPU."""
SHARE = {"cpu": 0.6, "cuda": 0.85}
"""Of the memory that a step may take: the rest is for the allocator and kernels; on CPU for other programs too."""
PROCESS_BYTES = 600 << 20
"""Of the host: Python, torch and transformers themselves, before the first weight."""
HOLES = {"cpu": 1.25, "cuda": 1.0}
"""Of activations: rows of ever other documents leave holes in the C library's heap (with this, predictions were 1.01 to
1.24 times what was measured: benchmarks/results.md). torch's allocator on a GPU is counted at what it hands out; its own
holes are within what `SHARE` leaves."""
KERNELS_BYTES = 300 << 20
"""For each thread on CPU in bf16: attention's kernels are made for each length of document and kept. Room for many lengths;
a few steps need little of it, float32 nothing."""
RECOMPUTING: Mapping[str, float] = {NONE: 1.0, SELECTIVE: 1.1, FULL: 4 / 3}
"""Time of a step beside `none`. Full: a forward (2 of 6 operations a parameter) is done twice; selective: elementwise
operations alone, a tenth is assumed."""
OVERHEAD_TOKENS = {"cpu": 128, "cuda": 2048}
"""What launching a micro-batch costs, in tokens that could have been computed meanwhile: assumed."""
_LOSS_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
"""Of float32 logits at once, at most; on CPU what a cache holds."""

Count = Callable[[str], Activations]
"""The activations at a mode."""


@dataclass(frozen=True)
class Device:
    """Where a step is to fit. `kind` is cpu or cuda, `memory` in bytes, of which `processes` on one host share a CPU's."""

    kind: str
    memory: int
    processes: int = 1
    threads: int = 1
    """Of each process, on CPU."""

    @property
    def usable(self) -> float:
        """Bytes for one process."""
        if self.kind == "cpu":
            return SHARE["cpu"] * self.memory / self.processes - PROCESS_BYTES
        return SHARE["cuda"] * self.memory

    def loss_chunk(self, vocabulary: int) -> int:
        """Tokens whose float32 logits are held at once, in steps of 256: at most a 64th of the memory."""
        most = min(_LOSS_BYTES[self.kind], self.memory // 64)
        return max(256, most // (4 * vocabulary) // 256 * 256)


@dataclass(frozen=True)
class Step:
    """Of one process: what it takes, for any micro-batch and mode. Memory in bytes."""

    shape: Shape
    identity: SegmentSpec
    device: Device
    count: Count
    shards: int = 1
    """Processes that weights, gradients and moments are shared out among (`sharding: full`)."""

    @property
    def state(self) -> float:
        """Weights, gradients, moments, copies."""
        share = self.shape.embeddings / self.shape.parameters
        whole = bytes_per_parameter(self.identity, share) * self.shape.parameters
        if self.shards == 1:
            return whole
        outside = self.shape.embeddings / self.shape.parameters  # whole everywhere (sharding.py)
        return whole * (outside + (1 - outside) / self.shards)

    @property
    def loss(self) -> float:
        """Logits of a chunk, their float32 copy, its logarithms and gradients; the head's gradient and its copies."""
        wide = 4 if self.identity.precision == FP32 else 2
        chunk = self.device.loss_chunk(self.shape.vocabulary)
        return self.shape.vocabulary * (chunk * (12 + wide) + self.shape.width * (4 + wide))

    def token(self, mode: str) -> float:
        """For each token of the micro-batch: held and working."""
        layer = self.count(NONE).token / self.shape.layers
        again = layer if mode != NONE else 0.0
        wide = 2 if self.identity.precision == BF16_WEIGHTS else 4
        held = self.count(mode).token + again + layer + 2 * wide * self.shape.width
        return HOLES[self.device.kind] * held

    @property
    def kernels(self) -> float:
        """Of what is made for the lengths of documents."""
        narrow = self.identity.precision != FP32 and self.device.kind == "cpu"
        return KERNELS_BYTES * self.device.threads if narrow else 0.0

    @property
    def _fixed(self) -> float:
        return self.state + self.loss + self.kernels

    def peak(self, mode: str, sequences: int) -> float:
        """Of a micro-batch of so many sequences."""
        return self._fixed + sequences * self.identity.sequence_length * self.token(mode)

    def fits(self, mode: str) -> int:
        """Sequences of the largest micro-batch; 0: not even one."""
        left = self.device.usable - self._fixed
        return max(0, int(left // (self.token(mode) * self.identity.sequence_length)))


def choose(step: Step, share: int, mode: Any, micro_batch: Any) -> tuple[str, int]:
    """(mode, sequences of a micro-batch) for a process with `share` sequences of each batch.

    What is not `auto` is taken as given. The cheapest by `cost` of what fits; where nothing fits, what takes least:
    it is for the device to refuse.
    """
    modes = MODES if mode == AUTO else (mode,)
    most = max(1, MOST_TOKENS[step.device.kind] // step.identity.sequence_length)
    found: list[tuple[float, str, int]] = []
    for one in modes:
        fits = step.fits(one)
        micro = _even(share, max(1, min(fits, most))) if micro_batch == AUTO else min(int(micro_batch), share)
        if micro <= fits:
            found.append((cost(one, micro * step.identity.sequence_length, step.device.kind), one, micro))
        if found and _even(share, most) == found[0][2]:
            break  # the fastest mode at the largest micro-batch: nothing can be cheaper
    if found:
        _, chosen, micro = min(found, key=lambda one: one[0])
        return chosen, micro
    return modes[-1], 1 if micro_batch == AUTO else min(int(micro_batch), share)


def cost(mode: str, tokens: int, kind: str) -> float:
    """Time for each token, relative to no checkpointing and micro-batches without end: `RECOMPUTING` of the mode
    times 1 + `OVERHEAD_TOKENS` / tokens of the micro-batch."""
    return RECOMPUTING[mode] * (1 + OVERHEAD_TOKENS[kind] / tokens)


def _even(share: int, most: int) -> int:
    """As few micro-batches as `most` sequences allow, of nearly one size."""
    return math.ceil(share / math.ceil(share / most))


def host_memory() -> int:
    """Bytes of memory that this process may ever have: the machine's, or the least limit of its control groups.

    Never what is free at the moment: that would choose by what else happens to run.
    """
    total = 0
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) << 10
    return min([total, *_limits()])


def _limits() -> list[int]:
    """Of the control groups that this process is in, version 2 and 1, and of those above them."""
    found: list[int] = []
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        group = root / place.lstrip("/")
        for directory in (group, *group.parents):
            if not directory.is_relative_to(root):
                break
            try:
                found.append(int((directory / name).read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue  # no limit here ("max"), or a group that cannot be seen from in here
    return [limit for limit in found if limit > 0]
