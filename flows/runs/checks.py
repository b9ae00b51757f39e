"""Checks for errors that can be found before any work starts. They raise ConfigError that names the field."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.config import RunConfig
from flows.dag.rounds import round_zero, rounds_of, trunk_schedule
from flows.dag.slices import LIKE_OF_A_NEW_MODEL
from storage.counts import count_text
from storage.errors import ConfigError
from storage.paths import home
from tasks.corpus.benchmarks.questions import benchmark_file
from tasks.corpus.packing.budgets import steps_for
from tasks.corpus.reading.fields import fields_of, listed
from tasks.corpus.reading.hub import remembered_in
from tasks.corpus.reading.kinds import check_kinds
from tasks.corpus.reading.origins import Hub
from tasks.corpus.reading.patterns import matches, other_reading, why_none
from tasks.corpus.reading.sources import IngestConfig, SourceConfig, unlike_of
from tasks.corpus.tokens.begin import BOS
from tasks.documents.folder import of_source
from tasks.evaluation.catalog import BENCHMARKS, check_benchmarks
from tasks.evaluation.question_files import check_question_files
from tasks.models.base import InitConfig
from tasks.models.config import WsdPlan
from tasks.training.combinations import of_processes, refuse
from tasks.training.update.schedule import learning_rate

_FEW_STEPS = 60
"""Three times the twenty steps over which AdamW's second moment (beta 0.95) is a mean: fewer have hardly begun."""
_ENOUGH_STEPS = 500
_MOST_WARMUP = 0.25
"""Share of the first budget's steps that a warm-up may take without a word. Hägele et al. 2024 use up to 5 %."""
_MOST_SEQUENCES = 2**32
"""A manifest numbers sequences with 32 bits."""
_BEYOND = 0.05
"""Share of a budget beyond which its rounding to whole steps is said."""
_OF_A_MODEL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
)


def check(run: RunConfig, *, elsewhere: bool = False) -> None:
    """Refuse a configuration that cannot run: sizes that do not fit together, files that are missing or damaged.

    `elsewhere`: the question is about another machine, so that the device need not be here.
    """
    check_store(run.store_path)
    _budgets(run)
    _processes(run)
    if not elsewhere:
        check_device(run.training.execution.device, "training.execution.device")
    _merge(run)
    _sources(run)
    _filter(run)
    _evaluation(run)
    _base(run)


def _merge(run: RunConfig) -> None:
    plan, every = run.merge, run.training.keep_every_tokens
    if plan.average is not None and every is None:
        raise ConfigError(
            "merge.average takes the mean of checkpoints that training keeps, but it keeps none: set "
            "training.keep_every_tokens"
        )
    if plan.average is not None and every is not None:
        trunk = rounds_of(run)[-1].branch_step * run.training.batch_tokens
        if plan.average * every > trunk:
            raise ConfigError(
                f"merge.average: {plan.average} checkpoints are to be averaged, and the trunk of "
                f"{count_text(trunk)} tokens "
                f"keeps {trunk // every}; lower training.keep_every_tokens, or merge.average"
            )
    if plan.instruct is not None and isinstance(run.model.base, InitConfig):
        raise ConfigError(
            "merge.instruct needs the model that the chat model was made from as model.base, and model.base is a new model"
        )


def _evaluation(run: RunConfig) -> None:
    if run.evaluation.checkpoints and run.training.keep_every_tokens is None:
        raise ConfigError(
            "evaluation.checkpoints measures the checkpoints that training keeps, but it keeps none: "
            "set training.keep_every_tokens"
        )
    for place, prompt in enumerate(run.evaluation.prompts):
        if not prompt.strip():
            raise ConfigError(f"evaluation.prompts[{place}] is empty; there is nothing to go on from")
    searched = run.corpus.decontaminate.benchmarks
    for name in searched:
        if searched.count(name) > 1:
            raise ConfigError(f"corpus.decontaminate.benchmarks names {name!r} twice; remove one of the two")
    evaluation = run.evaluation.below(home())
    check_benchmarks(evaluation, run.benchmark_directory, [source.name for source in run.corpus.sources])
    files = {mine.name: home() / mine.file for mine in run.evaluation.own if mine.file}
    for name in searched:
        if name in files or name not in BENCHMARKS or run.benchmark_directory is not None:
            benchmark_file(run.benchmark_directory, name, files)
    check_question_files(evaluation, run.benchmark_directory, searched)


def _base(run: RunConfig) -> None:
    base = run.model.base
    if isinstance(base, InitConfig):
        if not any(source.role == "replay" and source.weight for source in run.corpus.sources):
            raise ConfigError(
                "model.base is initialised here and pre-trained on replay text, but no source in corpus.sources "
                "has the role replay and a weight above 0"
            )
        known = {source.name: source for source in run.corpus.sources}
        for source in run.corpus.sources:
            if source.like is not None and source.role == "replay" and source.weight:
                examples = (source.like.source, unlike_of(run.corpus.sources, source.like))
                if not any(name is not None and known[name].role == "replay" for name in examples):
                    raise ConfigError(LIKE_OF_A_NEW_MODEL)
        if run.packing.begin == BOS:
            raise ConfigError(
                "packing.begin is bos, but the tokenizer of a new model (model.base.init) has one token for both ends of a "
                "text; leave it at eos"
            )
        positions: int | None = base.max_positions
    else:
        for name in _OF_A_MODEL:
            _json_object(home() / base / name)
        positions = positions_of(home() / base)
    name = "model.base.init.max_positions" if isinstance(base, InitConfig) else "model.base"
    check_length(run.packing.sequence_length, positions, "packing.sequence_length", name)


def check_store(store: Path) -> None:
    """Refuse a directory that is no place for a store: a file stands there or above it, or nothing can be written."""
    try:
        above = next(path for path in (store, *store.parents) if path.exists() or path.is_symlink())
        if not above.is_dir():
            raise ConfigError(
                f"store: {above} is no directory; name another place in the configuration's store"
            )
        if not os.access(above, os.W_OK | os.X_OK):
            whose = "it" if above == store else f"{above}, where it would be made,"
            raise ConfigError(
                f"store: {store} cannot be written: {whose} is read-only for this user; name another place in the "
                "configuration's store"
            )
    except (OSError, ValueError) as error:
        raise ConfigError(f"store: {str(store)[:200]!r} is no path of a directory ({error})") from error


def check_device(device: str, field: str) -> None:
    """Refuse `cuda` where there is no GPU. Torch is loaded only if a GPU is asked for."""
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"{field} is cuda, but no GPU can be used here; set it to auto or cpu, or run where there is one "
            "(onward plan --memory 24G --device-name H100 estimates another machine)"
        )


def _budgets(run: RunConfig) -> None:
    """Refuse budgets of less than a step, and more sequences than a manifest can number."""
    batch, length = run.training.batch_tokens, run.packing.sequence_length
    named = [(f"training.token_budgets: {count_text(one)}", one) for one in run.training.token_budgets[:1]]
    if isinstance(run.model.base, InitConfig):
        tokens = run.model.base.pretrain_tokens
        named.insert(0, (f"model.base.init.pretrain_tokens: {count_text(tokens)}", tokens))
    for what, tokens in named:
        if tokens < batch:
            raise ConfigError(
                f"{what} is less than one step of {batch:,} tokens (training.batch_tokens); raise it, or lower "
                "training.batch_tokens"
            )
    rounds = rounds_of(run)
    if rounds[-1].last_step * batch // length >= _MOST_SEQUENCES:
        raise ConfigError(
            f"training.token_budgets: {rounds[-1].name} in sequences of {length:,} tokens (packing.sequence_length) are "
            "more than 4 billion sequences; lower the budget, or take longer sequences"
        )


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
            found = matches(pattern, home()).found
            if not found or all(path.is_dir() for path in found):
                raise ConfigError(
                    f"corpus.sources: {source.name}: no file matches {pattern!r}: {why_none(pattern, home())}"
                )
        if source.files is not None and of_source(source.name, source.files, home(), source.text_field):
            continue  # documents: what is no document is set aside
        check_kinds(source.name, source.files or (), home())
        absent, there, whole = _absent(source)
        if absent and whole:
            raise ConfigError(
                f"corpus.sources: {source.name}: keep_fields names {listed(absent)}, which no file has; they have "
                f"{listed(there)}"
            )


def _absent(source: SourceConfig) -> tuple[list[str], list[str], bool]:
    """The fields to keep that no file of a source begins with, those that are there, and whether there are no others."""
    if not source.keep_fields or source.files is None:
        return [], [], False
    found = [fields_of(path) for pattern in source.files for path in matches(pattern, home()).files]
    if not all(names for names, _ in found):
        return [], [], False
    there = set().union(*(names for names, _ in found)) - {source.text_field}
    absent = [name for name in source.keep_fields if name not in {*there, source.text_field}]
    return absent, sorted(there), all(whole for _, whole in found)


def _filter(run: RunConfig) -> None:
    """Refuse a classifier that is not there. What it must be is checked when it is loaded."""
    section = run.corpus.filter
    if section.edu_classifier is None:
        return
    directory = home() / section.edu_classifier
    if not (directory / "config.json").is_file():
        raise ConfigError(
            f"corpus.filter.edu_classifier: {directory} holds no model: no config.json is there"
        )
    _json_object(directory / "config.json")


def check_length(length: int, positions: int | None, field: str, model: str) -> None:
    """Raise ConfigError if sequences are longer than the model's positions, if those are known."""
    if positions is not None and length > positions:
        raise ConfigError(f"{field} {length:,} is longer than the {positions:,} positions of {model}")


def positions_of(directory: Path) -> int | None:
    """Number of positions of a model in a directory; None if it is not there. A hub model's is known after its import."""
    config = _json_object(directory / "config.json")
    for name in ("max_position_embeddings", "n_positions"):
        if type(config.get(name)) is int:
            return int(config[name])
    return None


def _json_object(path: Path) -> dict[str, Any]:
    """The fields of a file of a model; none if it is not there. Raises ConfigError if it holds anything else."""
    try:
        if not path.is_file():
            return {}
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}; the file may be cut short") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no fields: a JSON object must stand there")
    return found


def advice(run: RunConfig) -> list[str]:
    """Warnings about what is allowed but probably not intended: a warm-up that does not fit, and budgets of few steps."""
    return [*_warmup(run), *_steps(run), *_rounding(run), *_kept(run), *_patterns(run), *_fields(run)]


def _patterns(run: RunConfig) -> Iterator[str]:
    """Patterns that stand for some folders, and are the name of another."""
    for source in run.corpus.sources:
        for pattern in source.files or ():
            if (written := other_reading(pattern, home())) is not None:
                yield (
                    f"corpus.sources: {source.name}: {pattern!r} is also the name of a folder, which is not read; "
                    f"write {written!r} for it"
                )


def _fields(run: RunConfig) -> Iterator[str]:
    """Fields to keep that are not seen, and the score that a rule asks for, left behind."""
    for source in run.corpus.sources:
        if source.keep_fields is None:
            continue
        absent, there, _ = _absent(source)
        if absent:
            yield (
                f"corpus.sources: {source.name}: keep_fields names {listed(absent)}, which the first rows of its files do "
                f"not have; they have {listed(there)}"
            )
        if run.corpus.filter.min_edu_score is not None and "score" not in source.keep_fields:
            yield (
                f"corpus.sources: {source.name}: keep_fields leaves out 'score', which corpus.filter.min_edu_score asks for"
            )


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


def _rounding(run: RunConfig) -> list[str]:
    """Budgets whose last step goes far beyond them."""
    batch = run.training.batch_tokens
    ends = [(one, one.last_step * batch) for one in rounds_of(run)]
    return [
        f"the budget {one.name} ends with a whole step, at {count_text(end)} tokens: {end / one.budget - 1:.0%} more"
        for one, end in ends
        if end > one.budget * (1 + _BEYOND)
    ]


def _kept(run: RunConfig) -> list[str]:
    """Checkpoints that would be kept on the way, but no budget is that large."""
    every, last = run.training.keep_every_tokens, run.training.token_budgets[-1]
    if every is None or every <= last:
        return []
    return [
        f"training.keep_every_tokens {count_text(every)} is more than the last budget {count_text(last)}: none is kept"
    ]
