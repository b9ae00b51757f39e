"""What several seeds of one configuration say together: mean and standard deviation of every measure, on one page.

The reports' intervals are over questions; here is what another training seed would have done. Data, held-out text and
questions are the same for every seed, so that what differs is training alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.pages.blocks import Block, Cell, Heading, Table, Text
from tasks.pages.report.facts import signed
from tasks.pages.report.scores import change_of

Json = dict[str, Any]


def seeds_facts(reports: Mapping[int, Json]) -> Json:
    """Of each seed's report.json: {seeds, models, measures: [{measure, unit, models: {name: spread}, changes: [spread]}]}.

    A spread is {values by seed in order, mean, deviation (sample standard deviation; None of one), questions: the mean
    standard error over questions, where there is one}. Only what every seed has is summarised.
    """
    seeds, facts = list(reports), list(reports.values())
    names = [model["name"] for model in facts[0]["models"]]
    names = [
        name for name in names if all(name in {model["name"] for model in one["models"]} for one in facts)
    ]
    pairs = [pair for pair in facts[0]["pairs"] if pair[0] in names and pair[1] in names]
    measures = []
    for kind, label, key in (
        ("perplexity", "source", "perplexity"),
        ("benchmarks", "benchmark", "score"),
        ("groups", "group", "score"),
    ):
        for row in facts[0][kind]:
            alike = [_same(one[kind], label, row[label]) for one in facts]
            if kind == "groups" and len(row["benchmarks"]) < 2:
                continue
            if all(found is not None for found in alike):
                title = {"perplexity": "perplexity on {}", "benchmarks": "{}", "groups": "mean, {}"}[kind]
                rows = [found for found in alike if found is not None]
                measures.append({"measure": title.format(row[label]), **_measure(rows, names, pairs, key)})
    return {"seeds": seeds, "models": names, "pairs": pairs, "measures": measures}


def _same(rows: Sequence[Json], label: str, name: str) -> Json | None:
    return next((row for row in rows if row[label] == name), None)


def _measure(rows: Sequence[Json], names: Sequence[str], pairs: Sequence[Sequence[str]], key: str) -> Json:
    scale = 1.0 if key == "perplexity" else 100.0
    models = {
        name: spread([scale * row["models"][name][key] for row in rows])
        for name in names
        if all(name in row["models"] for row in rows)
    }
    changes = []
    for before, after in pairs:
        found = [change for row in rows if (change := change_of(row, before, after)) is not None]
        if len(found) == len(rows):
            over_questions = 100 * statistics.fmean(change["stderr"] for change in found)
            values = [100 * change["value"] for change in found]
            changes.append({"from": before, "to": after, **spread(values), "questions": over_questions})
    return {"unit": "" if key == "perplexity" else "%", "models": models, "changes": changes}


def spread(values: Sequence[float]) -> Json:
    """Mean and sample standard deviation (n − 1) of one value a seed."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"values": list(values), "mean": statistics.fmean(values), "deviation": deviation}


def seeds_blocks(facts: Mapping[str, Any], name: str) -> list[Block]:
    """The page: every measure of every model, and every change, as mean ± standard deviation over seeds."""
    seeds = ", ".join(str(seed) for seed in facts["seeds"])
    pairs = facts["pairs"]
    scores = tuple(
        (Cell(row["measure"]), *(_spread(row["models"].get(model), "") for model in facts["models"]))
        for row in facts["measures"]
    )
    changes = tuple(
        (Cell(row["measure"]), *(_change(row, *pair) for pair in pairs)) for row in facts["measures"]
    )
    note = (
        "± is one sample standard deviation over seeds, not an error of the mean. Below a change: the standard error over "
        "questions (or documents) that each report shows on its own; where the deviation over seeds is larger, an interval "
        "over questions alone says too much. Changes of perplexity are in percent, others in points."
    )
    blocks: list[Block] = [
        Heading(1, f"{name}: {len(facts['seeds'])} seeds"),
        Text(f"Training seeds {seeds}; the same data, held-out text and questions.", "findings"),
        Heading(2, "Scores"),
        Table(("", *facts["models"]), scores),
        Heading(2, "Changes"),
        Table(("", *(f"{before} → {after}" for before, after in pairs)), changes),
        Text(note, "note"),
        Heading(2, "Every seed"),
    ]
    rows = [
        (
            Cell(row["measure"]),
            Cell(model),
            *(Cell(f"{value:.4g}") for value in row["models"][model]["values"]),
        )
        for row in facts["measures"]
        for model in row["models"]
    ]
    head = ("", "model", *(f"seed {seed}" for seed in facts["seeds"]))
    return [*blocks, Table(head, tuple(rows), 2)]


def _spread(found: Json | None, sign: str) -> Cell:
    if found is None:
        return Cell("–")
    mean = signed(found["mean"], 2) if sign else f"{found['mean']:.2f}"
    return Cell(mean if found["deviation"] is None else f"{mean} ± {found['deviation']:.2f}")


def _change(row: Json, before: str, after: str) -> Cell:
    for change in row["changes"]:
        if (change["from"], change["to"]) == (before, after):
            cell = _spread(change, "+")
            return Cell(cell.text, below=f"over questions ± {change['questions']:.2f}")
    return Cell("–")
