"""`onward compare RUN RUN…`: the report page across runs, and exactly the fields in which their configurations differ.

Runs are found by their records, and their measurements by the inputs of their reports. Nothing is made, and the store
does not change. A model that several runs share (usually the base) appears once, unless they measured it differently.
Two models are tested against each other if they answered the same questions, or read the same documents with the same
tokenization, in the same way. Otherwise they only stand side by side.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flows.inspect.differences import Differences, Field, differences, shown
from flows.inspect.reports import inputs_of, record_of, report_of
from storage.artifact import Input
from storage.errors import ConfigError, OnwardError
from storage.manifest import read_manifest
from storage.runs import RunRecord
from storage.store import Store
from tasks.pages.blocks import Block, Cell, Heading, Picture, Slot, Table, Text
from tasks.pages.canvas import save
from tasks.pages.html import html_of
from tasks.pages.markdown import markdown_of
from tasks.pages.plain import plain
from tasks.pages.report.cost import Cost, cost_blocks, cost_of, results_in
from tasks.pages.report.facts import Pair, ReportFacts, ReportModel, change_of, within
from tasks.pages.report.figures import draw
from tasks.pages.report.gather import gather
from tasks.pages.report.inputs import JournalSegment, ReportConfig, ReportInputs
from tasks.pages.report.page import blocks_of
from tasks.pages.report.tuning import Standing, pareto, standing_of, unbeaten

Json = dict[str, Any]
TERMINAL = (
    "The runs",
    "In what their configurations differ",
    "Perplexity on held-out text",
    "Benchmarks",
    "What it cost",
)
"""Sections that a terminal shows; the page has all of them, and the notes."""


@dataclass(frozen=True)
class Run:
    """One run of a comparison: its letter, its record, and the inputs of its report."""

    label: str
    record: RunRecord
    config: ReportConfig
    inputs: ReportInputs

    def model(self, name: str) -> ReportModel | None:
        """The run's own model of this name."""
        return next((model for model in self.inputs.models if model.name == name), None)


@dataclass(frozen=True)
class Comparison:
    """The content of the page: `facts` as in a report, and the differences between the runs."""

    runs: tuple[Run, ...]
    differing: Differences
    facts: ReportFacts
    cost: Cost
    standings: Mapping[str, Standing] = field(default_factory=dict)
    """By the run's label: how far its last model is from its base, on the domain's held-out text and on general text."""

    def to_json(self) -> Json:
        """Everything as plain JSON, without the points of figures."""
        kept = ("findings", "models", "pairs", "perplexity", "benchmarks", "groups", "answers", "samples")
        return {
            "runs": [
                {
                    "label": run.label,
                    "run": run.record.run,
                    "name": run.record.name,
                    "state": run.record.state,
                }
                for run in self.runs
            ],
            "differences": {
                kind: [
                    {"field": field.path, "values": field.values} for field in getattr(self.differing, kind)
                ]
                for kind in ("identity", "execution", "unknown")
            },
            "cost": self.cost.to_json(),
            "standings": plain(self.standings),
            **{name: plain(getattr(self.facts, name)) for name in kept},
        }

    def to_markdown(self) -> str:
        """The page as text, without figures."""
        return markdown_of(self.blocks())

    def blocks(self) -> list[Block]:
        """The page's blocks, without figures."""
        return [block for block in self._blocks(()) if not isinstance(block, Picture)]

    def write(self, directory: Path) -> None:
        """Write compare.md, compare.html, compare.json and figures/ into a new or empty directory. Raises OnwardError."""
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise OnwardError(f"{directory} exists already and is not empty")
        directory.mkdir(parents=True, exist_ok=True)
        blocks = self._blocks([*self._front(directory / "figures"), *draw(self.facts, directory / "figures")])
        (directory / "compare.md").write_text(markdown_of(blocks), encoding="utf-8")
        (directory / "compare.html").write_text(html_of(blocks, directory), encoding="utf-8")
        (directory / "compare.json").write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")

    def _front(self, directory: Path) -> list[Picture]:
        """The picture of what each run gained on the domain and lost elsewhere, if there are two at least."""
        if len(self.standings) < 2:
            return []
        directory.mkdir(exist_ok=True)
        front = unbeaten(self.standings)
        save(lambda tips: pareto(self.standings, front, None, tips), directory, "pareto")
        caption = (
            "Each run's last model against its base, with 95 % intervals: gain on the domain and loss on general text. "
            "Dashed: the front, of the runs that no other one beats in both."
        )
        return [Picture("pareto", caption)]

    def _blocks(self, pictures: Sequence[Picture]) -> list[Block]:
        blocks: list[Block] = []
        for block in blocks_of(self.facts, pictures, [*_runs_table(self.runs), *_differing(self)]):
            blocks += cost_blocks(self.facts, self.cost) if isinstance(block, Slot) else [block]
        return blocks


def compare(store: Store, names: Sequence[str]) -> Comparison:
    """Compare runs by name, in this order. The first run is the reference for the others.

    Raises ConfigError if a name is unknown or fewer than two runs are given, and OnwardError if a run has no report yet.
    """
    records = list({record.run: record for record in (record_of(store, name) for name in names)}.values())
    if len(records) < 2:
        raise ConfigError("compare: name two runs or more, all different")
    if len(records) > 26:
        raise ConfigError("compare: at most 26 runs")
    runs = tuple(
        Run(chr(ord("A") + place), record, *inputs_of(store, report_of(store, record)))
        for place, record in enumerate(records)
    )
    called = _benchmark_names(runs)
    names_of = _model_names(runs, called)
    config, inputs = _together(runs, names_of, called)
    pairs = _pairs(runs, names_of)
    own = [  # for the figures alone: every model against its base
        (names_of[run.label, run.inputs.models[0].name], names_of[run.label, model.name])
        for run in runs
        for model in run.inputs.models[1:]
    ]
    facts = gather(config, inputs, list(dict.fromkeys([*pairs, *own])))
    facts = replace(
        facts,
        pairs=tuple(pairs),
        title=f"{', '.join(run.label for run in runs[:-1])} and {runs[-1].label}, compared",
        findings=tuple(_findings(runs, names_of, facts)),
    )
    differing = differences({run.label: run.record.config for run in runs})
    return Comparison(runs, differing, facts, cost_of(facts, store.lookup), _standings(runs, store))


def _standings(runs: Sequence[Run], store: Store) -> dict[str, Standing]:
    """The standing of each run that measured held-out text of its base and of another model."""
    found = {}
    for run in runs:
        sources = (run.record.config.get("corpus") or {}).get("sources") or ()
        roles = {source["name"]: source["role"] for source in sources}
        results = results_in(report_of(store, run.record).path)
        standing = standing_of(results, roles)
        if standing.domain is not None or standing.general is not None:
            found[run.label] = standing
    return found


# ---- models and questions of several runs ---------------------------------------------------------------------------


Names = dict[tuple[str, str], str]
"""(run's label, name of a model or benchmark in that run) → its name in the comparison."""
_ASKED, _READ = ("scores", "questions", "answers"), ("perplexity", "documents")


def _model_names(runs: Sequence[Run], called: Names) -> Names:
    """Names of models: `B · 400M`; `A, B · 400M` if several runs share a model; its name alone if all runs share it.

    Runs do not share a model if they measured it with other results (at another length, for instance).
    """
    owners: dict[tuple[str, str], list[list[Run]]] = {}
    for run in runs:
        for model in run.inputs.models:
            name = model.name
            groups = owners.setdefault((model.digest, name), [])
            for group in groups:
                if all(_measured_alike(other, run, name, called) for other in group):
                    group.append(run)
                    break
            else:
                groups.append([run])
    found: Names = {}
    for (_, name), groups in owners.items():
        for group in groups:
            labels = [run.label for run in group]
            shown = name if len(labels) == len(runs) else f"{', '.join(labels)} · {name}"
            found.update({(label, name): shown for label in labels})
    return found


def _measured_alike(one: Run, other: Run, model: str, called: Names) -> bool:
    """Whether every measure that both runs made of a model has the same result, bit for bit."""
    first, second = (_measured(run, model, called) for run in (one, other))
    return all(first[what] == second[what] for what in first.keys() & second.keys())


def _measured(run: Run, model: str, called: Names) -> dict[tuple[str, str], str]:
    return {
        (kind, called.get((run.label, item), item) if kind in _ASKED else item): part.digest
        for kind in (*_ASKED, *_READ)
        for item, part in getattr(run.inputs, kind).get(model, {}).items()
    }


def _together(runs: Sequence[Run], names: Names, called: Names) -> tuple[ReportConfig, ReportInputs]:
    models: dict[str, ReportModel] = {}
    tables: dict[str, dict[str, dict[str, Input]]] = {kind: {} for kind in (*_ASKED, *_READ)}
    journals: list[JournalSegment] = []
    samples: dict[str, Input] = {}
    for run in runs:
        for model in run.inputs.models:
            name = names[run.label, model.name]
            shared = models.get(name, replace(model, name=name))
            models[name] = replace(shared, series=(*shared.series, run.label))
            for kind, merged in tables.items():
                own = getattr(run.inputs, kind).get(model.name, {})
                measured = merged.setdefault(name, {})
                for item, part in own.items():
                    wanted = called.get((run.label, item), item) if kind in _ASKED else item
                    measured.setdefault(wanted, part)
            if model.name in run.inputs.samples:
                samples.setdefault(name, run.inputs.samples[model.name])
        known = {segment.journal.key for segment in journals}
        for segment in run.inputs.journals:
            computed = 0 if segment.journal.key in known else segment.computed
            journals.append(replace(segment, series=run.label, computed=computed))
    benchmarks: dict[str, str] = {}
    for run in runs:
        for item, group in run.config.benchmarks:
            benchmarks.setdefault(called.get((run.label, item), item), group)
    sources = tuple(dict.fromkeys(source for run in runs for source in run.config.sources))
    alike = len({tuple(entry.key for entry in run.inputs.corpus) for run in runs}) == 1
    first = runs[0].inputs
    return ReportConfig(benchmarks=tuple(benchmarks.items()), sources=sources), ReportInputs(
        models=tuple(models.values()),
        journals=tuple(journals),
        corpus=first.corpus if alike else (),
        hits=first.hits if alike else (),
        counted=first.counted if alike else (),
        packs=(),
        samples=samples,
        scores=tables["scores"],
        questions=tables["questions"],
        perplexity=tables["perplexity"],
        documents=tables["documents"],
        answers={name: own for name, own in tables["answers"].items() if own},
    )


def _benchmark_names(runs: Sequence[Run]) -> Names:
    """(run, benchmark) → a distinct name, if one name stands for different questions in different runs."""
    asked: dict[str, dict[str, str]] = {}
    for run in runs:
        for scores in run.inputs.scores.values():
            for item, part in scores.items():
                asked.setdefault(item, {})[run.label] = _questions_of(part)
    return {
        (label, item): f"{item} ({label})"
        for item, labels in asked.items()
        if len(set(labels.values())) > 1
        for label in labels
    }


def _questions_of(part: Input) -> str:
    """Identifies the questions of a score: the digests of their files, or of the part that held them."""
    inputs = read_manifest(part.root).inputs
    own = inputs.get("own")
    return json.dumps(own["digest"] if own else [file.get("sha256") for file in inputs.get("files", ())])


def _pairs(runs: Sequence[Run], names: Names) -> list[Pair]:
    """Each run's last model against its base; then, at each budget, the other runs against the first."""
    found = []
    for run in runs:
        own = [names[run.label, model.name] for model in run.inputs.models]
        found.append((own[0], own[-1]))
    for other in runs[1:]:
        found += [
            (names[runs[0].label, one], names[other.label, two]) for one, two in _budgets(runs[0], other)
        ]
    return [pair for pair in dict.fromkeys(found) if pair[0] != pair[1]]


def _budgets(first: Run, other: Run) -> list[Pair]:
    """The corresponding models of two runs: those of the same name, or the last ones if no names match."""
    shared = [model.name for model in first.inputs.models[1:] if other.model(model.name)]
    if shared:
        return [(name, name) for name in shared]
    return [(first.inputs.models[-1].name, other.inputs.models[-1].name)]


def _findings(runs: Sequence[Run], names: Names, facts: ReportFacts) -> list[str]:
    found = []
    for other in runs[1:]:
        one, two = _budgets(runs[0], other)[-1]
        before, after = names[runs[0].label, one], names[other.label, two]
        said = [
            f"perplexity on {row.source} {within(change)} % ({change.verdict})"
            for row in facts.perplexity
            if (change := change_of(row, before, after))
        ]
        said += [
            f"the mean of the {row.group} benchmarks {within(change)} points ({change.verdict})"
            for row in facts.groups
            if (change := change_of(row, before, after))
        ]
        first, last = runs[0].model(one), other.model(two)
        if first and last and first.digest == last.digest:
            how = "" if before == after else "; it was measured differently"
            found.append(
                f"{runs[0].label} and {other.label} ended in the same model ({two}), to the bit{how}."
            )
        else:
            found.append(f"{after} against {before}: {'; '.join(said) or 'nothing was measured on both'}.")
    return found


# ---- above the results ----------------------------------------------------------------------------------------------


def _runs_table(runs: Sequence[Run]) -> list[Block]:
    rows = tuple(
        (
            Cell(run.label),
            Cell(run.record.run),
            Cell(run.record.state),
            Cell(", ".join(model.name for model in run.inputs.models)),
        )
        for run in runs
    )
    return [Heading(2, "The runs"), Table(("", "run", "state", "models"), rows, 4)]


def _differing(comparison: Comparison) -> list[Block]:
    differing, labels = comparison.differing, [run.label for run in comparison.runs]
    blocks: list[Block] = [Heading(2, "In what their configurations differ")]
    if differing.unknown:
        return [
            *blocks,
            Text("A configuration has keys that are no longer known; all fields together:"),
            _fields_table("field", differing.unknown, labels),
        ]
    if differing.identity:
        blocks.append(_fields_table("field that decides results", differing.identity, labels))
    else:
        blocks.append(Text("In nothing that decides results."))
    if differing.execution:
        blocks.append(
            _fields_table("field that does not (where, how fast, names)", differing.execution, labels)
        )
    return blocks


def _fields_table(title: str, fields: Sequence[Field], labels: Sequence[str]) -> Table:
    rows = tuple(
        (Cell(field.path), *(Cell(shown(field.values[label])) for label in labels)) for field in fields
    )
    return Table((title, *labels), rows, notes=len(labels))
