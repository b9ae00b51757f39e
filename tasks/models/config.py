"""The section `training` of a run, and the configuration of one segment of its line.

tasks/training/spec.py defines the values that the trainer takes unchanged; they are validated here. A run states other
values in tokens and for all budgets (`…Plan`); flows/dag/rounds.py turns them into schedules and averages in steps. A
field that decides the weights is `identity` and in every key. A field about where and how fast is `execution` and in
none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from storage import fields
from storage.settings import Count, LineText, Real, Settings, Whole, execution, identity
from tasks.training.combinations import of_products, of_sharding, of_stop, of_update
from tasks.training.spec import Execution, Optimizer, Precision, SegmentSpec, Several, Stop


class WsdPlan(Settings):
    """Warm-up, constant rate, and for each budget a branch that decays (Hägele et al. 2024, arXiv 2405.18392)."""

    kind: Literal["wsd"] = identity("wsd", description="the schedule's name")
    warmup_tokens: Count = identity(10_000_000, ge=0, description="linear warm-up, in tokens")
    decay_fraction: Real = identity(
        0.1, ge=0, lt=1, description="share (0 to 1) of a budget's steps in its decay branch"
    )


class RewarmPlan(Settings):
    """A cosine per budget, re-warmed from the previous budget's final weights (Faroz 2025, arXiv 2504.09687)."""

    kind: Literal["rewarm"] = identity("rewarm", description="the schedule's name")
    warmup_tokens: Count = identity(10_000_000, ge=0, description="linear warm-up in each round, in tokens")
    final_fraction: Real = identity(0.1, ge=0, le=1, description="final rate as a share (0 to 1) of the peak")


class AveragePlan(Settings):
    """A budget's model is the mean of its last weights and of some earlier ones (Kaddour 2022, arXiv 2209.14981)."""

    checkpoints: Several = identity(description="how many weights the mean is of, the last included")
    every_tokens: Count = identity(
        gt=0,
        description="tokens between one and the next; all must lie in the decay branch (rewarm: in the round)",
    )


class StopPlan(Settings):
    """When training ends before its budgets: the loss on a source's held-out text does not fall any more (Prechelt
    1998).
    """

    source: LineText = identity(description="the source whose held-out text is measured")
    patience_tokens: Count = identity(
        gt=0,
        description="tokens without a lower loss, after which the trunk goes back to its lowest and ends",
    )
    min_delta: Real = identity(
        0.0, ge=0, description="nats per token by which the loss must be lower than before to count"
    )
    every_tokens: Count | None = identity(
        None, gt=0, description="tokens from one measurement to the next; null: a quarter of patience_tokens"
    )

    def rule(self, lowest: float | None = None, lowest_tokens: int = 0) -> Stop:
        """The rule of a trunk, after trunks whose lowest loss was `lowest`."""
        every = self.every_tokens or max(1, self.patience_tokens // 4)
        return Stop(self.source, self.patience_tokens, every, self.min_delta, lowest, lowest_tokens)


@dataclass(frozen=True)
class TrainingExecution(Execution):
    """Where and how fast; never in a key. `auto` is resolved by rule, and the result is recorded."""

    # settings that only the run needs; they are not passed to the trainer
    nodes: Whole = fields.execution(
        1, ge=1, le=1024, description="machines that train together; the others join by tasks.training.join"
    )
    rendezvous: str | None = fields.execution(
        None,
        pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}$",
        description="with nodes: host:port of this machine, as the others see it",
    )
    overlap: Literal["auto"] | bool = fields.execution(
        "auto", description="read on for the next round while this one trains; auto: on a GPU"
    )


class TrainingConfig(Settings):
    """The section `training`."""

    token_budgets: tuple[Count, ...] = identity(
        min_length=1, description="tokens seen after each round, rising: one model each"
    )
    batch_tokens: Count = identity(
        524_288, gt=0, description="tokens of one optimizer step, padding included"
    )
    learning_rate: Real = identity(5e-4, gt=0, le=1, description="peak learning rate")
    seed: Whole | None = identity(
        None,
        ge=0,
        description="seed of the order of sequences, of dropout and of a new model's first weights; null: the run's seed. "
        "What is read, held out and asked is drawn by the run's, whatever stands here",
    )
    schedule: WsdPlan | RewarmPlan = identity(
        default_factory=WsdPlan, discriminator="kind", description="learning-rate schedule"
    )
    optimizer: Optimizer = identity(default_factory=Optimizer, description="AdamW")
    precision: Literal["auto", Precision] = identity(
        "bf16",
        description="bf16: fp32 weights under bf16 autocast; bf16_weights: weights in bf16 too, with "
        "optimizer.stochastic_rounding; auto: bf16 on a GPU, fp32 without, resolved before the key",
    )
    document_masking: bool = identity(True, description="packed documents do not see each other")
    keep_every_tokens: Count | None = identity(
        None, gt=0, description="keep a checkpoint on the way every so many tokens; null: none"
    )
    average: AveragePlan | None = identity(
        None,
        description="average of checkpoints as each budget's model; training itself goes on without; null: none",
    )
    stop: StopPlan | None = identity(
        None,
        since="0.2",
        description="end training before its budgets, where held-out text is learned no better any more; null: never",
    )
    execution: TrainingExecution = execution(
        default_factory=TrainingExecution, description="where and how fast; never a part of a key"
    )

    @model_validator(mode="after")
    def _goes_together(self) -> TrainingConfig:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        budgets, asked = self.token_budgets, self.execution
        if any(budget <= 0 for budget in budgets) or any(a >= b for a, b in itertools.pairwise(budgets)):
            yield "training.token_budgets must be positive and rise, each one the total after its round"
        yield from of_update(self.optimizer, self.precision, self.learning_rate)
        yield from of_products(asked)
        yield from of_sharding(asked, self.optimizer, self.precision, asked.processes * asked.nodes)
        if self.stop is not None:
            yield from of_stop(self.schedule.kind, asked.sharding)
        if asked.nodes > 1 and asked.rendezvous is None:
            yield (
                "training.execution.rendezvous must be host:port of the machine that the run is on, with nodes: 2 or "
                "more"
            )


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(SegmentSpec):
    """The configuration of a stage `train` or `decay`: one segment, and where and how fast it is trained."""

    execution: TrainingExecution = fields.execution(description="where and how fast")


def resolve_precision(config: TrainingConfig) -> Precision:
    """The precision of the run. `auto` is resolved to the device's precision before any key is made."""
    if config.precision != "auto":
        return config.precision
    import torch

    cuda = config.execution.device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if cuda else "fp32"
