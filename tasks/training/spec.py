"""The trainer's specification: every field once, with its type, default, bounds and description.

The flow builds these dataclasses. pydantic validates those that are sections of the flow's configuration
(tasks/models/config.py). The trainer reads them from spec.json without pydantic (read_spec.py). combinations.py
refuses settings that do not go together.

`SegmentSpec` decides the output's bytes; `Identity` adds what they are made from. `Paths` and `Execution` do not
decide them, with one exception: the resolved execution (device, micro-batch, threads, …) affects rounding. It is
therefore fixed in the work directory (device/execution.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from storage.fields import STRICT, execution, identity
from storage.units import Bounds, Count, Real, Seconds, Whole, Written, auto_or_count, auto_or_whole

AUTO: Final = "auto"
FP32: Final = "fp32"
BF16: Final = "bf16"
BF16_WEIGHTS: Final = "bf16_weights"
EIGHT_BIT: Final = "8bit"

Precision: TypeAlias = Literal["bf16", "fp32", "bf16_weights"]
Kind: TypeAlias = Literal["trunk", "decay", "rewarm", "pretrain"]
Share: TypeAlias = Annotated[Real, Bounds(ge=0, lt=1)]
"""From 0 to below 1."""
Several: TypeAlias = Annotated[Whole, Bounds(ge=2, le=1024)]
"""From 2 to 1024."""


def as_mode(value: Any) -> Any:
    """A mode of gradient checkpointing. Older configurations say true for `full` and false for `none`."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


@dataclass(frozen=True)
class WsdSchedule:
    """Warm-up, constant rate, then (1 - sqrt) decay from `decay_from` to `decay_to`. Steps count from the line's
    start.
    """

    peak: float = identity(gt=0, description="highest rate")
    warmup_steps: int = identity(ge=0, description="steps of linear warm-up")
    decay_from: int | None = identity(None, ge=0, description="last step at the full rate; null: no decay")
    decay_to: int | None = identity(None, ge=0, description="last step of the decay; with decay_from")
    kind: Literal["wsd"] = identity("wsd", description="the schedule's name")


@dataclass(frozen=True)
class CosineSchedule:
    """Linear (re-)warm-up after `first_step`, then a cosine that ends at `final_fraction` of the peak."""

    peak: float = identity(gt=0, description="highest rate")
    warmup_steps: int = identity(ge=0, description="steps of linear warm-up")
    first_step: int = identity(ge=0, description="steps done before it begins")
    last_step: int = identity(ge=0, description="steps done where it ends")
    final_fraction: float = identity(ge=0, le=1, description="final rate as a share of the peak")
    kind: Literal["cosine"] = identity("cosine", description="the schedule's name")


Schedule: TypeAlias = WsdSchedule | CosineSchedule
"""The learning rate as a function of the step (update/schedule.py)."""


@dataclass(frozen=True)
class Optimizer:
    """AdamW. Embeddings (including a tied head), norms and biases have no weight decay."""

    __pydantic_config__ = STRICT

    betas: tuple[Share, Share] = identity(
        (0.9, 0.95), description="decay of the first and the second moment, each from 0 to below 1"
    )
    eps: Real = identity(1e-8, ge=1e-30, le=1, description="epsilon, added to the denominator")
    weight_decay: Real = identity(0.1, ge=0, description="decoupled weight decay")
    clip: Real = identity(1.0, gt=0, description="largest global gradient norm")
    states: Literal["fp32", "8bit"] = identity(
        "fp32",
        description="the two moments; 8bit: in blocks of 256, embeddings in fp32 as before; saves about 6 bytes a "
        "parameter: little on small models (0.6 GB at 135M)",
    )
    stochastic_rounding: bool = identity(
        False, description="with precision bf16_weights, and needed there: round updates up or down by chance"
    )
    pull_to_base: Real = identity(
        0.0,
        ge=0,
        description="against forgetting: after each update, weights move by the rate times this share of their way back "
        "to the base model (L2-SP); 0: none",
    )


@dataclass(frozen=True)
class Average:
    """The export is the mean of `checkpoints` states of the weights, `every_steps` apart; the last state is the
    final one.
    """

    checkpoints: Several = identity(description="how many weights the mean is of, the last included")
    every_steps: int = identity(ge=1, description="steps between one and the next")

    @property
    def span(self) -> int:
        """Steps from the first state of the mean to the last."""
        return (self.checkpoints - 1) * self.every_steps


@dataclass(frozen=True)
class Stop:
    """When a trunk ends before its budget: the loss on a source's held-out text, measured every `every_tokens`, has not
    fallen by more than `min_delta` for `patience_tokens` (early stopping; Prechelt 1998, doi:10.1007/3-540-49430-8_3).

    `lowest` and `lowest_tokens`: what the trunks before this one came to; none before the first.
    """

    source: str = identity(description="the source whose held-out text is measured")
    patience_tokens: int = identity(gt=0, description="tokens without a lower loss")
    every_tokens: int = identity(gt=0, description="tokens from one measurement to the next")
    min_delta: float = identity(0.0, ge=0, description="nats per token by which the loss must fall to count")
    lowest: float | None = identity(None, description="the lowest loss so far")
    lowest_tokens: int = identity(0, ge=0, description="tokens seen there")


@dataclass(frozen=True, kw_only=True)
class SegmentSpec:
    """A segment of a training line: step s (first_step < s <= last_step) takes sequences [(s-1)*n, s*n) with
    n = `sequences_per_step`."""

    kind: Kind = identity(description="what the segment is")
    seed: int = identity(description="seed of dropout")
    sequence_length: int = identity(ge=1, description="tokens of a sequence")
    sequences_per_step: int = identity(ge=1, description="sequences of one optimizer step")
    first_step: int = identity(ge=0, description="steps done before this segment")
    last_step: int = identity(ge=0, description="steps done after it")
    schedule: Schedule = identity(description="the rate as a function of the step")
    optimizer: Optimizer = identity(description="AdamW")
    precision: Precision = identity(description="arithmetic")
    document_masking: bool = identity(description="packed documents do not see each other")
    dropout: float = identity(ge=0, lt=1, description="dropout while training")
    keep_every_tokens: int | None = identity(
        None, gt=0, description="keep a checkpoint on the way every so many tokens; null: none"
    )
    average: Average | None = identity(None, description="the export as a mean of weights; null: none")
    stop: Stop | None = identity(
        None, since="0.2", description="end a trunk before its budget; null: it is trained to its end"
    )

    @property
    def makes_export(self) -> bool:
        """Whether this segment ends with a usable model (`export/`)."""
        return self.kind != "trunk"

    @property
    def makes_trunk(self) -> bool:
        """Whether training can go on from this segment's end (`trunk/`)."""
        return self.kind != "decay"


@dataclass(frozen=True)
class Digest:
    """The digest of an input, which does not depend on its name."""

    digest: str


@dataclass(frozen=True, kw_only=True)
class Identity(SegmentSpec):
    """Everything that decides the bytes: the segment, and the digests of its inputs."""

    start: Digest
    manifests: tuple[str, ...]
    tokenizer: str
    base: Digest | None = None
    """The base model, if weights are pulled towards it."""
    stop_text: Digest | None = None
    """The held-out text that `stop` measures."""
    canonical: str
    """The identity as canonical JSON, as it was read. A checkpoint stores it and a resume compares it."""

    @property
    def digest(self) -> str:
        """Hex sha256 of the canonical JSON."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where things lie on this machine. Never part of any output."""

    start: Path
    start_kind: Literal["export", "trunk"]
    base: Path | None = None
    tokenizer: Path
    readers: Path | None = None
    heldout: Path | None = None
    stop_text: Path | None = None
    manifests: tuple[Path, ...]
    shards: Mapping[str, Path]
    work: Path


@dataclass(frozen=True)
class Execution:
    """Where and how fast to train; never part of a key. `auto` is resolved by rule (device/execution.py) and
    recorded.
    """

    __pydantic_config__ = STRICT

    device: Literal["auto", "cpu", "cuda"] = execution(
        "auto", description="where models are trained and measured; auto: on a GPU if there is one"
    )
    micro_batch: Annotated[
        Annotated[int, Bounds(ge=1, le=1_048_576)] | Literal["auto"], Written(auto_or_whole)
    ] = execution("auto", description="sequences in one forward pass; auto: by model shape and memory")
    compile: Literal["auto"] | bool = execution("auto", description="torch.compile; auto: where it pays")
    fuse_products: Literal["auto"] | bool = execution(
        "auto",
        description="where the model is compiled: q, k and v as one product, and gate and up; auto: on a GPU",
    )
    gradient_checkpointing: Annotated[Literal["auto", "none", "selective", "full"], Written(as_mode)] = (
        execution(
            "auto",
            description="what backward computes again to save memory; full: each layer, selective: all but products "
            "and attention; auto: by model shape and memory",
        )
    )
    deterministic: bool = execution(
        False,
        description="on a GPU: kernels that repeat themselves bit for bit, slower; on CPU they always do",
    )
    threads: Whole | None = execution(
        None, ge=1, le=4096, description="CPU threads of each trainer process; null: all, divided among them"
    )
    device_memory: Count | None = execution(
        None,
        gt=0,
        description="most bytes of each GPU's memory, such as 8G, for a GPU that others use too; null: all of it. On CPU "
        "it limits only what is chosen by rule",
    )
    checkpoint_every: Seconds = execution(
        300.0, gt=0, le=4_000_000_000, description="time between checkpoints, such as 30s or 5min"
    )
    heldout_every_tokens: Annotated[
        Annotated[int, Bounds(ge=1)] | Literal["auto"] | None, Written(auto_or_count)
    ] = execution(
        "auto",
        description="measure the loss on held-out text while training, every so many tokens; it changes no weight; auto: "
        "for 2 % of the arithmetic at most, or not at all in a training too short for it; null: never",
    )
    keep_last: Whole = execution(2, ge=1, le=1024, description="number of checkpoints kept while training")
    processes: Whole = execution(
        1, ge=1, le=1024, description="trainer processes on each machine (one for each GPU), under torchrun"
    )
    sharding: Literal["none", "full"] = execution(
        "none",
        description="with several processes: none: each holds all weights and optimizer states; full: each its share",
    )


@dataclass(frozen=True)
class Spec:
    """All of spec.json. `parent_fd`: a pipe from the parent; when it ends, the trainer checkpoints and leaves."""

    identity: Identity
    paths: Paths
    execution: Execution = field(default_factory=Execution)
    parent_fd: int | None = None
