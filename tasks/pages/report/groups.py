"""The mean of a group's main scores. Every benchmark counts alike; only benchmarks that all models have are used.

Benchmarks are independent samples of questions. The exception are benchmarks that ask the same questions in other
words (mmlu and mmlu_continuation): they are resampled together, and a question that changed in both counts as one
change.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from tasks.evaluation.bootstrap import Estimate, mean_of, together
from tasks.evaluation.catalog import questions_of
from tasks.evaluation.compare import turns
from tasks.evaluation.significance import sign_flips
from tasks.pages.report.facts import AnswerRow, BenchmarkRow, GroupRow, GroupScore
from tasks.pages.report.scores import Measure, finite

Benchmark = Measure[BenchmarkRow]
Members = Sequence[Measure[BenchmarkRow]] | Sequence[Measure[AnswerRow]]


def group_row(group: str, benchmarks: Sequence[Benchmark], names: Sequence[str]) -> Measure[GroupRow] | None:
    """The mean over the benchmarks of a group that all models have; None if there are none."""
    members = [one for one in benchmarks if one.row.group == group and set(names) <= set(one.row.models)]
    if not members:
        return None
    estimates = means_of(members, names)
    values = {}
    for name in names:
        low, high = (finite(end) for end in estimates[name].interval())
        values[name] = GroupScore(estimates[name].value, low, high, estimates[name].stderr)
    alike = [[other for other in names if all(_both(one, name, other) for one in members)] for name in names]
    row = GroupRow(
        group=group,
        benchmarks=tuple(one.row.benchmark for one in members),
        chance=sum(one.row.chance for one in members) / len(members),
        models=values,
    )
    return Measure(row, estimates, alike, exact=lambda before, after: _flips(members, before, after))


def _both(row: Benchmark, one: str, other: str) -> bool:
    return any(one in together and other in together for together in row.alike)


def _families(members: Members) -> dict[str, list[Any]]:
    """Benchmarks by the questions they ask. In a comparison of runs, `sciq (B)` asks other questions than `sciq
    (A)`.
    """
    found: dict[str, list[Any]] = {}
    for one in members:
        name, _, run = (one.row.benchmark or "").partition(" ")
        found.setdefault(f"{questions_of(name)} {run}".strip(), []).append(one)
    return found


def means_of(members: Members, names: Sequence[str]) -> dict[str, Estimate]:
    """Each model's mean over the benchmarks, which count alike; those that ask the same questions are drawn together."""
    families = _families(members)
    found: list[list[Estimate]] = []
    for asked, rows in families.items():
        estimates = [[row.estimates[name] for name in names] for row in rows]
        if len(rows) == 1:
            found += estimates
            continue
        places, strata = _places(rows, names)
        found.append(together(estimates, places, strata, f"together/{asked}"))
    weights = [len(rows) for rows in families.values()]
    return {name: mean_of([one[k] for one in found], weights) for k, name in enumerate(names)}


def _places(rows: Sequence[Any], names: Sequence[str]) -> tuple[list[list[np.ndarray]], np.ndarray]:
    """By benchmark and model, the question number of each table row; and the stratum (subject) of each question."""
    asked = [[_questions(row, name) for name in names] for row in rows]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(chain(*chain(*asked))))}
    places = [[np.array([numbers[key] for key in keys]) for keys in models] for models in asked]
    strata = np.unique(np.array([subject for subject, _ in numbers]), return_inverse=True)[1]
    return places, strata


def _questions(row: Any, name: str) -> list[tuple[str, int]]:
    table = row.tables[name]
    return [
        (subject or "", doc)
        for subject, doc in zip(table["subject"].to_pylist(), table["doc"].to_pylist(), strict=True)
    ]


def _flips(members: Sequence[Benchmark], before: str, after: str) -> float | None:
    """p of the exact test of a mean. The weight of a changed question depends on the sizes of its benchmarks.

    None if the answers of a benchmark are not simply right or wrong.
    """
    found = []
    for rows in _families(members).values():
        places, strata = _places(rows, [before])
        changed = np.zeros(len(strata))
        for row, [own] in zip(rows, places, strict=True):
            turned = turns(row.tables[before], row.tables[after], row.metric)
            if turned is None:
                return None
            changed[own] += turned / len(turned)
        found.append(changed)
    return sign_flips(np.concatenate(found))
