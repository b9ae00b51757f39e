"""The short form: the ten keys that are changed most. It stands above the whole configuration, and changes it."""

from __future__ import annotations

from typing import Any, Literal

from flows.config import RunConfig, parse_config
from storage.settings import Count, Real, Settings, Whole, execution

KEYS = {
    "token_budgets": "training.token_budgets",
    "learning_rate": "training.learning_rate",
    "batch_tokens": "training.batch_tokens",
    "warmup_tokens": "training.schedule.warmup_tokens",
    "sequence_length": "packing.sequence_length",
    "base": "model.base",
    "holdout_fraction": "corpus.holdout_fraction",
    "questions": "evaluation.limit",
    "device": "training.execution.device",
    "seed": "seed",
}
"""The configuration's key of each field."""


class Changes(Settings):
    """The keys that are changed most. Null: as in the configuration."""

    token_budgets: tuple[Count, ...] | None = execution(
        None, description="tokens to train on; a model and its scores at each, the smallest first"
    )
    learning_rate: Real | None = execution(None, gt=0, le=1, description="peak learning rate")
    batch_tokens: Count | None = execution(None, gt=0, description="tokens of a step of training")
    warmup_tokens: Count | None = execution(
        None, ge=0, description="tokens of training until the peak rate is reached"
    )
    sequence_length: Count | None = execution(
        None,
        ge=2,
        le=1_048_576,
        description="tokens of a sequence, at most as many as the base has positions",
    )
    base: str | None = execution(None, description="directory of the base model, or its name on the hub")
    holdout_fraction: Real | None = execution(
        None, ge=0, lt=0.5, description="share of the text that is never trained on, only measured on"
    )
    questions: Count | None = execution(
        None, ge=2, description="at most so many questions of each benchmark, for a quick look"
    )
    device: Literal["auto", "cpu", "cuda"] | None = execution(None, description="where is trained")
    seed: Whole | None = execution(None, ge=0, description="seed of every choice that is drawn")


def changed(run: RunConfig, changes: Changes) -> RunConfig:
    """The configuration with the changes in it. Raises ConfigError if they do not fit together."""
    given = {name: value for name, value in changes.model_dump(mode="json").items() if value is not None}
    if not given:
        return run
    raw: dict[str, Any] = run.model_dump(mode="json")
    for name, value in given.items():
        *path, last = KEYS[name].split(".")
        node = raw
        for step in path:
            node = node[step]
        node[last] = value
    return parse_config(raw, "the form")
