"""The trainer's specification: SPEC.json read into frozen dataclasses, every field checked and named in its error.

`identity` decides the bytes that come out; `paths` and `execution` never do, save that the resolved execution
(device, micro-batch, threads, …) touches rounding and is therefore fixed in the work directory (execution.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import ConfigError
from tasks.training.combinations import check_average, check_update
from tasks.training.fields import Fields, is_count, require, texts

KINDS = ("trunk", "decay", "rewarm", "pretrain")
AUTO = "auto"
CHECKPOINTING = ("none", "selective", "full")
FP32, BF16, BF16_WEIGHTS, EIGHT_BIT = "fp32", "bf16", "bf16_weights", "8bit"
PRECISIONS, STATES = (FP32, BF16, BF16_WEIGHTS), (FP32, EIGHT_BIT)


@dataclass(frozen=True)
class WsdSchedule:
    """Warm-up, constant, and (1 - sqrt) from `decay_from` to `decay_to`; steps are counted from the line's start."""

    peak: float
    warmup_steps: int
    decay_from: int | None
    decay_to: int | None


@dataclass(frozen=True)
class CosineSchedule:
    """Linear (re-)warm-up after `first_step`, then a cosine that ends at `final_fraction` of the peak."""

    peak: float
    warmup_steps: int
    first_step: int
    last_step: int
    final_fraction: float


Schedule = WsdSchedule | CosineSchedule


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and the clipping of the gradient's global norm (`clip` 0: none)."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip: float
    states: str = FP32
    """How moments are kept: fp32, or 8bit (moments.py)."""
    stochastic_rounding: bool = False
    """With weights in bf16, and only there (rounding.py)."""
    pull_to_base: float = 0.0
    """After each update weights move by this times the rate of their way to the base model's (adamw.py)."""


@dataclass(frozen=True)
class Averaging:
    """The export is the mean of the last weights and of the `checkpoints` - 1 before, `every_steps` apart."""

    checkpoints: int
    every_steps: int


@dataclass(frozen=True)
class Identity:
    """What decides the bytes. Step s (first_step < s <= last_step) uses sequences [(s-1)*n, s*n)."""

    kind: str
    seed: int
    sequence_length: int
    sequences_per_step: int
    first_step: int
    last_step: int
    schedule: Schedule
    optimizer: OptimizerSettings
    precision: str
    document_masking: bool
    dropout: float
    keep_every_tokens: int | None
    average: Averaging | None
    base: str | None
    """Digest of the base model, where weights are pulled to it."""
    start: str
    manifests: tuple[str, ...]
    tokenizer: str
    canonical: str
    """The identity as canonical JSON: what a checkpoint carries and a resume compares."""

    @property
    def digest(self) -> str:
        """Hex sha256 of the canonical JSON."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def makes_export(self) -> bool:
        """Whether this segment ends with a model to be used (`export/`)."""
        return self.kind != "trunk"

    @property
    def makes_trunk(self) -> bool:
        """Whether training can go on from this segment's end (`trunk/`)."""
        return self.kind != "decay"


@dataclass(frozen=True)
class Paths:
    """Where things lie on this machine. Never part of any output."""

    start: Path
    start_kind: str
    base: Path | None
    tokenizer: Path
    manifests: tuple[Path, ...]
    shards: Mapping[str, Path]
    work: Path


@dataclass(frozen=True)
class Execution:
    """As asked for; `auto` is resolved by rule in execution.py. How many processes there are, torchrun says."""

    device: str = AUTO
    micro_batch: int | str = AUTO
    compile: bool | str = AUTO
    gradient_checkpointing: bool | str = AUTO
    """none, selective or full (recompute.py); true and false stand for full and none."""
    deterministic: bool = False
    """On a GPU: kernels that repeat themselves, at a cost in speed. On CPU they always do."""
    processes: int = 1
    sharding: str = "none"
    """none: every process holds all weights; full: each holds its share (sharding.py)."""
    threads: int | None = None
    checkpoint_every: float = 300.0
    keep_last: int = 2
    log_every: int = 1


@dataclass(frozen=True)
class Spec:
    """All of SPEC.json. `parent_fd`: a pipe from the parent; at its end the trainer checkpoints and leaves."""

    identity: Identity
    paths: Paths
    execution: Execution
    parent_fd: int | None


def read_spec(path: Path) -> Spec:
    """Read and check SPEC.json. Raises ConfigError naming the field that is wrong."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a training specification ({error}).") from error
    return parse_spec(data)


def parse_spec(data: Any) -> Spec:
    """Check a decoded SPEC.json. Raises ConfigError naming the field that is wrong."""
    top = Fields(data, "")
    spec = Spec(
        identity=_identity(top.take("identity", dict)),
        paths=_paths(Fields(top.take("paths", dict), "paths")),
        execution=_execution(Fields(top.take("execution", dict, {}), "execution")),
        parent_fd=top.optional("parent_fd", int),
    )
    top.done()
    require(
        (spec.paths.base is None) == (spec.identity.base is None),
        "paths.base lies where identity.base does: both, or neither.",
    )
    return spec


def _identity(data: dict[str, Any]) -> Identity:
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    fields = Fields(data, "identity")
    identity = Identity(
        kind=fields.take("kind", str),
        seed=fields.take("seed", int),
        sequence_length=fields.take("sequence_length", int),
        sequences_per_step=fields.take("sequences_per_step", int),
        first_step=fields.take("first_step", int),
        last_step=fields.take("last_step", int),
        schedule=_schedule(Fields(fields.take("schedule", dict), "identity.schedule")),
        optimizer=_optimizer(Fields(fields.take("optimizer", dict), "identity.optimizer")),
        precision=fields.take("precision", str),
        document_masking=fields.take("document_masking", bool),
        dropout=fields.take("dropout", float),
        keep_every_tokens=fields.optional("keep_every_tokens", int),
        average=_average(fields.optional("average", dict)),
        base=_digest(fields.optional("base", dict), "identity.base"),
        start=_digest(fields.take("start", dict), "identity.start") or "",
        manifests=texts(fields.take("manifests", list), "identity.manifests"),
        tokenizer=fields.take("tokenizer", str),
        canonical=canonical,
    )
    fields.done()
    require(
        identity.kind in KINDS, f"identity.kind must be one of {', '.join(KINDS)}, not {identity.kind!r}."
    )
    known = identity.precision in PRECISIONS
    require(known, "identity.precision must be bf16 or fp32, or bf16_weights.")
    require(identity.sequence_length >= 1, "identity.sequence_length must be at least 1.")
    require(identity.sequences_per_step >= 1, "identity.sequences_per_step must be at least 1.")
    require(
        0 <= identity.first_step <= identity.last_step,
        "identity.first_step must lie in 0 … identity.last_step.",
    )
    require(0.0 <= identity.dropout < 1.0, "identity.dropout must lie in [0, 1).")
    keep = identity.keep_every_tokens
    require(keep is None or keep >= 1, "identity.keep_every_tokens must be null or at least 1.")
    check_update(identity)
    check_average(identity)
    return identity


def _schedule(fields: Fields) -> Schedule:
    kind = fields.take("kind", str)
    peak = fields.take("peak", float)
    warmup = fields.take("warmup_steps", int)
    require(peak > 0, "identity.schedule.peak must be above 0.")
    require(warmup >= 0, "identity.schedule.warmup_steps must not be negative.")
    schedule: Schedule
    if kind == "wsd":
        start, end = fields.optional("decay_from", int), fields.optional("decay_to", int)
        require((start is None) == (end is None), "identity.schedule: decay_from and decay_to go together.")
        ordered = start is None or end is None or 0 <= start <= end
        require(ordered, "identity.schedule: decay_from must not be after decay_to.")
        schedule = WsdSchedule(peak, warmup, start, end)
    elif kind == "cosine":
        first, last = fields.take("first_step", int), fields.take("last_step", int)
        fraction = fields.take("final_fraction", float)
        require(0 <= first <= last, "identity.schedule: first_step must lie in 0 … last_step.")
        require(0.0 <= fraction <= 1.0, "identity.schedule.final_fraction must lie in [0, 1].")
        schedule = CosineSchedule(peak, warmup, first, last, fraction)
    else:
        raise ConfigError(f"identity.schedule.kind must be wsd or cosine, not {kind!r}.")
    fields.done()
    return schedule


def _optimizer(fields: Fields) -> OptimizerSettings:
    betas = fields.take("betas", list)
    whole = len(betas) == 2 and all(isinstance(b, int | float) and 0 <= b < 1 for b in betas)
    require(whole, "identity.optimizer.betas must be two numbers in [0, 1).")
    settings = OptimizerSettings(
        betas=(float(betas[0]), float(betas[1])),
        eps=fields.take("eps", float),
        weight_decay=fields.take("weight_decay", float),
        clip=fields.take("clip", float),
        states=fields.take("states", str, FP32),
        stochastic_rounding=fields.take("stochastic_rounding", bool, False),
        pull_to_base=fields.take("pull_to_base", float, 0.0),
    )
    fields.done()
    require(settings.states in STATES, "identity.optimizer.states must be fp32 or 8bit.")
    require(settings.pull_to_base >= 0, "identity.optimizer.pull_to_base must not be negative (0: no pull).")
    require(settings.eps > 0, "identity.optimizer.eps must be above 0.")
    require(settings.weight_decay >= 0, "identity.optimizer.weight_decay must not be negative.")
    require(settings.clip >= 0, "identity.optimizer.clip must not be negative (0: no clipping).")
    return settings


def _average(data: dict[str, Any] | None) -> Averaging | None:
    if data is None:
        return None
    fields = Fields(data, "identity.average")
    average = Averaging(fields.take("checkpoints", int), fields.take("every_steps", int))
    fields.done()
    require(average.checkpoints >= 2, "identity.average.checkpoints must be at least 2.")
    require(average.every_steps >= 1, "identity.average.every_steps must be at least 1.")
    return average


def _digest(data: dict[str, Any] | None, where: str) -> str | None:
    if data is None:
        return None
    fields = Fields(data, where)
    digest = fields.take("digest", str)
    fields.done()
    return digest


def _paths(fields: Fields) -> Paths:
    shards = fields.take("shards", dict)
    base = fields.optional("base", str)
    paths = Paths(
        start=Path(fields.take("start", str)),
        start_kind=fields.take("start_kind", str),
        base=None if base is None else Path(base),
        tokenizer=Path(fields.take("tokenizer", str)),
        manifests=tuple(Path(text) for text in texts(fields.take("manifests", list), "paths.manifests")),
        shards=dict(zip(shards, map(Path, texts(list(shards.values()), "paths.shards")), strict=True)),
        work=Path(fields.take("work", str)),
    )
    fields.done()
    require(paths.start_kind in ("export", "trunk"), "paths.start_kind must be export or trunk.")
    return paths


def _execution(fields: Fields) -> Execution:
    defaults = Execution()
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Execution):
        if field.name in fields.left:
            values[field.name] = fields.left.pop(field.name)
    fields.done()
    execution = dataclasses.replace(defaults, **values)
    require(execution.compile in (True, False, AUTO), "execution.compile must be true, false or auto.")
    require(
        isinstance(execution.gradient_checkpointing, bool)
        or execution.gradient_checkpointing in (*CHECKPOINTING, AUTO),
        "execution.gradient_checkpointing must be auto, none, selective or full.",
    )
    require(isinstance(execution.deterministic, bool), "execution.deterministic must be true or false.")
    micro = execution.micro_batch
    require(micro == AUTO or is_count(micro), "execution.micro_batch must be auto or at least 1.")
    require(isinstance(execution.device, str), "execution.device must be auto, cpu, cuda or cuda:N.")
    require(
        execution.threads is None or is_count(execution.threads),
        "execution.threads must be null or at least 1.",
    )
    require(execution.sharding in ("none", "full"), "execution.sharding must be none or full.")
    require(is_count(execution.processes), "execution.processes must be at least 1.")
    require(is_count(execution.keep_last), "execution.keep_last must be at least 1.")
    require(is_count(execution.log_every), "execution.log_every must be at least 1.")
    every = execution.checkpoint_every
    require(
        isinstance(every, int | float) and not isinstance(every, bool) and every >= 0,
        "execution.checkpoint_every must be seconds, 0 or more.",
    )
    return execution
