"""The report's numbers, gathered from parts of the store: plain JSON, from which pages and figures are made.

What was measured is gathered in `report_scores`; here it is put together with training and data, and said in sentences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.pages.report.groups import group_row
from tasks.pages.report.scores import (
    GROUPS,
    Pair,
    add_changes,
    benchmark_row,
    change_of,
    pairs_of,
    perplexity_row,
)

if TYPE_CHECKING:
    from tasks.pages.report.report import ReportConfig, ReportInputs

Json = dict[str, Any]


def gather(config: ReportConfig, inputs: ReportInputs, pairs: Sequence[Pair] | None = None) -> Json:
    """All that the report says. `curves` (points of the journals) are for the figures alone.

    `pairs` are the comparisons, (from, to) by the models' names; by default each model with the base and the one before.
    """
    models = [dict(model) for model in inputs.models]
    names = [str(model["name"]) for model in models]
    pairs = pairs_of(names) if pairs is None else pairs
    sources = [row for one in config.sources if (row := perplexity_row(one, names, inputs)) is not None]
    benchmarks = [
        row
        for name, group in config.benchmarks
        if (row := benchmark_row(name, group, names, inputs)) is not None
    ]
    groups = [row for group in GROUPS if (row := group_row(group, benchmarks, names)) is not None]
    for rows in (sources, benchmarks, groups):
        add_changes(rows, pairs)
    facts: Json = {
        "models": models,
        "pairs": [list(pair) for pair in pairs],
        "computed": sum(int(segment["computed"]) for segment in inputs.journals),
        "segments": [_segment(segment) for segment in inputs.journals],
        "measured": _measured(inputs),
        "perplexity": [row.facts for row in sources],
        "benchmarks": [row.facts for row in benchmarks],
        "groups": [row.facts for row in groups],
        "samples": _samples(inputs.samples),
        "data": _data(inputs),
        "contamination": _contamination(inputs.hits, inputs.counted),
        "packing": [_packing(number, pack) for number, pack in enumerate(inputs.packs)],
        "curves": [_curve(segment) for segment in inputs.journals],
    }
    facts["findings"] = findings(facts)
    return facts


def _read(part: Input) -> Json:
    return dict(json.loads(part.only().read_bytes()))


def _segment(segment: Mapping[str, Any]) -> Json:
    journal: Input = segment["journal"]
    kept = {name: segment[name] for name in ("name", "kind", "computed")}
    return {**kept, "stage": journal.stage, "key": journal.key}


def _measured(inputs: ReportInputs) -> list[list[str]]:
    """(stage, key) of everything that was measured, so that what it cost can be looked up."""
    parts = [*inputs.scores.values(), *inputs.perplexity.values()]
    return sorted(
        {(part.stage, part.key): [part.stage, part.key] for one in parts for part in one.values()}.values()
    )


def _samples(samples: Mapping[str, Input]) -> list[Json]:
    """Each prompt, by the way of decoding, with what every model went on with."""
    found: dict[tuple[str, str], Json] = {}
    for model, part in samples.items():
        for row in json.loads(part.only().read_bytes()):
            decoding = str(row.get("decoding", ""))
            entry = found.setdefault(
                (row["prompt"], decoding), {"prompt": row["prompt"], "decoding": decoding, "models": {}}
            )
            entry["models"][model] = row["continuation"]
    return list(found.values())


_COUNTS = (
    "documents_in",
    "documents_out",
    "documents_dropped",
    "documents_held_out",
    "bytes_in",
    "bytes_out",
    "tokens",
)


def _data(inputs: ReportInputs) -> Json:
    """Documents and bytes of each source through the stages, summed over its slices; and what does not add up."""
    sources: dict[str, dict[str, Json]] = {}
    slices: dict[str, set[int]] = {}
    problems = []
    before: dict[tuple[int, str], int] = {}
    for entry in inputs.corpus:
        stats, place = entry["stats"], f"{entry['stage']}, slice {entry['slice']} ({entry['source']})"
        out, came = int(stats.get("documents_out", 0)), int(stats.get("documents_in", 0))
        gone = int(stats.get("documents_dropped", 0)) + int(stats.get("documents_held_out", 0))
        if came != out + gone:
            problems.append(f"{place}: {came} documents in, but {out} out and {gone} dropped or held out")
        last = before.get((entry["slice"], entry["source"]))
        if last is not None and last != came:
            problems.append(f"{place}: {came} documents in, but the stage before gave {last}")
        before[entry["slice"], entry["source"]] = out
        slices.setdefault(entry["source"], set()).add(entry["slice"])
        stages = sources.setdefault(entry["source"], {})
        total = stages.setdefault(entry["stage"], {"stage": entry["stage"], "dropped_by_reason": {}})
        for name in _COUNTS:
            if stats.get(name) is not None:
                total[name] = total.get(name, 0) + int(stats[name])
        for reason, count in stats.get("dropped_by_reason", {}).items():
            total["dropped_by_reason"][reason] = total["dropped_by_reason"].get(reason, 0) + int(count)
    return {
        "sources": [
            {"source": name, "slices": len(slices[name]), "stages": list(stages.values())}
            for name, stages in sources.items()
        ],
        "problems": problems,
    }


def _contamination(hits: Sequence[Input], counted: Sequence[Input]) -> list[Json]:
    """Per benchmark of the decontamination: its questions, and what of them was found in the corpus, summed over slices.

    After them those that were counted afterwards, over all slices at once; what was found of these is still in the corpus.
    """
    total: dict[str, Json] = {}
    for part in hits:
        for name, entry in sorted(_read(part).items()):
            row = total.setdefault(
                name,
                {
                    "benchmark": name,
                    "questions": 0,
                    "unchecked": 0,
                    "questions_found": 0,
                    "documents_found": 0,
                },
            )
            row["questions"], row["unchecked"] = int(entry["questions"]), int(entry["unchecked"])
            row["questions_found"] += int(entry["questions_found"])
            row["documents_found"] += int(entry["documents_found"])
    kept = ("questions", "unchecked", "questions_found", "documents_found")
    for part in counted:
        for name, entry in _read(part).items():
            total.setdefault(
                name, {"benchmark": name, **{key: int(entry[key]) for key in kept}, "afterwards": True}
            )
    return list(total.values())


def _packing(number: int, pack: Mapping[str, Any]) -> Json:
    stats = pack["stats"]
    tokens = max(int(stats["tokens"]), 1)
    kept = ("sequences", "tokens", "padding", "padding_fraction", "documents_whole", "documents_cut")
    ledger = ("available", "placed", "carried", "not_taken", "repeated")
    wanted = ("tokens", "epochs", *(f"tokens_{name}" for name in ledger))
    return {
        "round": number + 1,
        "key": pack["key"],
        **{name: stats[name] for name in kept},
        "sources": [
            {
                "source": name,
                "share": one["tokens"] / tokens,
                **{key: one[key] for key in wanted if key in one},
            }
            for name, one in stats["sources"].items()
        ],
    }


def _curve(segment: Mapping[str, Any]) -> Json:
    """Points of a training segment: step, tokens seen and loss (nats a token) of each logged step."""
    path = segment["journal"].only()
    names = [name for name in ("step", "tokens", "loss") if name in pq.read_schema(path).names]
    table = pq.read_table(path, columns=names)
    kept = {name: segment[name] for name in ("name", "kind", "series") if name in segment}
    return {**kept, **{name: table[name].to_pylist() for name in names}}


def findings(facts: Json) -> list[str]:
    """What a reader should take away, in sentences: the last model against the base, and against the one before."""
    if not facts["pairs"]:
        only = facts["models"][0]["name"]
        return [f"Only the model {only} was measured: there is nothing to compare yet."]
    base, last = facts["models"][0]["name"], facts["models"][-1]["name"]
    sentences = [
        _perplexity_sentence(row, change, base, last)
        for row in facts["perplexity"]
        if (change := change_of(row, base, last))
    ]
    sentences += [
        f"The mean of the {row['group']} benchmarks went from {100 * row['models'][base]['score']:.1f} to "
        f"{100 * row['models'][last]['score']:.1f} ({points(change)}): {change['verdict']}{_visible(change)}."
        for row in facts["groups"]
        if (change := change_of(row, base, last))
    ]
    sentences += _last_step(facts)
    return sentences or [f"Nothing was measured on both {base} and {last}."]


def _last_step(facts: Json) -> list[str]:
    """Whether going on from the last budget but one was worth it."""
    names = [model["name"] for model in facts["models"]]
    if len(names) < 3:
        return []
    before, after = names[-2:]
    said = [
        f"{row['group']} {points(change)}, {change['verdict']}"
        for row in facts["groups"]
        if (change := change_of(row, before, after))
    ]
    said = said or [
        f"perplexity on {row['source']} {percent(change)}, {change['verdict']}"
        for row in facts["perplexity"]
        if (change := change_of(row, before, after))
    ]
    return [f"Going on from {before} to {after}: {'; '.join(said)}."] if said else []


def _perplexity_sentence(row: Json, change: Json, base: str, last: str) -> str:
    before, after = (row["models"][name]["perplexity"] for name in (base, last))
    clear = change["verdict"] != "no clear change"
    how = ("fell" if change["value"] < 0 else "rose") if clear else "hardly moved:"
    moved = f"Perplexity on {row['source']} {how} from {before:.4g} to {after:.4g}"
    return f"{moved} ({percent(change)}){_visible(change, ' %')}."


def _visible(change: Json, unit: str = " points") -> str:
    if change["verdict"] != "no clear change":
        return ""
    return f" (a change of {100 * change['seen']:.1f}{unit} would have been seen)"


def points(change: Mapping[str, Any]) -> str:
    """A change of a score in points, with its interval."""
    return f"{within(change)} points"


def percent(change: Mapping[str, Any]) -> str:
    """A relative change, with its interval."""
    return f"{within(change)} %"


def within(change: Mapping[str, Any], scale: float = 100, digits: int = 1) -> str:
    """A change with its interval: +2.3 [0.8, 3.9]; without one where there is a single question."""
    value = signed(scale * change["value"], digits)
    if change["low"] is None:
        return value
    low, high = (f"{scale * change[end]:.{digits}f}".replace("-", "−") for end in ("low", "high"))
    return f"{value} [{low}, {high}]"


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, by the typographic minus; nothing that rounds to zero has one."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")
