"""What a run cost, added to the report where it is published: the report itself knows no clock.

The report is a pure function of digests, so that the same models give the same page; hours, speed and energy lie beside
the models they were spent on, in volatile files that belong to no digest. Here they are read (`cost_of`), put into the
place that the page keeps for them, and kept as cost.json (`published`). Nothing here changes an artifact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from storage.artifact import Artifact
from tasks.pages.blocks import Block, Cell, Heading, Table, Text
from tasks.pages.html import html_block
from tasks.pages.markdown import markdown_of
from tasks.pages.report.facts import within
from tasks.pages.report.page import COST
from tasks.pages.report.scores import change_of

Json = dict[str, Any]
Lookup = Callable[[str, str], Artifact | None]
"""An artifact by stage and key, or None where it is gone."""
_HOUR = 3600


def cost_of(facts: Mapping[str, Any], lookup: Lookup) -> Json:
    """What the models of a report (its report.json) cost.

    {segments: [{name, kind, key, device, devices, seconds (of steps), device_hours, tokens, tokens_per_second, peak_memory
    in bytes, energy_joules or None}], models: [the same, summed], all: the same, measuring_seconds}. A device-hour is an
    hour of one GPU, or of one CPU thread. Steps that a kill made to be done again count once, as in the journal.
    """
    segments = [found for one in _trained(facts) if (found := _segment(one, lookup)) is not None]
    by_key = {segment["key"]: segment for segment in segments}
    models = []
    for model in facts["models"]:
        keys = model.get("segments") or ([model["key"]] if model["key"] in by_key else [])
        own = [by_key[key] for key in keys if key in by_key]
        if own and len(own) == len(keys):
            models.append({"name": model["name"], "segments": keys, **_sum(own)})
    measured = [made for stage, key in facts["measured"] if (made := lookup(stage, key)) is not None]
    seconds = sum(float(made.manifest.provenance.get("seconds", 0.0)) for made in measured)
    return {"segments": segments, "models": models, "all": _sum(segments), "measuring_seconds": seconds}


def _trained(facts: Mapping[str, Any]) -> list[Json]:
    """Each base that was trained, and each segment, once: runs that are compared share some."""
    segments = {one["key"] for one in facts["segments"]}
    bases = [one for one in facts["models"] if one["stage"] == "train" and one["key"] not in segments]
    entries: dict[str, Json] = {}
    for one in [*({**base, "kind": "base", "computed": 0} for base in bases), *facts["segments"]]:
        entries.setdefault(one["key"], dict(one))
    return list(entries.values())


def _segment(entry: Mapping[str, Any], lookup: Lookup) -> Json | None:
    artifact = lookup(entry["stage"], entry["key"])
    if artifact is None or not (artifact.path / "clock.parquet").is_file():
        return None
    clock = pq.read_table(artifact.path / "clock.parquet")
    facts = dict(artifact.manifest.provenance.get("execution", {}))
    seconds, tokens = float(clock["seconds"].to_numpy().sum()), int(artifact.stats["tokens"])
    gpu = facts.get("device") == "cuda"
    devices = int(facts.get("processes", 1)) * (1 if gpu else int(facts.get("threads") or 1))
    peaks = [peak for peak in clock["peak_memory"].to_pylist() if peak]
    return {
        "name": entry["name"],
        "kind": entry["kind"],
        "key": entry["key"],
        "device": str(facts.get("device_name") or facts.get("device", "")),
        "unit": "GPU-hours" if gpu else "CPU-hours",
        "devices": devices,
        "seconds": seconds,
        "device_hours": seconds * devices / _HOUR,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds else None,
        "peak_memory": max(peaks, default=None),
        "energy_joules": facts.get("energy_joules"),
    }


def _sum(segments: Iterable[Json]) -> Json:
    own = list(segments)
    seconds, tokens = sum(one["seconds"] for one in own), sum(one["tokens"] for one in own)
    energy = [one["energy_joules"] for one in own]
    return {
        "seconds": seconds,
        "device_hours": sum(one["device_hours"] for one in own),
        "unit": " and ".join(sorted({one["unit"] for one in own})),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if seconds else None,
        "energy_joules": None if None in energy or not own else sum(energy),
    }


def cost_blocks(facts: Mapping[str, Any], cost: Mapping[str, Any]) -> list[Block]:
    """Hours, speed, energy, and the gain of an hour; nothing where no clock was kept."""
    if not cost["models"]:
        return []
    segments = {segment["key"]: segment for segment in cost["segments"]}
    rows = []
    for model in [*cost["models"], {"name": "all together", "segments": list(segments), **cost["all"]}]:
        own = [segments[key] for key in model["segments"]]
        devices = {f"{one['devices']} × {one['device']}": None for one in own}
        peak = max((one["peak_memory"] or 0 for one in own), default=0)
        energy = model["energy_joules"]
        rows.append(
            (
                Cell(model["name"]),
                Cell(", ".join(devices)),
                Cell(_hours(model["device_hours"])),
                Cell(f"{model['tokens']:,}"),
                Cell(f"{model['tokens_per_second']:,.0f}" if model["tokens_per_second"] else "–"),
                Cell(f"{peak / 1e9:.2f} GB" if peak else "–"),
                Cell("not told" if energy is None else f"{energy / 3.6e6:.3g} kWh"),
            )
        )
    unit = cost["all"]["unit"]
    head = ("model", "on", unit, "tokens computed", "tokens/s", "peak memory", "energy")
    blocks: list[Block] = [Heading(2, "What it cost"), Table(head, tuple(rows), 2)]
    blocks += _gain(facts, cost, unit)
    note = (
        f"Training steps alone, without starting and reading; a model's trunk and branch. {_unit_text(unit)} Steps that a "
        f"kill made to be done again count once. Measuring took {_hours(cost['measuring_seconds'] / _HOUR)} hours beside. "
        "Energy is of the GPU, where it counts it."
    )
    return [*blocks, Text(note, "note")]


def _unit_text(unit: str) -> str:
    return "A CPU-hour is an hour of one thread." if "CPU" in unit else "A GPU-hour is an hour of one GPU."


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}"


def _gain(facts: Mapping[str, Any], cost: Mapping[str, Any], unit: str) -> list[Block]:
    """Points of each group's mean for each device-hour between two models."""
    models = {model["name"]: model for model in cost["models"]}
    segments = {segment["key"]: segment for segment in cost["segments"]}
    bases = {model["name"] for model in facts["models"] if not model.get("segments")}
    rows = []
    for before, after in facts["pairs"]:
        if after not in models or (before not in models and before not in bases):
            continue
        known = set() if before in bases else set(models[before]["segments"])
        hours = sum(segments[key]["device_hours"] for key in models[after]["segments"] if key not in known)
        changes = [change_of(row, before, after) for row in facts["groups"]]
        if hours and any(changes):
            cells = [Cell(within(change, 100 / hours, 2) if change else "–") for change in changes]
            rows.append((Cell(f"{before} → {after}"), Cell(_hours(hours)), *cells))
    if not rows:
        return []
    one = unit.removesuffix("s")
    head = (
        "models",
        f"{unit} between",
        *(f"{row['group']} mean, points per {one}" for row in facts["groups"]),
    )
    return [Table(head, tuple(rows))]


def page_of(store: Path, report: Artifact) -> Path:
    """Where in a store the published page of a report lies."""
    return store / "runs" / f"report-{report.key[:16]}"


def published(report: Artifact, lookup: Lookup, directory: Path) -> Path:
    """Write the page with its cost into `directory` (made where it is missing): report.md, report.html and cost.json."""
    facts = json.loads((report.path / "report.json").read_bytes())
    cost = cost_of(facts, lookup)
    blocks = cost_blocks(facts, cost)
    directory.mkdir(parents=True, exist_ok=True)
    figures = os.path.relpath(report.path / "figures", directory)
    text = (report.path / "report.md").read_text(encoding="utf-8").replace("](figures/", f"]({figures}/")
    page = (report.path / "report.html").read_text(encoding="utf-8")
    if blocks:
        text = text.replace(COST.mark, markdown_of(blocks).rstrip("\n"), 1)
        page = page.replace(COST.mark, "\n".join(html_block(block, report.path) for block in blocks), 1)
    (directory / "report.md").write_text(text, encoding="utf-8")
    (directory / "report.html").write_text(page, encoding="utf-8")
    (directory / "cost.json").write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")
    return directory
