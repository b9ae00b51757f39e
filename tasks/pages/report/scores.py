"""The report's measurements: every model's scores with intervals, and the changes between models with their
verdicts.

A comparison is a pair of models. Its changes are corrected together in three families: benchmarks, held-out
sources, and means of groups. Models with other questions, lengths, examples or harness versions are shown side by
side but not compared.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.evaluation.bootstrap import Estimate
from tasks.evaluation.compare import (
    Change,
    document_scores,
    judged,
    perplexity_change,
    question_scores,
    score_change,
    with_mcnemar,
)
from tasks.evaluation.ratio import Ratio
from tasks.evaluation.significance import chance, labelled
from tasks.pages.report.facts import (
    BenchmarkRow,
    BenchmarkScore,
    ChangedAnswers,
    ModelChange,
    Pair,
    PerplexityRow,
    PerplexityScore,
    R,
)
from tasks.pages.report.inputs import ReportInputs

Json = dict[str, Any]


def pairs_of(names: Sequence[str]) -> list[Pair]:
    """Each model with the first, and from the third on also with the model before it."""
    first, *others = names
    pairs = [(first, name) for name in others]
    return pairs + list(itertools.pairwise(others))


@dataclass
class Measure(Generic[R]):
    """One benchmark, source or group: its shown row, and the data for its changes."""

    row: R
    estimates: Mapping[str, Estimate]
    alike: list[list[str]]
    """Groups of models that were asked the same questions in the same way."""
    tables: dict[str, pa.Table] = field(default_factory=dict)
    metric: str = ""
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    """For a source, instead of `estimates`: nats per token of each model."""
    exact: Callable[[str, str], float | None] | None = None
    """For a group: the exact test of two models."""
    falling: bool = False
    """Whether less is better. It has no exact test: the values are many and no two alike."""

    def change(self, before: str, after: str) -> Change | None:
        """The change from one model to another; None if they were not asked the same in the same way."""
        if not any(before in together and after in together for together in self.alike):
            return None
        if self.ratios:
            return perplexity_change(self.ratios[before], self.ratios[after])
        change = score_change(self.estimates[before], self.estimates[after])
        if self.falling:
            return replace(change, rising=False)
        if self.exact is not None:
            flips = self.exact(before, after)
            return replace(change, flips=flips, answers=flips is not None)
        return with_mcnemar(change, self.tables[before], self.tables[after], self.metric)


def add_changes(measures: Sequence[Measure[R]], pairs: Sequence[Pair]) -> list[R]:
    """Add the changes to the row of every measure, and return the rows. The changes of a pair are corrected for
    their number.
    """
    changes: list[list[ModelChange]] = [[] for _ in measures]
    for before, after in pairs:
        found = [
            (place, change)
            for place, measure in enumerate(measures)
            if (change := measure.change(before, after)) is not None
        ]
        for (place, _), change in zip(found, judged([change for _, change in found]), strict=True):
            changes[place].append(_told(change, before, after))
    for measure, own in zip(measures, changes, strict=True):
        measure.row = replace(measure.row, changes=tuple(own))
    return [measure.row for measure in measures]


def _told(change: Change, before: str, after: str) -> ModelChange:
    return ModelChange(
        before=before,
        after=after,
        value=change.value,
        low=finite(change.low),
        high=finite(change.high),
        stderr=change.stderr,
        count=change.count,
        p=change.p,
        adjusted=change.adjusted,
        verdict=change.verdict,
        seen=change.seen,
        mcnemar=ChangedAnswers(*change.mcnemar) if change.mcnemar is not None else None,
        flips=change.flips,
    )


def finite(value: float) -> float | None:
    """The value for JSON: None if it is not finite."""
    return value if math.isfinite(value) else None


def _read(part: Input) -> Json:
    return dict(json.loads(part.only().read_bytes()))


def perplexity_row(source: str, names: Sequence[str], inputs: ReportInputs) -> Measure[PerplexityRow] | None:
    """One source: perplexity and bits per byte of each model measured on it."""
    measured = [name for name in names if source in inputs.perplexity.get(name, {})]
    if not measured:
        return None
    read = {name: _read(inputs.perplexity[name][source]) for name in measured}
    tables = {name: pq.read_table(inputs.documents[name][source].only()) for name in measured}
    alike = _alike(tables, ("id", "tokens"), {name: _settings(read[name]) for name in measured})
    ratios: dict[str, Ratio] = {}
    for together in alike:
        ratios |= document_scores({name: tables[name] for name in together}, f"perplexity/{source}")
    values = {}
    for name in measured:
        low, high = (finite(_exp(end)) for end in ratios[name].interval())
        values[name] = PerplexityScore(
            perplexity=read[name]["perplexity"],
            low=low,
            high=high,
            bits_per_byte=read[name]["bits_per_byte"],
        )
    first = read[measured[0]]
    row = PerplexityRow(
        source=source,
        documents=first["documents"],
        tokens=first["tokens"],
        bytes=first["bytes"],
        max_length=first["max_length"],
        stride=first["stride"],
        lengths=_lengths(read),
        models=values,
    )
    return Measure(row, {}, alike, ratios=ratios)


def _exp(value: float) -> float:
    return math.inf if value > 700 else math.exp(value)


def benchmark_row(
    name: str, group: str, names: Sequence[str], inputs: ReportInputs
) -> Measure[BenchmarkRow] | None:
    """One benchmark: each model's main score with its interval, whether it is at chance, and every other metric."""
    measured = [model for model in names if name in inputs.scores.get(model, {})]
    if not measured:
        return None
    read = {model: _read(inputs.scores[model][name]) for model in measured}
    tables = {model: pq.read_table(inputs.questions[model][name].only()) for model in measured}
    first = read[measured[0]]
    main = first["main"]
    alike = _alike(tables, ("subject", "doc"), {model: _settings(read[model]) for model in measured})
    estimates: dict[str, Estimate] = {}
    for together in alike:
        estimates |= question_scores({model: tables[model] for model in together}, main, f"questions/{name}")
    kind = _bounds([table[main].to_numpy() for table in tables.values()])
    guess, rule = _chance(name, tables[measured[0]], first)
    values = {}
    for model in measured:
        low, high = (finite(min(max(end, kind[0]), kind[1])) for end in estimates[model].interval())
        values[model] = BenchmarkScore(
            score=read[model]["metrics"][main],
            low=low,
            high=high,
            stderr=estimates[model].stderr,
            at_chance=bool(guess and low is not None and high is not None and low <= guess <= high),
            metrics=read[model]["metrics"],
            errors=read[model]["stderr"],
        )
    row = BenchmarkRow(
        benchmark=name,
        group=group,
        metric=main,
        split=first["split"],
        shots=first["shots"],
        limit=first["limit"],
        questions=first["questions"],
        available=first["available"],
        max_length=first["max_length"],
        lengths=_lengths(read),
        chance=guess,
        rule=rule,
        models=values,
    )
    return Measure(row, estimates, alike, tables, main)


def _lengths(read: Mapping[str, Json]) -> tuple[int, ...]:
    """The lengths at which the models were measured."""
    return tuple(sorted({int(scores["max_length"]) for scores in read.values()}))


def _bounds(columns: Sequence[Any]) -> tuple[float, float]:
    """The range of a mean of these values: 0 to 1 if all values are in it, else unbounded."""
    if all(((column >= 0) & (column <= 1)).all() for column in columns):
        return 0.0, 1.0
    return -math.inf, math.inf


def _chance(name: str, table: pa.Table, scores: Json) -> tuple[float, str]:
    if "loglikelihoods" not in table.column_names:
        return float(scores["chance"]), "guess"
    choices = pa.compute.list_value_length(table["loglikelihoods"]).to_pylist()
    return chance(choices, table["target"].to_pylist(), labelled(name.split(" ")[0]))


def _settings(scores: Json) -> list[Any]:
    """Everything about the measurement except the questions. Scores can be compared only if it is equal.

    If a limit applies, the questions themselves show which were drawn.
    """
    names = ("main", "split", "shots", "max_length", "stride", "harness", "begin", "precision")
    return [scores.get(name) for name in names]


def _alike(
    tables: Mapping[str, pa.Table], columns: Sequence[str], settings: Mapping[str, list[Any]]
) -> list[list[str]]:
    found: list[list[str]] = []
    for name, table in tables.items():
        for together in found:
            first = together[0]
            if settings[first] == settings[name] and tables[first].select(columns).equals(
                table.select(columns)
            ):
                together.append(name)
                break
        else:
            found.append([name])
    return found
