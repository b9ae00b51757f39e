"""Bits per byte of the right answers: how well a model foresees the text of each, whichever it would have chosen.

−log2 p(right answer | question) / its bytes, a mean over questions. At this size many benchmarks stay at chance, and a
model that learns shows it here long before it chooses better: a measure that is continuous tells two checkpoints apart
with less noise (Heineman et al. 2025, arXiv:2508.13144; Magnusson et al. 2025, arXiv:2504.11393). It is computed from
the requests that the accuracy is computed from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.evaluation.bootstrap import Estimate
from tasks.evaluation.compare import question_scores
from tasks.pages.report.facts import GROUPS, AnswerRow, BenchmarkRow, GroupScore
from tasks.pages.report.groups import means_of
from tasks.pages.report.inputs import ReportInputs
from tasks.pages.report.scores import Measure, finite

_COLUMN = "bits"


def answer_rows(
    benchmarks: Sequence[Measure[BenchmarkRow]], names: Sequence[str], inputs: ReportInputs
) -> tuple[list[Measure[AnswerRow]], list[Measure[AnswerRow]]]:
    """(benchmarks, means of groups): those of which every answer's bytes are known."""
    rows = [row for one in benchmarks if (row := _benchmark(one, inputs)) is not None]
    means = [mean for group in GROUPS if (mean := _mean(group, rows, names)) is not None]
    return rows, means


def _benchmark(one: Measure[BenchmarkRow], inputs: ReportInputs) -> Measure[AnswerRow] | None:
    name = one.row.benchmark
    parts = {model: inputs.answers.get(model, {}).get(name) for model in one.tables}
    tables: dict[str, pa.Table] = {}
    for model, part in parts.items():
        bits = None if part is None else bits_of(one.tables[model], part)
        if bits is not None:
            tables[model] = (
                one.tables[model].select(["subject", "doc"]).append_column(_COLUMN, pa.array(bits))
            )
    alike = [[model for model in together if model in tables] for together in one.alike]
    estimates: dict[str, Estimate] = {}
    for together in alike:
        if together:
            estimates |= question_scores(
                {model: tables[model] for model in together}, _COLUMN, f"answers/{name}"
            )
    if not estimates:
        return None
    row = AnswerRow(
        group=one.row.group,
        benchmark=name,
        benchmarks=(name,),
        questions=one.row.questions,
        models={model: _score(estimate) for model, estimate in estimates.items()},
    )
    return Measure(row, estimates, alike, tables, falling=True)


def bits_of(questions: pa.Table, answers: Input) -> np.ndarray | None:
    """(questions,) bits per byte of each right answer; None if one of them cannot be told."""
    sizes = pq.read_table(answers.only())["bytes"].to_numpy()
    if "loglikelihoods" not in questions.column_names or len(sizes) != len(questions) or (sizes < 1).any():
        return None
    chosen = zip(questions["loglikelihoods"].to_pylist(), questions["target"].to_pylist(), strict=True)
    nats = np.array([values[target or 0] for values, target in chosen])
    bits: np.ndarray = -nats / math.log(2) / sizes
    return bits if np.isfinite(bits).all() else None


def _mean(group: str, rows: Sequence[Measure[AnswerRow]], names: Sequence[str]) -> Measure[AnswerRow] | None:
    """The mean over the benchmarks of a group that all models have; none of a single one, which is its own."""
    members = [one for one in rows if one.row.group == group and set(names) <= set(one.row.models)]
    if len(members) < 2:
        return None
    estimates = means_of(members, names)
    alike = [
        [
            other
            for other in names
            if all(any({name, other} <= set(all_) for all_ in one.alike) for one in members)
        ]
        for name in names
    ]
    row = AnswerRow(
        group=group,
        benchmark=None,
        benchmarks=tuple(one.row.benchmark or "" for one in members),
        questions=sum(one.row.questions for one in members),
        models={name: _score(estimates[name]) for name in names},
    )
    return Measure(row, estimates, alike, falling=True)


def _score(estimate: Estimate) -> GroupScore:
    low, high = (finite(end) for end in estimate.interval())
    return GroupScore(estimate.value, low, high, estimate.stderr)
