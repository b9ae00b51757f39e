"""Checks for errors that can be found before any work starts. They raise ConfigError that names the field."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path

from flows.config import RunConfig
from flows.dag.rounds import round_zero, rounds_of, trunk_schedule
from storage.counts import count_text
from storage.errors import ConfigError
from storage.paths import home
from tasks.corpus.benchmarks.questions import benchmark_file
from tasks.corpus.packing.budgets import steps_for
from tasks.corpus.reading.hub import remembered_in
from tasks.corpus.reading.kinds import check_kinds
from tasks.corpus.reading.origins import Hub
from tasks.corpus.reading.sources import IngestConfig
from tasks.evaluation.catalog import BENCHMARKS, check_benchmarks
from tasks.models.base import InitConfig
from tasks.models.config import WsdPlan
from tasks.training.combinations import of_processes, refuse
from tasks.training.update.schedule import learning_rate

_FEW_STEPS = 60
"""Three times the twenty steps over which AdamW's second moment (beta 0.95) is a mean: fewer have hardly begun."""
_ENOUGH_STEPS = 500
_MOST_WARMUP = 0.25
"""Share of the first budget's steps that a warm-up may take without a word. Hägele et al. 2024 use up to 5 %."""


def check(run: RunConfig) -> None:
    """Refuse a configuration that cannot run: sizes that do not fit together, missing files or benchmarks."""
    rounds_of(run)
    _processes(run)
    _sources(run)
    if run.evaluation.checkpoints and run.training.keep_every_tokens is None:
        raise ConfigError(
            "evaluation.checkpoints measures the checkpoints that training keeps, but it keeps none: "
            "set training.keep_every_tokens"
        )
    evaluation = run.evaluation.below(home())
    check_benchmarks(evaluation, run.benchmark_directory, [source.name for source in run.corpus.sources])
    files = {mine.name: home() / mine.file for mine in run.evaluation.own if mine.file}
    for name in run.corpus.decontaminate.benchmarks:
        if name in files or name not in BENCHMARKS or run.benchmark_directory is not None:
            benchmark_file(run.benchmark_directory, name, files)
    if isinstance(run.model.base, InitConfig) and not any(
        source.role == "replay" for source in run.corpus.sources
    ):
        raise ConfigError(
            "model.base is initialised here and pre-trained on replay text, but no source in corpus.sources "
            "has the role replay"
        )
    if isinstance(run.model.base, InitConfig):
        positions: int | None = run.model.base.max_positions
    else:
        positions = positions_of(home() / run.model.base)
    check_length(run.packing.sequence_length, positions, "packing.sequence_length", "model.base")


def check_hub(run: RunConfig) -> None:
    """Refuse sources that the hub does not have. Asks for each once. Raises HubUnreachable if the hub does not answer."""
    for source in run.corpus.sources:
        if source.hub is not None:
            config = IngestConfig.of(source, slice_bytes=run.corpus.slice_bytes, seed=run.seed)
            hub = Hub(config, source.hub, None, remembered_in(run.store_path))
            hub.survey(hub.names()[0])


def _processes(run: RunConfig) -> None:
    execution = run.training.execution
    sequences = run.training.batch_tokens // run.packing.sequence_length
    refuse(of_processes(execution.processes * execution.nodes, sequences))


def _sources(run: RunConfig) -> None:
    for source in run.corpus.sources:
        for pattern in source.files or ():
            if not glob.glob(str(home() / pattern), recursive=True):
                raise ConfigError(
                    f"corpus.sources: {source.name}: no file matches {pattern} (looked in {home()})"
                )
        check_kinds(source.name, source.files or (), home())


def check_length(length: int, positions: int | None, field: str, model: str) -> None:
    """Raise ConfigError if sequences are longer than the model's positions, if those are known."""
    if positions is not None and length > positions:
        raise ConfigError(f"{field} {length:,} is longer than the {positions:,} positions of {model}")


def positions_of(directory: Path) -> int | None:
    """Number of positions of a model in a directory; None if it is not there. A hub model's is known after its import."""
    path = directory / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return None


def advice(run: RunConfig) -> list[str]:
    """Warnings about what is allowed but probably not intended: a warm-up that does not fit, and budgets of few steps."""
    return [*_warmup(run), *_steps(run)]


def _warmup(run: RunConfig) -> Iterator[str]:
    """That the rate is never reached, or only for the smaller part of the first round that trains at it."""
    training, rounds = run.training, rounds_of(run)
    asked = training.schedule.warmup_tokens
    warmup = steps_for(asked, training.batch_tokens) if asked else 0
    first = rounds[0]
    length = first.branch_step if isinstance(training.schedule, WsdPlan) else first.last_step
    if warmup <= _MOST_WARMUP * first.last_step:
        return
    field = "training.schedule.warmup_tokens"
    fitting = count_text(first.budget // 10)
    advised = f"a tenth of the budget would be {fitting}"
    if warmup > max(length, 1):
        reached = (
            learning_rate(trunk_schedule(run, first), length) / training.learning_rate if length else 0.0
        )
        yield (
            f"{field} {count_text(asked)} is longer than the training up to {first.name}: the rate ends at "
            f"{100 * reached:.2g} % of training.learning_rate {training.learning_rate:g}, which is never reached; {advised}"
        )
    else:
        yield (
            f"{field} {count_text(asked)} takes {100 * warmup / first.last_step:.0f} % of the steps of {first.name}; "
            f"{advised}"
        )


def _steps(run: RunConfig) -> Iterator[str]:
    named = [(f"the budget {one.name}", one.budget, one.last_step) for one in rounds_of(run)]
    if isinstance(run.model.base, InitConfig):
        tokens = run.model.base.pretrain_tokens
        steps = round_zero(run, tokens).last_step
        named.insert(0, (f"model.base.init.pretrain_tokens {count_text(tokens)}", tokens, steps))
    length = run.packing.sequence_length
    for what, tokens, steps in named:
        fitting = max(1, tokens // _ENOUGH_STEPS // length) * length
        if steps < _FEW_STEPS and fitting < run.training.batch_tokens:
            yield (
                f"{what} has only {steps:,} step{'s' if steps != 1 else ''} of training.batch_tokens "
                f"{run.training.batch_tokens:,}; {fitting:,} would give {steps_for(tokens, fitting):,}"
            )
