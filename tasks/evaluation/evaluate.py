"""Stage `evaluate`: measure one model on one benchmark with lm-evaluation-harness in process. Every answer is kept.

Invariant: scores equal those of the harness's own command line for the same export, rows and `max_length`. No output
depends on the clock. Rows are data: no code of a data set is run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import BadInput
from storage.settings import Settings, execution, identity
from tasks.corpus.tokens.begin import EOS, Begin
from tasks.evaluation import resume
from tasks.evaluation.catalog import (
    BENCHMARKS,
    FP32,
    OWN_MAIN,
    Precision,
    benchmark_files_of,
    file_identity,
    harness_version,
)
from tasks.evaluation.directory import TaskDirectory, read_task_directory
from tasks.evaluation.resume import ComputedBatches

if TYPE_CHECKING:
    from tasks.evaluation.harness import Answered

STAGE = "evaluate"
VERSION = 3
COMPONENTS = {"harness": 1, "questions": 1, "directory": 1, "qwen2": 2, **dict.fromkeys(BENCHMARKS, 1)}
"""Versions of how a model is asked: the harness's benchmarks, questions of the user's own (from a file, or of held-out
text), directories of task files; of each benchmark of the harness; and of the tokenizer of a Qwen2, which was built anew
by its class whatever tokenizer.json said."""


class EvaluateConfig(Settings):
    """How one model is measured on one benchmark."""

    benchmark: str = identity(description="Name of the benchmark: the harness's, or the user's own.")
    limit: int | None = identity(
        None, description="At most so many questions, drawn by the seed; null: all.", ge=2
    )
    seed: int = identity(0, description="Seed of the draw; has no effect without a limit.", ge=0)
    max_length: int = identity(
        description="Tokens that the model is given at most; longer ones are cut on the left.", ge=2
    )
    shots: int | None = identity(
        None, description="Examples before each question; null: the harness's own number.", ge=0
    )
    begin: Begin = identity(
        EOS,
        since="0.2",
        description="Token before a question; eos: what the tokenizer adds by itself; bos: the base's begin-of-text token, "
        "as the harness's add_bos_token=True.",
    )
    precision: Precision = identity(FP32, since="0.2", description="Arithmetic: fp32 or bf16.")
    device: str = execution("auto", description="auto, cpu or cuda.")


@dataclass(frozen=True)
class EvaluateInputs:
    """A model (part `export`) and the questions: files by their digests, or an artifact made from held-out documents.

    `files`: plain JSON (`file_identity` of each file). `paths`: the same files. `directory`: if given, it contains the
    task files among them. `harness`: the version whose definitions and metrics are used; another version measures
    again.
    """

    model: Input
    files: tuple[Mapping[str, Any], ...] = ()
    own: Input | None = None
    harness: str = field(default_factory=harness_version)
    paths: tuple[Path, ...] = field(default=(), metadata={"in_key": False})
    directory: Path | None = field(default=None, metadata={"in_key": False})


@dataclass(frozen=True)
class EvaluateStats:
    """What the flow shows of an evaluation: `metrics` and `stderr` by the harness's names, and the number of
    questions."""

    benchmark: str
    questions: int
    main: str
    chance: float
    metrics: dict[str, float]
    stderr: dict[str, float]


def evaluate_config(
    benchmark: str,
    limit: int | None,
    seed: int,
    max_length: int,
    device: str = "auto",
    begin: Begin = EOS,
    precision: Precision = FP32,
) -> EvaluateConfig:
    """The stage's configuration. Without a limit the seed has no effect and is set to 0."""
    return EvaluateConfig(
        benchmark=benchmark,
        limit=limit,
        seed=seed if limit is not None else 0,
        max_length=max_length,
        device=device,
        begin=begin,
        precision=precision,
    )


def harness_inputs(
    model: Input,
    benchmark: str,
    benchmark_files: Path | str,
    identify: Callable[[Path], Mapping[str, Any]] = file_identity,
    shots: int | None = None,
) -> EvaluateInputs:
    """Inputs for a benchmark of the harness; the files are the user's local copies, or `hub_questions` fetched them.

    With `shots`, the file of the examples is among them. `identify` returns name, bytes and sha256 of a file. Raises
    ConfigError if a file is missing.
    """
    paths = benchmark_files_of(benchmark, benchmark_files, shots)
    return EvaluateInputs(model, tuple(dict(identify(path)) for path in paths), paths=paths)


def own_file_inputs(
    model: Input, file: Path | str, identify: Callable[[Path], Mapping[str, Any]] = file_identity
) -> EvaluateInputs:
    """Inputs for a user's own JSONL file. Its bytes are in the key, its name is not."""
    path = Path(file)
    facts = {name: value for name, value in identify(path).items() if name != "name"}
    return EvaluateInputs(model, (facts,), paths=(path,))


def own_directory_inputs(
    model: Input, directory: Path | str, identify: Callable[[Path], Mapping[str, Any]] = file_identity
) -> EvaluateInputs:
    """Inputs for a user's directory of task files: these files, the files that they include, and their data files.

    Raises ConfigError if a file is missing or asks for code.
    """
    found = read_task_directory(Path(directory))
    files = tuple({**identify(path), "name": name} for name, path in found.files.items())
    return EvaluateInputs(model, files, paths=tuple(found.files.values()), directory=Path(directory))


def own_held_out_inputs(model: Input, questions: Input) -> EvaluateInputs:
    """Inputs for a benchmark made by the stage `questions` (its part `questions`)."""
    return EvaluateInputs(model, own=questions)


def components(config: EvaluateConfig, inputs: EvaluateInputs) -> Iterator[str]:
    """How this benchmark is asked, itself where it is one of the harness's, and the kind of the model if it matters."""
    if "qwen2" in map(_kind_of, inputs.model.paths):
        yield "qwen2"
    if inputs.directory is not None:
        yield "directory"
    elif inputs.own is None and config.benchmark in BENCHMARKS:
        yield from ("harness", config.benchmark)
    else:
        yield "questions"


@functools.lru_cache(maxsize=64)
def _kind_of(path: Path) -> str | None:
    """The model_type in a config.json; None for other files."""
    return json.loads(path.read_bytes()).get("model_type") if path.name == "config.json" else None


def run(config: EvaluateConfig, inputs: EvaluateInputs, draft: Draft) -> EvaluateStats:
    """Parts `scores` (scores.json), `questions` (questions.parquet: one row per question) and `answers` (answers.parquet:
    the bytes of the right answer of each, in the same order).

    Raises BadInput for unusable questions, ConfigError for a length that the model does not support.
    """
    from tasks.evaluation import harness
    from tasks.evaluation.model import (
        SLOW,
        device_of,
        execution_facts,
        export_directory,
        load_model,
        quiet,
        slow_in,
    )
    from tasks.evaluation.scorer import Scorer

    device = device_of(config.device)
    if slow_in(config.precision, device):
        draft.say(SLOW)
    with quiet(), harness.templates():
        asked = _asked(config, inputs, draft)
        sizes = {subject: len(task.task_docs) for subject, task in asked.tasks.items()}
        chosen = _chosen(config, sizes)
        built = _built(asked, chosen)
        export = export_directory(inputs.model)
        model = load_model(export, device, config.max_length, config.precision)
        scorer = Scorer(model, export, config.max_length, draft.progress, config.begin)
        facts = execution_facts(device)
        with ComputedBatches(draft.path / resume.NAME, facts) as scorer.kept:
            answers = harness.answer(scorer, built)
    task = next(iter(asked.tasks.values()))
    table = questions_table(answers)
    scores = {
        "benchmark": config.benchmark,
        "main": asked.main,
        "split": asked.split,
        "shots": task.config.num_fewshot,
        "limit": config.limit,
        "seed": config.seed,
        "max_length": config.max_length,
        "harness": inputs.harness,
        "available": sum(sizes.values()),
        "answers_over_max_length": scorer.cut,
        **score(table, task.aggregation(), asked.groups),
    }
    if config.begin != EOS:
        scores["begin"] = config.begin
    if config.precision != FP32:
        scores["precision"] = config.precision
    (draft.path / "scores.json").write_text(
        json.dumps(scores, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    pq.write_table(table, draft.path / "questions.parquet", compression="zstd")
    sizes_of = pa.array([answer.answer_bytes for answer in answers], pa.int32())
    pq.write_table(pa.table({"bytes": sizes_of}), draft.path / "answers.parquet", compression="zstd")
    draft.part("answers", "answers.parquet")
    draft.part("scores", "scores.json")
    draft.part("questions", "questions.parquet")
    draft.note(**facts, shared=vars(scorer.shares), tokens_computed=scorer.computed)
    _warn_of_split(config, asked, draft)
    names = ("benchmark", "questions", "main", "chance", "metrics", "stderr")
    return EvaluateStats(**{name: scores[name] for name in names})


def requests_of(config: EvaluateConfig, inputs: EvaluateInputs, draft: Draft) -> list[Any]:
    """The harness's requests of the chosen questions, inside `harness.templates()`."""
    asked = _asked(config, inputs, draft)
    return _built(
        asked, _chosen(config, {subject: len(task.task_docs) for subject, task in asked.tasks.items()})
    )


def _built(asked: _Questions, chosen: Mapping[str | None, list[int]]) -> list[Any]:
    from tasks.evaluation import harness

    return [
        item
        for subject, task in asked.tasks.items()
        for item in harness.requests_of(subject, task, chosen[subject])
    ]


@dataclass(frozen=True)
class _Questions:
    """The questions for the model: the harness's task by subject, the split, the score shown first, groups of
    subjects."""

    tasks: Mapping[str | None, Any]
    split: str
    main: str
    groups: Mapping[str, str] = field(default_factory=dict)


def _asked(config: EvaluateConfig, inputs: EvaluateInputs, draft: Draft) -> _Questions:
    from tasks.evaluation import harness
    from tasks.evaluation.questions import read_questions

    known = BENCHMARKS.get(config.benchmark)
    if inputs.own is not None:
        return _Questions(
            harness.own_task(config.benchmark, read_questions(inputs.own.only())), "own", OWN_MAIN
        )
    _unchanged(inputs)
    if inputs.directory is not None:
        found = _directory(inputs.directory, inputs.paths)
        tasks, split = harness.tasks_of_directory(found, draft.path / "data")
        return _Questions(tasks, split, found.main)
    if known is None:
        return _Questions(
            harness.own_task(config.benchmark, read_questions(inputs.paths[0])), "own", OWN_MAIN
        )
    rows = harness.read_rows(inputs.paths[0])
    examples = harness.read_rows(inputs.paths[1]) if len(inputs.paths) > 1 else []
    tasks = harness.tasks_of_rows(known, rows, examples, config.shots)
    split = inputs.paths[0].name.split(".")[0]
    return _Questions(tasks, split, known.main, harness.groups_of(known, tasks))


def _unchanged(inputs: EvaluateInputs) -> None:
    for path, facts in zip(inputs.paths, inputs.files, strict=True):
        if file_identity(path)["sha256"] != facts["sha256"]:
            raise BadInput(
                f"{path} changed since this run began; the next start measures on the new file", passing=True
            )


def _directory(directory: Path, paths: tuple[Path, ...]) -> TaskDirectory:
    found = read_task_directory(directory)
    if tuple(found.files.values()) != paths:
        raise BadInput(
            f"{directory} changed since this run began; the next start measures with its new content",
            passing=True,
        )
    return found


def _warn_of_split(config: EvaluateConfig, asked: _Questions, draft: Draft) -> None:
    known = BENCHMARKS.get(config.benchmark)
    if known and asked.split not in (known.split, "own"):
        draft.warn(
            f"{config.benchmark}: the harness scores the {known.split} split; only {asked.split} is available here"
        )


def _chosen(config: EvaluateConfig, sizes: Mapping[str | None, int]) -> dict[str | None, list[int]]:
    """Question ids by subject: all, or `limit` of all subjects' questions, drawn by seed and benchmark."""
    everything = [(subject, doc_id) for subject, size in sizes.items() for doc_id in range(size)]
    if config.limit is not None and config.limit < len(everything):
        name = int.from_bytes(hashlib.blake2b(config.benchmark.encode(), digest_size=8).digest(), "little")
        drawn = np.random.default_rng([config.seed, name]).choice(
            len(everything), config.limit, replace=False
        )
        everything = [everything[index] for index in sorted(drawn.tolist())]
    chosen: dict[str | None, list[int]] = {subject: [] for subject in sizes}
    for subject, doc_id in everything:
        chosen[subject].append(doc_id)
    return chosen


def questions_table(answers: list[Answered]) -> pa.Table:
    """One row per question: subject, doc (row in the benchmark), metrics, log-likelihoods (nats) of the choices,
    target."""
    names = list(answers[0].metrics)
    return pa.table(
        {
            "subject": pa.array([answer.subject for answer in answers], pa.string()),
            "doc": pa.array([answer.doc for answer in answers], pa.int64()),
            **{name: pa.array([answer.metrics[name] for answer in answers], pa.float64()) for name in names},
            "loglikelihoods": pa.array([answer.choices for answer in answers], pa.list_(pa.float64())),
            "unconditional": pa.array([answer.alone for answer in answers], pa.list_(pa.float64())),
            "target": pa.array([answer.target for answer in answers], pa.int32()),
        }
    )


_COLUMNS = ("subject", "doc", "loglikelihoods", "unconditional", "target")


def score(
    table: pa.Table,
    aggregation: Mapping[str, Callable[[list[float]], float]],
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Metrics over a table of questions, their standard errors, and the score of chance (mean of 1/n; 0 if open).

    Errors are sample deviations over √n (the harness's own for means). For perplexity the error is exp(−mean) times
    that of the mean (delta method). With subjects, the whole is weighted by size, as the harness does for a group, and
    each subject's score is given too. `groups` (subject → group) adds these groups' scores, weighted by size, with the
    harness's error of a group.
    """
    metrics, stderr = {}, {}
    for name in _metrics(table):
        values = table[name].to_pylist()
        metrics[name] = float(aggregation[name](values))
        error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
        stderr[name] = error * metrics[name] if name == "perplexity" else error
    counts = [len(choices) for choices in table["loglikelihoods"].to_pylist()]
    chance = float(np.mean([1 / count if count > 1 else 0.0 for count in counts]))
    found: dict[str, Any] = {"questions": len(table), "chance": chance, "metrics": metrics, "stderr": stderr}
    subjects = sorted({subject for subject in table["subject"].to_pylist() if subject is not None})
    if subjects:
        rows = {subject: table.filter(pa.compute.equal(table["subject"], subject)) for subject in subjects}
        found["subjects"] = {subject: _means(rows[subject]) for subject in subjects}
        named = {subject: group for subject, group in (groups or {}).items() if subject in rows}
        if named:
            found["groups"] = {
                group: _group([rows[subject] for subject in subjects if named.get(subject) == group])
                for group in sorted(set(named.values()))
            }
    return found


def _metrics(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name not in _COLUMNS]


def _means(rows: pa.Table) -> dict[str, Any]:
    means = {name: float(np.mean(rows[name].to_numpy())) for name in _metrics(rows) if name != "perplexity"}
    return {"questions": len(rows), **means}


def _group(subjects: list[pa.Table]) -> dict[str, Any]:
    """Means over all questions of some subjects. The error pools the subjects' variances (`pooled_sample_stderr`).

    It is √(Σ(n−1)·s² / (N − k) / N) over k subjects of n questions with sample deviation s, N questions in all.
    """
    sizes = [len(rows) for rows in subjects]
    whole, free = sum(sizes), sum(sizes) - len(sizes)
    found: dict[str, Any] = {"questions": whole, "subjects": len(subjects), "stderr": {}}
    for name in (name for name in _metrics(subjects[0]) if name != "perplexity"):
        values = [rows[name].to_numpy() for rows in subjects]
        found[name] = float(np.concatenate(values).mean())
        squares = sum(float(((one - one.mean()) ** 2).sum()) for one in values)
        found["stderr"][name] = math.sqrt(squares / free / whole) if free else 0.0
    return found
