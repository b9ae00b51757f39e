"""One page over several seeds of one configuration: mean and standard deviation of every measure.

The reports' intervals are over questions; these are over training seeds. Data, held-out text and questions are the
same for every seed, so only training differs.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.pages.blocks import Block, Cell, Heading, Table, Text
from tasks.pages.plain import named, plain
from tasks.pages.report.facts import Pair, PerplexityRow, ResultRow, Results, change_of
from tasks.pages.wording import signed


@dataclass(frozen=True)
class Spread:
    """One value per seed, in order: their mean, and their sample standard deviation (n − 1), which is None for one
    value.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float | None


@dataclass(frozen=True, kw_only=True)
class ChangeSpread:
    """The change of a measure from one model to another. `questions`: the mean standard error over questions."""

    before: str = named("from")
    after: str = named("to")
    values: tuple[float, ...]
    mean: float
    deviation: float | None
    questions: float


@dataclass(frozen=True)
class MeasureSpread:
    """One measure: the spread of every model's value and of every change. `unit` is % or empty."""

    measure: str
    unit: str
    models: Mapping[str, Spread]
    changes: tuple[ChangeSpread, ...]


@dataclass(frozen=True)
class SeedsFacts:
    """The results over all seeds. Only what every seed has is summarised."""

    seeds: tuple[int, ...]
    models: tuple[str, ...]
    pairs: tuple[Pair, ...]
    measures: tuple[MeasureSpread, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of seeds.json."""
        return dict(plain(self))


def seeds_facts(reports: Mapping[int, Results]) -> SeedsFacts:
    """The spread of everything that the reports of all seeds contain."""
    facts = list(reports.values())
    names = [name for name in facts[0].names if all(name in one.names for one in facts)]
    pairs = [pair for pair in facts[0].pairs if pair[0] in names and pair[1] in names]
    measures = []
    for row in _rows(facts[0]):
        alike = [found for one in facts for found in _rows(one) if found.label == row.label]
        if len(alike) == len(facts):
            measures.append(_measure(row.label, alike, names, pairs))
    return SeedsFacts(tuple(reports), tuple(names), tuple(pairs), tuple(measures))


def _rows(facts: Results) -> list[ResultRow]:
    return [*facts.perplexity, *facts.benchmarks, *facts.means]


def _measure(
    label: str, rows: Sequence[ResultRow], names: Sequence[str], pairs: Sequence[Pair]
) -> MeasureSpread:
    models = {
        name: spread([_value(row, name) for row in rows])
        for name in names
        if all(name in row.models for row in rows)
    }
    changes = []
    for before, after in pairs:
        found = [change for row in rows if (change := change_of(row, before, after)) is not None]
        if len(found) == len(rows):
            own = spread([100 * change.value for change in found])
            over_questions = 100 * statistics.fmean(change.stderr for change in found)
            changes.append(
                ChangeSpread(
                    before=before,
                    after=after,
                    values=own.values,
                    mean=own.mean,
                    deviation=own.deviation,
                    questions=over_questions,
                )
            )
    return MeasureSpread(label, "" if isinstance(rows[0], PerplexityRow) else "%", models, tuple(changes))


def _value(row: ResultRow, name: str) -> float:
    return row.models[name].perplexity if isinstance(row, PerplexityRow) else 100 * row.models[name].score


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (n − 1) of one value per seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(tuple(values), statistics.fmean(values), deviation)


def seeds_blocks(facts: SeedsFacts, name: str) -> list[Block]:
    """The page: every measure of every model, and every change, as mean ± standard deviation over seeds."""
    seeds = ", ".join(str(seed) for seed in facts.seeds)
    pairs = facts.pairs
    scores = tuple(
        (Cell(row.measure), *(_spread(row.models.get(model), "") for model in facts.models))
        for row in facts.measures
    )
    changes = tuple((Cell(row.measure), *(_change(row, *pair) for pair in pairs)) for row in facts.measures)
    note = (
        "± is one sample standard deviation over seeds, not an error of the mean. Below a change: the standard error over "
        "questions (or documents) that each report shows on its own; where the deviation over seeds is larger, an interval "
        "over questions alone says too much. Changes of perplexity are in percent, others in points."
    )
    blocks: list[Block] = [
        Heading(1, f"{name}: {len(facts.seeds)} seeds"),
        Text(f"Training seeds {seeds}; the same data, held-out text and questions.", "findings"),
        Heading(2, "Scores"),
        Table(("", *facts.models), scores),
        Heading(2, "Changes"),
        Table(("", *(f"{before} → {after}" for before, after in pairs)), changes),
        Text(note, "note"),
        Heading(2, "Every seed"),
    ]
    rows = [
        (
            Cell(row.measure),
            Cell(model),
            *(Cell(f"{value:.4g}") for value in row.models[model].values),
        )
        for row in facts.measures
        for model in row.models
    ]
    head = ("", "model", *(f"seed {seed}" for seed in facts.seeds))
    return [*blocks, Table(head, tuple(rows), 2)]


def _spread(found: Spread | ChangeSpread | None, sign: str) -> Cell:
    if found is None:
        return Cell("–")
    mean = signed(found.mean, 2) if sign else f"{found.mean:.2f}"
    return Cell(mean if found.deviation is None else f"{mean} ± {found.deviation:.2f}")


def _change(row: MeasureSpread, before: str, after: str) -> Cell:
    for change in row.changes:
        if (change.before, change.after) == (before, after):
            return Cell(_spread(change, "+").text, below=f"over questions ± {change.questions:.2f}")
    return Cell("–")
