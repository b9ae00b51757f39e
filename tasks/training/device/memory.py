"""Predicts the device memory of a step, and chooses micro-batch and gradient checkpointing by it.

    peak = state + loss + kernels + tokens of the micro-batch x (held + working) x holes

state    parameters x optimizer.bytes_per_parameter (weights, gradients, moments, copies)
loss     one chunk of logits with its gradients, and the head's gradient before it is added up
kernels  attention's kernels on CPU, made for each length of document
held     what the body keeps for backward at the mode of checkpointing (activations.py counts it)
working  what backward needs besides: gradients of one layer's activations, one recomputed layer if the mode
         recomputes, and the gradient of the last hidden states

The rule depends on the model's shape and the device's memory, never on timing. Its assumptions about speed are the
constants in `cost`, so every run on such a device chooses alike.
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

MOST_TOKENS = {"cpu": 4096, "cuda": 131072}
"""Most tokens of a micro-batch. On CPU: enough for the products, small enough for the caches. On a GPU: more is not
expected to gain anything.
"""
SHARE = {"cpu": 0.6, "cuda": 0.85}
"""Share of the memory that a step may use. The rest is for the allocator and kernels, on CPU also for other
programs.
"""
PROCESS_BYTES = 600 << 20
"""Host memory of Python, torch and transformers before the first weight is loaded."""
HOLES = {"cpu": 1.25, "cuda": 1.0}
"""Factor on activations. On CPU, rows whose documents keep changing leave holes in the C library's heap; with this
factor, predictions were 1.01 to 1.24 times the measured memory (benchmarks/results.md). On a GPU, memory is
counted as torch's allocator hands it out; the allocator's own holes fit into what `SHARE` leaves.
"""
KERNELS_BYTES = 300 << 20
"""For each thread on CPU in bf16: attention's kernels are made for each length of document and then kept. This
leaves room for many lengths. A few steps need little of it; float32 needs none.
"""
RECOMPUTING: Mapping[str, float] = {NONE: 1.0, SELECTIVE: 1.1, FULL: 4 / 3}
"""Time of a step relative to `none`. full: one forward (2 of 6 operations per parameter) is done twice. selective:
only elementwise operations are; a tenth is assumed.
"""
OVERHEAD_TOKENS = {"cpu": 128, "cuda": 2048}
"""Assumed cost of launching a micro-batch, as the tokens that could be computed meanwhile."""
_LOSS_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
"""Bytes of float32 logits at once; on CPU as much as a cache holds."""
_MOST_CHUNK = 1024
"""On CPU: more tokens gained nothing, for vocabularies of 8,192 to 50,257 words and widths of 256 to 768."""

Count = Callable[[str], Activations]
"""Returns the activations at a mode."""


@dataclass(frozen=True)
class Device:
    """Where a step must fit. `kind` is cpu or cuda, `memory` is in bytes. `processes` on one host share a CPU's
    memory.
    """

    kind: str
    memory: int
    processes: int = 1
    threads: int = 1
    """Threads of each process, on CPU."""

    @property
    def usable(self) -> float:
        """Bytes that one process may use."""
        if self.kind == "cpu":
            return SHARE["cpu"] * self.memory / self.processes - PROCESS_BYTES
        return SHARE["cuda"] * self.memory

    def loss_chunk(self, vocabulary: int, width: int) -> int:
        """Tokens whose float32 logits are held at once: a power of two, at least 256, at most a 64th of the memory.

        On CPU as many as the model is wide, so that adding a chunk's gradient of the head (vocabulary times width
        numbers) is little beside making it, or what a cache holds if that is more. Powers of two divide most rows into
        equal chunks.
        """
        most = self.memory // 64
        if self.kind == "cpu":
            tokens = max(min(width, _MOST_CHUNK), _LOSS_BYTES["cpu"] // (4 * vocabulary))
            wanted = 1 << (tokens - 1).bit_length()
        else:
            wanted = _LOSS_BYTES[self.kind] // (4 * vocabulary)
        return max(256, 1 << (min(wanted, most // (4 * vocabulary)) | 1).bit_length() - 1)


@dataclass(frozen=True)
class Step:
    """The memory in bytes that a step takes in one process, for any micro-batch and mode."""

    shape: Shape
    identity: SegmentSpec
    device: Device
    count: Count
    shards: int = 1
    """Number of processes that weights, gradients and moments are sharded over (`sharding: full`)."""

    @property
    def state(self) -> float:
        """Weights, gradients, moments and copies."""
        share = self.shape.embeddings / self.shape.parameters
        whole = bytes_per_parameter(self.identity, share) * self.shape.parameters
        if self.shards == 1:
            return whole
        outside = self.shape.embeddings / self.shape.parameters  # whole in every process (sharding.py)
        return whole * (outside + (1 - outside) / self.shards)

    @property
    def loss(self) -> float:
        """A chunk's logits with their float32 copy, log-probabilities and gradients; the head's gradient and its
        copies.
        """
        wide = 4 if self.identity.precision == FP32 else 2
        chunk = self.device.loss_chunk(self.shape.vocabulary, self.shape.width)
        return self.shape.vocabulary * (chunk * (12 + wide) + self.shape.width * (4 + wide))

    def token(self, mode: str) -> float:
        """For each token of the micro-batch: held and working memory."""
        layer = self.count(NONE).token / self.shape.layers
        again = layer if mode != NONE else 0.0
        wide = 2 if self.identity.precision == BF16_WEIGHTS else 4
        held = self.count(mode).token + again + layer + 2 * wide * self.shape.width
        return HOLES[self.device.kind] * held

    @property
    def kernels(self) -> float:
        """Kernels that are made for the lengths of documents."""
        narrow = self.identity.precision != FP32 and self.device.kind == "cpu"
        return KERNELS_BYTES * self.device.threads if narrow else 0.0

    @property
    def _fixed(self) -> float:
        return self.state + self.loss + self.kernels

    def peak(self, mode: str, sequences: int) -> float:
        """Peak for a micro-batch of this many sequences."""
        return self._fixed + sequences * self.identity.sequence_length * self.token(mode)

    def fits(self, mode: str) -> int:
        """Sequences of the largest micro-batch that fits; 0 if not even one does."""
        left = self.device.usable - self._fixed
        return max(0, int(left // (self.token(mode) * self.identity.sequence_length)))


def choose(step: Step, share: int, mode: Any, micro_batch: Any) -> tuple[str, int]:
    """(mode, sequences of a micro-batch) for a process that has `share` sequences of each batch.

    What is not `auto` is taken as given. Of everything that fits, the cheapest by `cost` is chosen. If nothing
    fits, the choice is what takes least memory, and the device decides whether it fits.
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
            break  # the fastest mode at the largest micro-batch is the cheapest of all
    if found:
        _, chosen, micro = min(found, key=lambda one: one[0])
        return chosen, micro
    return modes[-1], 1 if micro_batch == AUTO else min(int(micro_batch), share)


def cost(mode: str, tokens: int, kind: str) -> float:
    """Time for each token, relative to `none` with an infinite micro-batch.

    It is `RECOMPUTING` of the mode, times 1 + `OVERHEAD_TOKENS` / tokens of the micro-batch.
    """
    return RECOMPUTING[mode] * (1 + OVERHEAD_TOKENS[kind] / tokens)


def _even(share: int, most: int) -> int:
    """Sequences of a micro-batch: as few micro-batches as `most` allows, of nearly equal size."""
    return math.ceil(share / math.ceil(share / most))


def host_memory() -> int:
    """Bytes that this process may ever use: the machine's memory, or the lowest limit of its control groups.

    It is never the memory that is free now: other programs would then influence the choice.
    """
    total = 0
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) << 10
    return min([total, *_limits()])


def _limits() -> list[int]:
    """Memory limits of this process's control groups, versions 1 and 2, and of the groups above them."""
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
                continue  # no limit here ("max"), or a group that is not visible from here
    return [limit for limit in found if limit > 0]
