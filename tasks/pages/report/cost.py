"""What a run cost. It is added when the report is published, because the report itself reads no clock.

The report is a pure function of digests: the same models give the same page. Hours, speed and energy lie beside the
models they were spent on, in volatile files that belong to no digest. `cost_of` reads them; `published` puts them
into the page's slot and writes cost.json. Nothing here changes an artifact.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from storage.artifact import Artifact
from tasks.pages.blocks import Block, Cell, Heading, Picture, Table, Text
from tasks.pages.canvas import save
from tasks.pages.html import html_block
from tasks.pages.markdown import markdown_of
from tasks.pages.plain import plain, read_as
from tasks.pages.report.facts import Results, TrainedSegment, change_of, within
from tasks.pages.report.outlook import (
    CAPTION,
    NAME,
    Segment,
    outlook_blocks,
    outlook_figure,
    outlooks,
    to_json,
)
from tasks.pages.report.page import COST

Lookup = Callable[[str, str], Artifact | None]
"""Returns an artifact by stage and key, or None if it is gone."""
_HOUR = 3600


@dataclass(frozen=True, kw_only=True)
class SegmentCost:
    """One training segment: `seconds` of its steps, on `devices` of one kind. Memory is in bytes, energy in joules.

    A device-hour is an hour of one GPU, or of one CPU thread. Steps that were repeated after a kill count once.
    """

    name: str
    kind: str
    key: str
    device: str
    unit: str
    devices: int
    seconds: float
    device_hours: float
    tokens: int
    tokens_per_second: float | None
    peak_memory: int | None
    energy_joules: float | None


@dataclass(frozen=True, kw_only=True)
class CostSum:
    """Several segments together. `energy_joules` is None if any of them has no energy count."""

    seconds: float
    device_hours: float
    unit: str
    tokens: int
    tokens_per_second: float | None
    energy_joules: float | None


@dataclass(frozen=True)
class ModelCost:
    """A model: the segments that led to it, by key, and their sum."""

    name: str
    segments: tuple[str, ...]
    sum: CostSum


@dataclass(frozen=True)
class Cost:
    """What the models of a report cost, and what measuring them cost."""

    segments: tuple[SegmentCost, ...]
    models: tuple[ModelCost, ...]
    all: CostSum
    measuring_seconds: float

    def to_json(self) -> dict[str, Any]:
        """The content of cost.json."""
        return {
            "segments": plain(self.segments),
            "models": [
                {"name": one.name, "segments": list(one.segments), **plain(one.sum)} for one in self.models
            ],
            "all": plain(self.all),
            "measuring_seconds": self.measuring_seconds,
        }


def cost_of(facts: Results, lookup: Lookup) -> Cost:
    """What the models of a report cost, as far as their clock files still exist."""
    segments = [found for one in _trained(facts) if (found := _segment(one, lookup)) is not None]
    by_key = {segment.key: segment for segment in segments}
    models = []
    for model in facts.models:
        keys = model.segments or ((model.key,) if model.key in by_key else ())
        own = [by_key[key] for key in keys if key in by_key]
        if own and len(own) == len(keys):
            models.append(ModelCost(model.name, keys, _sum(own)))
    measured = [made for stage, key in facts.measured if (made := lookup(stage, key)) is not None]
    seconds = sum(float(made.manifest.provenance.get("seconds", 0.0)) for made in measured)
    return Cost(tuple(segments), tuple(models), _sum(segments), seconds)


def _trained(facts: Results) -> list[TrainedSegment]:
    """Each trained base and each segment, once: compared runs may share some."""
    segments = {one.key for one in facts.segments}
    bases = [
        TrainedSegment(name=one.name, kind="base", computed=0, stage=one.stage, key=one.key)
        for one in facts.models
        if one.stage == "train" and one.key not in segments
    ]
    entries: dict[str, TrainedSegment] = {}
    for one in (*bases, *facts.segments):
        entries.setdefault(one.key, one)
    return list(entries.values())


def _segment(entry: TrainedSegment, lookup: Lookup) -> SegmentCost | None:
    artifact = lookup(entry.stage, entry.key)
    if artifact is None or not (artifact.path / "clock.parquet").is_file():
        return None
    clock = pq.read_table(artifact.path / "clock.parquet")
    execution: Mapping[str, Any] = artifact.manifest.provenance.get("execution", {})
    seconds, tokens = float(clock["seconds"].to_numpy().sum()), int(artifact.stats["tokens"])
    gpu = execution.get("device") == "cuda"
    devices = int(execution.get("processes", 1)) * (1 if gpu else int(execution.get("threads") or 1))
    peaks = [peak for peak in clock["peak_memory"].to_pylist() if peak]
    return SegmentCost(
        name=entry.name,
        kind=entry.kind,
        key=entry.key,
        device=str(execution.get("device_name") or execution.get("device", "")),
        unit="GPU-hours" if gpu else "CPU-hours",
        devices=devices,
        seconds=seconds,
        device_hours=seconds * devices / _HOUR,
        tokens=tokens,
        tokens_per_second=tokens / seconds if seconds else None,
        peak_memory=max(peaks, default=None),
        energy_joules=execution.get("energy_joules"),
    )


def _sum(segments: Iterable[SegmentCost]) -> CostSum:
    own = list(segments)
    seconds, tokens = sum(one.seconds for one in own), sum(one.tokens for one in own)
    energy = [one.energy_joules for one in own if one.energy_joules is not None]
    return CostSum(
        seconds=seconds,
        device_hours=sum(one.device_hours for one in own),
        unit=" and ".join(sorted({one.unit for one in own})),
        tokens=tokens,
        tokens_per_second=tokens / seconds if seconds else None,
        energy_joules=sum(energy) if own and len(energy) == len(own) else None,
    )


def cost_blocks(facts: Results, cost: Cost) -> list[Block]:
    """Hours, speed, energy, and the gain per hour; empty without any clock files."""
    if not cost.models:
        return []
    segments = {segment.key: segment for segment in cost.segments}
    together = ModelCost("all together", tuple(segments), cost.all)
    rows = tuple(_row(one, [segments[key] for key in one.segments]) for one in (*cost.models, together))
    unit = cost.all.unit
    head = ("model", "on", unit, "tokens computed", "tokens/s", "peak memory", "energy")
    blocks: list[Block] = [Heading(2, "What it cost"), Table(head, rows, 2)]
    blocks += _gain(facts, cost)
    note = (
        f"Training steps alone, without starting and reading; a model's trunk and branch. {_unit_text(unit)} Steps that a "
        f"kill made to be done again count once. Measuring took {_hours(cost.measuring_seconds / _HOUR)} hours beside. "
        "Energy is of the GPU, where it counts it."
    )
    return [*blocks, Text(note, "note")]


def _row(model: ModelCost, segments: Sequence[SegmentCost]) -> tuple[Cell, ...]:
    devices = dict.fromkeys(f"{one.devices} × {one.device}" for one in segments)
    peak = max((one.peak_memory or 0 for one in segments), default=0)
    speed, energy = model.sum.tokens_per_second, model.sum.energy_joules
    return (
        Cell(model.name),
        Cell(", ".join(devices)),
        Cell(_hours(model.sum.device_hours)),
        Cell(f"{model.sum.tokens:,}"),
        Cell(f"{speed:,.0f}" if speed else "–"),
        Cell(f"{peak / 1e9:.2f} GB" if peak else "–"),
        Cell("not told" if energy is None else f"{energy / 3.6e6:.3g} kWh"),
    )


def _unit_text(unit: str) -> str:
    return "A CPU-hour is an hour of one thread." if "CPU" in unit else "A GPU-hour is an hour of one GPU."


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}"


def _gain(facts: Results, cost: Cost) -> list[Block]:
    """Points that each group's mean gained per device-hour between two models."""
    models = {model.name: model for model in cost.models}
    segments = {segment.key: segment for segment in cost.segments}
    bases = {model.name for model in facts.models if not model.segments}
    found = []
    for before, after in facts.pairs:
        if after not in models or (before not in models and before not in bases):
            continue
        if not facts.of_one_line(before, after):
            continue
        known = set() if before in bases else set(models[before].segments)
        hours = sum(segments[key].device_hours for key in models[after].segments if key not in known)
        changes = [change_of(row, before, after) for row in facts.groups]
        if hours and any(changes):
            found.append((f"{before} → {after}", hours, changes))
    if not found:
        return []
    shortest = min(hours for _, hours, _ in found)
    unit = cost.all.unit
    # per no longer a time than was measured
    one, per = next(
        (name, size) for name, size in (("hour", 1), ("minute", 1 / 60), ("second", 0)) if shortest >= size
    )
    per = per or 1 / _HOUR
    rows = [
        (
            Cell(pair),
            Cell(_hours(hours)),
            *(Cell(within(change, 100 * per / hours, 2) if change else "–") for change in changes),
        )
        for pair, hours, changes in found
    ]
    device = unit.removesuffix("s").removesuffix("hour")
    head = (
        "models",
        f"{unit} between",
        *(f"{row.group} mean, points per {device}{one}" for row in facts.groups),
    )
    return [Table(head, tuple(rows))]


def page_of(store: Path, report: Artifact) -> Path:
    """Where the published page of a report lies in a store."""
    return store / "runs" / f"report-{report.key[:16]}"


def results_in(directory: Path) -> Results:
    """The results from the report.json in a report's directory."""
    return read_as(Results, json.loads((directory / "report.json").read_bytes()))


def published(report: Artifact, lookup: Lookup, directory: Path) -> Path:
    """Write the page with its cost and its outlook into `directory`, creating it if needed: report.md, report.html,
    cost.json and outlook.json.
    """
    facts = results_in(report.path)
    cost = cost_of(facts, lookup)
    directory.mkdir(parents=True, exist_ok=True)
    blocks = [*_outlook(facts, lookup, directory), *cost_blocks(facts, cost)]
    figures = os.path.relpath(report.path / "figures", directory)
    text = (report.path / "report.md").read_text(encoding="utf-8").replace("](figures/", f"]({figures}/")
    page = (report.path / "report.html").read_text(encoding="utf-8")
    if blocks:
        text = text.replace(COST.mark, markdown_of(blocks).rstrip("\n"), 1)
        page = page.replace(COST.mark, "\n".join(html_block(block, directory) for block in blocks), 1)
    (directory / "report.md").write_text(text, encoding="utf-8")
    (directory / "report.html").write_text(page, encoding="utf-8")
    (directory / "cost.json").write_text(json.dumps(cost.to_json(), indent=1) + "\n", encoding="utf-8")
    return directory


def _outlook(facts: Results, lookup: Lookup, directory: Path) -> list[Block]:
    """What more tokens would bring; its figure and outlook.json are written. Nothing without held-out losses on the way."""
    segments = [
        Segment.of(one.name, made)
        for one in facts.segments
        if (made := lookup(one.stage, one.key)) is not None
    ]
    found = outlooks(segments, {})
    if not found:
        return []
    figures = directory / "figures"
    figures.mkdir(exist_ok=True)
    save(lambda tips: outlook_figure(found, tips), figures, NAME)
    (directory / f"{NAME}.json").write_text(json.dumps(to_json(found), indent=1) + "\n", encoding="utf-8")
    return outlook_blocks(found, [Picture(NAME, CAPTION)])
