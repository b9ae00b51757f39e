"""Stage `evaluate`: one model on one benchmark, by lm-evaluation-harness in process; scores and every answer are kept.

Invariant: scores equal those of the harness's own command line on the same export, rows and `max_length`. Nothing that
depends on the clock is written, and rows are data: no code of a data set runs.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
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
from tasks.evaluation.catalog import (
    BENCHMARKS,
    OWN_MAIN,
    Benchmark,
    benchmark_files_of,
    file_identity,
)

if TYPE_CHECKING:
    from tasks.evaluation.harness import Answered

STAGE = "evaluate"
VERSION = 1


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
    device: str = execution("auto", description="auto, cpu or cuda.")


@dataclass(frozen=True)
class EvaluateInputs:
    """A model (part `export`) and the questions: files by their digests, or an artifact made from held-out documents.

    `files` is plain JSON (`file_identity` of each file); `paths` are the same files.
    """

    model: Input
    files: tuple[Mapping[str, Any], ...] = ()
    own: Input | None = None
    paths: tuple[Path, ...] = field(default=(), metadata={"in_key": False})


@dataclass(frozen=True)
class EvaluateStats:
    """What the flow shows of an evaluation: `metrics` and `stderr` by the harness's names, and how many questions."""

    benchmark: str
    questions: int
    main: str
    chance: float
    metrics: dict[str, float]
    stderr: dict[str, float]


def evaluate_config(
    benchmark: str, limit: int | None, seed: int, max_length: int, device: str = "auto"
) -> EvaluateConfig:
    """The stage's configuration; without a limit the seed is set to 0, since it decides nothing."""
    return EvaluateConfig(
        benchmark=benchmark,
        limit=limit,
        seed=seed if limit is not None else 0,
        max_length=max_length,
        device=device,
    )


def harness_inputs(
    model: Input,
    benchmark: str,
    benchmark_files: Path | str,
    identify: Callable[[Path], Mapping[str, Any]] = file_identity,
) -> EvaluateInputs:
    """Inputs for a benchmark of the harness: local copies, the user's or those that `hub_questions` fetched.

    `identify` gives name, bytes and sha256 of a file. Raises ConfigError where a file is missing.
    """
    paths = benchmark_files_of(benchmark, benchmark_files)
    return EvaluateInputs(model, tuple(dict(identify(path)) for path in paths), paths=paths)


def own_file_inputs(
    model: Input, file: Path | str, identify: Callable[[Path], Mapping[str, Any]] = file_identity
) -> EvaluateInputs:
    """Inputs for a user's own JSONL file; its name is not identity, its bytes are."""
    path = Path(file)
    facts = {name: value for name, value in identify(path).items() if name != "name"}
    return EvaluateInputs(model, (facts,), paths=(path,))


def own_held_out_inputs(model: Input, questions: Input) -> EvaluateInputs:
    """Inputs for a benchmark made by stage `questions` (its part `questions`)."""
    return EvaluateInputs(model, own=questions)


def run(config: EvaluateConfig, inputs: EvaluateInputs, draft: Draft) -> EvaluateStats:
    """Parts `scores` (scores.json) and `questions` (questions.parquet: one row per question).

    Raises BadInput for questions that cannot be used, ConfigError for a length that the model does not have.
    """
    from tasks.evaluation import harness
    from tasks.evaluation.model import device_of, execution_facts, export_directory, load_model, quiet

    known = BENCHMARKS.get(config.benchmark)
    device = device_of(config.device)
    with quiet(), harness.templates_compiled_once():
        tasks, split = _tasks(config, inputs, known)
        sizes = {subject: len(task.task_docs) for subject, task in tasks.items()}
        chosen = _chosen(config, sizes)
        built = [
            item
            for subject, task in tasks.items()
            for item in harness.requests_of(subject, task, chosen[subject])
        ]
        export = export_directory(inputs.model)
        model = load_model(export, device, config.max_length)
        scorer = harness.Scorer(model, export, config.max_length, draft.progress)
        answers = harness.answer(scorer, built)
    task = next(iter(tasks.values()))
    table = questions_table(answers)
    scores = {
        "benchmark": config.benchmark,
        "main": known.main if known else OWN_MAIN,
        "split": split,
        "shots": task.config.num_fewshot,
        "limit": config.limit,
        "seed": config.seed,
        "max_length": config.max_length,
        "harness": harness.version(),
        "available": sum(sizes.values()),
        "answers_over_max_length": scorer.cut,
        **score(table, task.aggregation()),
    }
    (draft.path / "scores.json").write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n")
    pq.write_table(table, draft.path / "questions.parquet", compression="zstd")
    draft.part("scores", "scores.json")
    draft.part("questions", "questions.parquet")
    draft.note(**execution_facts(device), batch_size=scorer.batch_size)
    if known and split != known.split:
        draft.warn(
            f"{config.benchmark}: the harness scores the {known.split} split; here only {split} could be had"
        )
    names = ("benchmark", "questions", "main", "chance", "metrics", "stderr")
    return EvaluateStats(**{name: scores[name] for name in names})


def _tasks(
    config: EvaluateConfig, inputs: EvaluateInputs, known: Benchmark | None
) -> tuple[dict[str | None, Any], str]:
    from tasks.evaluation import harness
    from tasks.evaluation.own import read_questions

    if inputs.own is not None:
        return harness.own_task(config.benchmark, read_questions(inputs.own.only())), "own"
    for path, facts in zip(inputs.paths, inputs.files, strict=False):
        if file_identity(path)["sha256"] != facts["sha256"]:
            raise BadInput(
                f"{path} changed since this run began; start the run again to measure on the new file"
            )
    if known is None:
        return harness.own_task(config.benchmark, read_questions(inputs.paths[0])), "own"
    rows = harness.read_rows(inputs.paths[0])
    examples = harness.read_rows(inputs.paths[1]) if len(inputs.paths) > 1 else []
    return harness.tasks_of_rows(known, rows, examples, config.shots), inputs.paths[0].name.split(".")[0]


def _chosen(config: EvaluateConfig, sizes: Mapping[str | None, int]) -> dict[str | None, list[int]]:
    """Question ids by subject: all, or `limit` of all subjects' questions together, drawn by seed and benchmark."""
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
    """One row per question: subject, doc (row in the benchmark), metrics, log-likelihoods (nats) of the choices, target."""
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


def score(table: pa.Table, aggregation: Mapping[str, Callable[[list[float]], float]]) -> dict[str, Any]:
    """Metrics over a table of questions, their standard errors, and the score of chance (mean of 1/n; 0 where open).

    Errors are sample deviations over √n (the harness's own for means); for perplexity, exp(−mean) times that of the mean
    (delta method). With subjects, the whole is weighted by size, as the harness's group is, and each subject stands too.
    """
    metrics, stderr = {}, {}
    for name in [name for name in table.column_names if name not in _COLUMNS]:
        values = table[name].to_pylist()
        metrics[name] = float(aggregation[name](values))
        error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
        stderr[name] = error * metrics[name] if name == "perplexity" else error
    counts = [len(choices) for choices in table["loglikelihoods"].to_pylist()]
    chance = float(np.mean([1 / count if count > 1 else 0.0 for count in counts]))
    found: dict[str, Any] = {"questions": len(table), "chance": chance, "metrics": metrics, "stderr": stderr}
    subjects = sorted({subject for subject in table["subject"].to_pylist() if subject is not None})
    if subjects:
        accuracy: dict[str, Any] = {}
        for subject in subjects:
            rows = table.filter(pa.compute.equal(table["subject"], subject))
            accuracy[subject] = {"questions": len(rows), "acc": float(np.mean(rows["acc"].to_numpy()))}
        found["subjects"] = accuracy
    return found
