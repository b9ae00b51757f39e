"""The report's numbers, gathered from parts of the store: plain JSON, from which pages and figures are made.

Every change is against the base model, with the paired standard error over the same questions or documents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.evaluation.compare import Change, mean_change, metric_change, perplexity_change

if TYPE_CHECKING:
    from tasks.report import ReportConfig, ReportInputs

Json = dict[str, Any]
GROUPS = ("domain", "general")


def gather(config: ReportConfig, inputs: ReportInputs) -> Json:
    """All that the report says. `curves` (points of the journals) are for the figures alone."""
    models = [dict(model) for model in inputs.models]
    names = [str(model["name"]) for model in models]
    perplexity = [row for source in config.sources if (row := _perplexity(source, names, inputs)) is not None]
    benchmarks = [
        row
        for name, group in config.benchmarks
        if (row := _benchmark(name, group, names, inputs)) is not None
    ]
    groups = [row for group in GROUPS if (row := _group(group, benchmarks, names)) is not None]
    facts: Json = {
        "models": models,
        "computed": sum(int(segment["computed"]) for segment in inputs.journals),
        "perplexity": perplexity,
        "benchmarks": benchmarks,
        "groups": groups,
        "data": _data(inputs),
        "contamination": _contamination(inputs.hits),
        "packing": [_packing(number, pack) for number, pack in enumerate(inputs.packs)],
        "curves": [_curve(segment) for segment in inputs.journals],
    }
    facts["findings"] = findings(facts)
    return facts


def _read(part: Input) -> Json:
    return dict(json.loads(part.only().read_bytes()))


def _change(change: Change | None) -> Json | None:
    if change is None:
        return None
    return {"value": change.value, "stderr": change.stderr, "clear": change.clear, "count": change.count}


def _perplexity(source: str, names: Sequence[str], inputs: ReportInputs) -> Json | None:
    """One source: perplexity and bits per byte of each model, and the relative change of perplexity."""
    measured = [name for name in names if source in inputs.perplexity.get(name, {})]
    if not measured or measured[0] != names[0]:
        return None
    read = {name: _read(inputs.perplexity[name][source]) for name in measured}
    tables = {name: pq.read_table(inputs.documents[name][source].only()) for name in measured}
    first = names[0]
    values = {
        name: {
            "perplexity": read[name]["perplexity"],
            "bits_per_byte": read[name]["bits_per_byte"],
            "change": _change(perplexity_change(tables[first], tables[name]) if name != first else None),
        }
        for name in measured
    }
    measure = {key: read[first][key] for key in ("documents", "tokens", "bytes", "max_length", "stride")}
    return {"source": source, **measure, "models": values}


def _benchmark(name: str, group: str, names: Sequence[str], inputs: ReportInputs) -> Json | None:
    """One benchmark: the main score of each model with its error, its change, and every other metric."""
    measured = [model for model in names if name in inputs.scores.get(model, {})]
    if not measured or measured[0] != names[0]:
        return None
    read = {model: _read(inputs.scores[model][name]) for model in measured}
    tables = {model: pq.read_table(inputs.questions[model][name].only()) for model in measured}
    first = names[0]
    main = read[first]["main"]
    values = {
        model: {
            "score": read[model]["metrics"][main],
            "stderr": read[model]["stderr"][main],
            "change": _change(metric_change(tables[first], tables[model], main) if model != first else None),
            "metrics": read[model]["metrics"],
            "errors": read[model]["stderr"],
        }
        for model in measured
    }
    kept = {
        key: read[first][key]
        for key in ("split", "shots", "limit", "questions", "available", "chance", "max_length")
    }
    return {"benchmark": name, "group": group, "metric": main, **kept, "models": values}


def _group(group: str, benchmarks: Sequence[Json], names: Sequence[str]) -> Json | None:
    """The mean of a group's main scores, every benchmark alike, over the benchmarks that all models have."""
    rows = [row for row in benchmarks if row["group"] == group and set(names) <= set(row["models"])]
    if not rows:
        return None
    values: Json = {}
    for name in names:
        own = [row["models"][name] for row in rows]
        change = None
        if name != names[0]:
            changes = [
                Change(one["change"]["value"], one["change"]["stderr"], one["change"]["count"]) for one in own
            ]
            change = mean_change(changes)
        score = mean_change(
            [
                Change(one["score"], one["stderr"], row["questions"])
                for one, row in zip(own, rows, strict=True)
            ]
        )
        values[name] = {"score": score.value, "stderr": score.stderr, "change": _change(change)}
    chance = sum(row["chance"] for row in rows) / len(rows)
    return {
        "group": group,
        "benchmarks": [row["benchmark"] for row in rows],
        "chance": chance,
        "models": values,
    }


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


def _contamination(hits: Sequence[Input]) -> list[Json]:
    """Per benchmark of the decontamination: its questions, and what of them was found in the corpus, summed over slices."""
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
    """Points of a training segment: tokens seen and loss (nats a token) of each logged step."""
    table = pq.read_table(segment["journal"].only(), columns=["tokens", "loss"])
    return {
        "name": segment["name"],
        "kind": segment["kind"],
        "tokens": table["tokens"].to_pylist(),
        "loss": table["loss"].to_pylist(),
    }


def findings(facts: Json) -> list[str]:
    """What a reader should take away, in sentences made of the numbers: the last model against the base."""
    base, last = facts["models"][0]["name"], facts["models"][-1]["name"]
    if base == last:
        return [f"Only the model {base} was measured: there is nothing to compare yet."]
    sentences = []
    for row in facts["perplexity"]:
        if last in row["models"]:
            sentences.append(_perplexity_sentence(row, base, last))
    for row in facts["groups"]:
        change = row["models"][last]["change"]
        before, after = (100 * row["models"][name]["score"] for name in (base, last))
        verdict = "" if change["clear"] else ": no clear change"
        sentences.append(
            f"The mean of the {row['group']} benchmarks went from {before:.1f} to {after:.1f} "
            f"({signed(100 * change['value'])} ± {100 * change['stderr']:.1f} points{verdict})."
        )
    return sentences or [f"Nothing was measured on both {base} and {last}."]


def _perplexity_sentence(row: Json, base: str, last: str) -> str:
    change = row["models"][last]["change"]
    before, after = (row["models"][name]["perplexity"] for name in (base, last))
    how = ("fell" if change["value"] < 0 else "rose") if change["clear"] else "hardly moved"
    return (
        f"Perplexity on {row['source']} {how} from {before:.4g} to {after:.4g} "
        f"({signed(100 * change['value'])} ± {100 * change['stderr']:.1f} %)."
    )


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, by the typographic minus."""
    return f"{value:+.{digits}f}".replace("-", "−")
