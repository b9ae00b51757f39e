"""What training is told: the section `training` of a run, and the configuration of one segment of its line.

What decides the weights is `identity` and in every key; where and how fast is `execution` and in none.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from storage.settings import Count, Seconds, Settings, execution, identity
from tasks.training.combinations import NEEDS_ROUNDING, NOTHING_TO_ROUND


def _auto_or_count(value: Any) -> Any:
    return value if value == "auto" else int(value)


def _checkpointing(value: Any) -> Any:
    """True and false, as configurations of before say it."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


class WsdConfig(Settings):
    """Warm-up, constant, and for each budget a branch that decays (Hägele et al. 2024, arXiv 2405.18392)."""

    kind: Literal["wsd"] = identity("wsd", description="the schedule's name")
    warmup_tokens: Count = identity(10_000_000, ge=0, description="linear warm-up, in tokens")
    decay_fraction: float = identity(
        0.1, ge=0, lt=1, description="share (0 to 1) of a budget's steps in its decay branch"
    )


class RewarmConfig(Settings):
    """A cosine for each budget, re-warmed from the previous budget's final weights (Faroz 2025, arXiv 2504.09687)."""

    kind: Literal["rewarm"] = identity("rewarm", description="the schedule's name")
    warmup_tokens: Count = identity(10_000_000, ge=0, description="linear warm-up in each round, in tokens")
    final_fraction: float = identity(
        0.1, ge=0, le=1, description="final rate as a share (0 to 1) of the peak"
    )


class OptimizerConfig(Settings):
    """AdamW; no decay on embeddings (a tied head is one), norms and biases."""

    betas: tuple[float, float] = identity((0.9, 0.95), description="decay of the first and the second moment")
    eps: float = identity(1e-8, gt=0, description="epsilon, added to the denominator")
    weight_decay: float = identity(0.1, ge=0, description="decoupled weight decay")
    clip: float = identity(1.0, gt=0, description="largest global gradient norm")
    states: Literal["fp32", "8bit"] = identity(
        "fp32",
        description="the two moments; 8bit: in blocks of 256, embeddings in fp32 as before; saves about 6 bytes a "
        "parameter: little on small models (0.6 GB at 135M)",
    )
    stochastic_rounding: bool = identity(
        False, description="with precision bf16_weights, and needed there: round updates up or down by chance"
    )
    pull_to_base: float = identity(
        0.0,
        ge=0,
        description="against forgetting: after each update, weights move by the rate times this share of their way back "
        "to the base model (L2-SP); 0: none",
    )


class AverageConfig(Settings):
    """A budget's model as the mean of its last weights and of some before (Kaddour 2022, arXiv 2209.14981)."""

    checkpoints: int = identity(ge=2, description="how many weights the mean is of, the last included")
    every_tokens: Count = identity(
        gt=0,
        description="tokens between one and the next; all must lie in the decay branch (rewarm: in the round)",
    )


class TrainingExecution(Settings):
    """Where and how fast; never in a key. `auto` is resolved by rule, and what came out is recorded."""

    device: Literal["auto", "cpu", "cuda"] = execution(
        "auto", description="where models are trained and measured; auto: on a GPU where there is one"
    )
    micro_batch: Annotated[int | Literal["auto"], BeforeValidator(_auto_or_count)] = execution(
        "auto", description="sequences in one forward pass; auto: by model shape and memory"
    )
    compile: Literal["auto"] | bool = execution("auto", description="torch.compile; auto: where it pays")
    gradient_checkpointing: Annotated[
        Literal["auto", "none", "selective", "full"], BeforeValidator(_checkpointing)
    ] = execution(
        "auto",
        description="what backward computes again to save memory; full: each layer, selective: all but products and "
        "attention; auto: by model shape and memory",
    )
    deterministic: bool = execution(
        False,
        description="on a GPU: kernels that repeat themselves bit for bit, slower; on CPU they always do",
    )
    processes: int = execution(
        1, ge=1, le=1024, description="trainer processes on each machine (one for each GPU), under torchrun"
    )
    nodes: int = execution(
        1, ge=1, le=1024, description="machines that train together; the others join by tasks.training.join"
    )
    rendezvous: str | None = execution(
        None,
        pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}$",
        description="with nodes: host:port of this machine, as the others see it",
    )
    sharding: Literal["none", "full"] = execution(
        "none",
        description="with several processes: none: each holds all weights and optimizer states; full: each its share",
    )
    threads: int | None = execution(
        None, ge=1, description="CPU threads of each trainer process; null: all, divided among them"
    )
    checkpoint_every: Seconds = execution(
        300.0, gt=0, description="time between checkpoints, such as 30s or 5min"
    )
    keep_last: int = execution(2, ge=1, description="number of checkpoints kept while training")
    overlap: Literal["auto"] | bool = execution(
        "auto", description="read on for the next round while this one trains; auto: on a GPU"
    )

    @model_validator(mode="after")
    def _machines_meet(self) -> TrainingExecution:
        if self.nodes > 1 and self.rendezvous is None:
            raise ValueError(
                "with nodes: 2 or more, rendezvous must be host:port of the machine that the run is on"
            )
        return self

    @model_validator(mode="after")
    def _shares_among_several(self) -> TrainingExecution:
        if self.sharding == "full" and self.processes * self.nodes == 1:
            raise ValueError(
                "sharding: full needs processes (or nodes): 2 or more, to share weights out among"
            )
        if self.sharding == "full" and self.compile is True:
            raise ValueError("sharding: full does not go together with compile: true; set compile: auto")
        return self


class TrainingConfig(Settings):
    """The section `training`."""

    token_budgets: tuple[Count, ...] = identity(
        min_length=1, description="tokens seen after each round, rising: one model each"
    )
    batch_tokens: Count = identity(
        524_288, gt=0, description="tokens of one optimizer step, padding included"
    )
    learning_rate: float = identity(5e-4, gt=0, description="peak learning rate")
    seed: int | None = identity(
        None,
        ge=0,
        description="seed of the order of sequences, of dropout and of a new model's first weights; null: the run's seed. "
        "What is read, held out and asked is drawn by the run's, whatever stands here",
    )
    schedule: WsdConfig | RewarmConfig = identity(
        default_factory=WsdConfig, discriminator="kind", description="learning-rate schedule"
    )
    optimizer: OptimizerConfig = identity(default_factory=OptimizerConfig, description="AdamW")
    precision: Literal["auto", "bf16", "fp32", "bf16_weights"] = identity(
        "bf16",
        description="bf16: fp32 weights under bf16 autocast; bf16_weights: weights in bf16 too, with "
        "optimizer.stochastic_rounding; auto: bf16 on a GPU, fp32 without, resolved before the key",
    )
    document_masking: bool = identity(True, description="packed documents do not see each other")
    keep_every_tokens: Count | None = identity(
        None, description="keep a checkpoint on the way every so many tokens; null: none"
    )
    average: AverageConfig | None = identity(
        None,
        description="average of checkpoints as each budget's model; training itself goes on without; null: none",
    )
    execution: TrainingExecution = execution(
        default_factory=TrainingExecution, description="where and how fast; never a part of a key"
    )

    @model_validator(mode="after")
    def _budgets_rise(self) -> TrainingConfig:
        budgets = self.token_budgets
        if any(budget <= 0 for budget in budgets) or any(a >= b for a, b in itertools.pairwise(budgets)):
            raise ValueError(
                "training.token_budgets must be positive and rise, each one the total after its round"
            )
        return self

    @model_validator(mode="after")
    def _update_makes_sense(self) -> TrainingConfig:
        optimizer, narrow = self.optimizer, self.precision == "bf16_weights"
        if optimizer.stochastic_rounding != narrow:
            reason = NEEDS_ROUNDING if narrow else NOTHING_TO_ROUND
            raise ValueError(f"training.optimizer.stochastic_rounding {reason}")
        if optimizer.pull_to_base * self.learning_rate > 1:
            raise ValueError(
                "training.optimizer.pull_to_base times training.learning_rate must be at most 1: there an update puts "
                "the base's weights back"
            )
        if self.execution.sharding == "full" and (
            narrow or optimizer.states == "8bit" or optimizer.pull_to_base
        ):
            raise ValueError(
                "training.execution.sharding: full goes with neither precision bf16_weights, optimizer.states 8bit nor "
                "optimizer.pull_to_base; set it to none"
            )
        return self


class SegmentAverage(Settings):
    """Which weights of a segment its export is the mean of: the last, and those so many steps apart before."""

    checkpoints: int = identity(description="how many, the last included")
    every_steps: int = identity(description="steps between one and the next")


class SegmentConfig(Settings):
    """One segment of a training line: steps `first_step` + 1 to `last_step`; step s takes sequences
    [(s − 1)·n, s·n) with n = `sequences_per_step`."""

    kind: Literal["trunk", "decay", "rewarm", "pretrain"] = identity(description="what the segment is")
    seed: int = identity(description="of dropout, where there is any")
    sequence_length: int = identity(description="tokens")
    sequences_per_step: int = identity(description="sequences of one optimizer step")
    first_step: int = identity(description="steps done before this segment")
    last_step: int = identity(description="steps done after it")
    schedule: dict[str, Any] = identity(description="the rate as a function of the step")
    optimizer: OptimizerConfig = identity(description="AdamW")
    precision: Literal["bf16", "fp32", "bf16_weights"] = identity(description="arithmetic")
    document_masking: bool = identity(description="packed documents do not see each other")
    dropout: float = identity(description="dropout while training")
    keep_every_tokens: int | None = identity(description="keep a checkpoint every so many tokens")
    average: SegmentAverage | None = identity(None, description="the export as a mean of weights")
    execution: TrainingExecution = execution(description="where and how fast")


def resolve_precision(config: TrainingConfig) -> Literal["bf16", "fp32", "bf16_weights"]:
    """`auto` becomes what the device has, before any key is made."""
    if config.precision != "auto":
        return config.precision
    import torch

    cuda = config.execution.device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if cuda else "fp32"
