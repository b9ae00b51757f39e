"""The small configuration that a rehearsal runs: everything of the real one, and little of it.

What decides how long a step, a byte or a question takes stays: sequence length, batch, micro-batch, precision, device, the
filter's rules, the model, the way to ask. What decides only how many there are becomes small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.config import RunConfig, parse_config
from flows.dag.plan import PlanRow
from storage.paths import home
from tasks.corpus.packing.budgets import sequences_per_step
from tasks.models.base import InitConfig
from tasks.models.config import WsdPlan

TRUNK_SECONDS = 75.0
"""What the longer segment of a rehearsal is to take."""
MOST_STEPS, FEWEST_STEPS = 24, 8
"""Of the longer segment. Eight: two to warm up, and six to look at. Round 0 takes the fewest."""
BRANCH_STEPS = 5
_MOST_SECONDS = 300.0
"""A batch of which the fewest steps take longer is made smaller."""
_SLICE = 8_000_000
"""Bytes of a slice, at most, that is read as it is: it takes seconds."""
_BYTES_PER_TOKEN = 8.0
"""Text read for a token that is trained on, so that a slice or two are enough where half of it is dropped."""
_LARGEST_SLICE = 64_000_000
_SHARD = 32_000_000
"""About the bytes of a shard, of which each worker takes one at a time."""
QUESTIONS, MORE_QUESTIONS = 8, (24, 200)
"""Questions that each model is asked of each benchmark; and how many the base is asked once more, by their speed."""
MORE_SECONDS = 90.0
"""What these questions are to take together."""
SAMPLE_TOKENS, MORE_SAMPLE_TOKENS = 6, 18
"""Tokens of each continuation, of each model, and of the base once more."""
HELD_OUT_TOKENS, MORE_HELD_OUT_TOKENS = 2_000, (8_000, 64_000)
"""About how many tokens of held-out text each model is measured on; and the base once more, by its speed."""
_READ_SECONDS = 10.0


@dataclass(frozen=True)
class Small:
    """A rehearsal's configurations: of the whole way, and of single slices that are as large as the real ones."""

    run: RunConfig
    slices: RunConfig | None
    """None where the slices of `run` are as large already."""
    batch_tokens: int
    """Of a step; smaller than the run's own where its steps would take minutes."""


def small_of(run: RunConfig, store: Path, training: Sequence[PlanRow]) -> Small:
    """The small configurations, whose artifacts lie in `store`. `training`: rows with estimates of the model's speed."""
    speed = next(
        (
            row.training["tokens_per_second"]
            for row in training
            if row.training and row.training.get("tokens_per_second")
        ),
        None,
    )
    batch = _batch(run, speed)
    steps = MOST_STEPS if speed is None else int(TRUNK_SECONDS * speed / batch)
    steps = max(FEWEST_STEPS, min(MOST_STEPS, steps))
    raw = run.model_dump(mode="json")
    tokens = batch * (steps + FEWEST_STEPS)
    size = min(run.corpus.slice_bytes, _LARGEST_SLICE, max(_SLICE, round(_BYTES_PER_TOKEN * tokens)))
    raw["store"] = str(store)
    raw["corpus"] |= {"slice_bytes": size, "max_epochs": None}
    raw["corpus"]["sources"] = [{**one, "max_epochs": None} for one in raw["corpus"]["sources"]]
    raw["evaluation"]["limit"] = min(run.evaluation.limit or QUESTIONS, QUESTIONS)
    raw["evaluation"]["sample_tokens"] = min(run.evaluation.sample_tokens, SAMPLE_TOKENS)
    _shorten(raw, run, batch, steps)
    return Small(parse_config(raw), _large_slices(run, raw, size), batch)


def with_more_questions(run: RunConfig, small: RunConfig, seconds: float) -> RunConfig:
    """The small configuration with as many questions as take a minute and a half. `seconds`: of one of each benchmark."""
    least, most = MORE_QUESTIONS
    count = max(least, min(most, int(MORE_SECONDS / seconds) if seconds > 0 else most))
    raw = small.model_dump(mode="json")
    raw["evaluation"]["limit"] = min(count, run.evaluation.limit or count)
    raw["evaluation"]["sample_tokens"] = min(run.evaluation.sample_tokens, MORE_SAMPLE_TOKENS)
    return parse_config(raw)


def more_held_out(tokens_per_second: float) -> int:
    """Tokens of held-out text that a model of this speed reads in ten seconds, within bounds."""
    least, most = MORE_HELD_OUT_TOKENS
    return max(least, min(most, int(_READ_SECONDS * tokens_per_second)))


def _batch(run: RunConfig, speed: float | None) -> int:
    """Tokens of a step: the run's own, unless the fewest steps take minutes at this speed (tokens a second)."""
    asked, length = run.training.batch_tokens, run.packing.sequence_length
    if speed is None or FEWEST_STEPS * asked / speed <= _MOST_SECONDS:
        return asked
    sequences = max(1, int(_MOST_SECONDS * speed / FEWEST_STEPS / length))
    return min(asked, math.ceil(sequences / _processes(run)) * _processes(run) * length)


def _processes(run: RunConfig) -> int:
    return run.training.execution.processes * run.training.execution.nodes


def _shorten(raw: dict[str, Any], run: RunConfig, batch: int, steps: int) -> None:
    """Budgets and all that is told in tokens of training."""
    training = raw["training"]
    branch = BRANCH_STEPS
    if run.training.average is not None:
        branch = max(branch, run.training.average.checkpoints)
        training["average"] = {"checkpoints": run.training.average.checkpoints, "every_tokens": batch}
    branches = isinstance(run.training.schedule, WsdPlan) and run.training.schedule.decay_fraction > 0
    last = steps + branch if branches else steps
    if branches:
        training["schedule"]["decay_fraction"] = branch / last
    training |= {"batch_tokens": batch, "token_budgets": [last * batch]}
    training["stop"] = None  # nothing is learned in so few steps
    if run.training.keep_every_tokens is not None:
        training["keep_every_tokens"] = min(run.training.keep_every_tokens, max(1, steps // 2) * batch)
    merge = raw["merge"]
    merge |= {name: merge[name][:1] for name in ("interpolate", "strength")}
    if run.merge.average is not None:
        merge["average"], training["keep_every_tokens"] = 2, max(1, steps // 4) * batch
    training["execution"]["checkpoint_every"] = (
        86_400.0  # the end of a segment writes one, and shows what it takes
    )
    if isinstance(run.model.base, InitConfig):
        raw["model"]["base"] |= {"pretrain_tokens": FEWEST_STEPS * batch}
    sequences_per_step(batch, run.packing.sequence_length)


def _large_slices(run: RunConfig, raw: dict[str, Any], small: int) -> RunConfig | None:
    """One slice of each source, of the real size as far as the workers need it to be all at work."""
    size = min(run.corpus.slice_bytes, max(_LARGEST_SLICE, _SHARD * run.corpus.execution.count))
    if size <= 1.5 * small:
        return None
    sources = [{**one, "weight": 1.0} for one in raw["corpus"]["sources"]]
    return parse_config({**raw, "corpus": {**raw["corpus"], "slice_bytes": size, "sources": sources}})


def store_beside(run: RunConfig) -> Path:
    """The directory of a rehearsal's own store: beside the real one, on the same disk."""
    return (home() / run.store).parent / f".{Path(run.store).name}-rehearsal"
