"""Stage `report`: what the adaptation did to the model and what was done to the data, on one page.

A pure function of what the store holds: no clock, no run's name or id, the same inputs give the same bytes. What it cost is
added where it is published (`report_cost`). Numbers are gathered in `report_facts` and `report_scores`, drawn in
`report_figures`, put in order in `report_page` and written by `tasks.pages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.artifact import Artifact, Input
from storage.draft import Draft
from storage.settings import Settings, identity
from tasks.evaluation.catalog import EvaluationConfig
from tasks.pages.html import html_of
from tasks.pages.markdown import markdown_of
from tasks.pages.report.facts import gather
from tasks.pages.report.figures import draw
from tasks.pages.report.page import blocks_of

STAGE = "report"
VERSION = 4
CORPUS_STAGES = ("ingest", "dedup", "filter", "decontaminate", "tokenize")


class ReportConfig(Settings):
    """In which order things are shown, and which benchmark belongs to which group."""

    benchmarks: tuple[tuple[str, str], ...] = identity(
        (), description="(benchmark, domain or general), in order"
    )
    sources: tuple[str, ...] = identity((), description="Sources with held-out documents, in order")


@dataclass(frozen=True)
class ReportInputs:
    """What the report is made of; parts by their digests, facts as plain JSON.

    models: base first, {name, tokens, stage, key, digest, path, seen, computed, segments: keys}
    scores, questions: by model, by benchmark: parts of `evaluate`; perplexity, documents: by model, by source
    journals: {name, kind: trunk or branch, journal: part, computed}, oldest first
    corpus: {slice, source, stage, key, stats}; hits: parts of `decontaminate`, one a slice; packs: {name, key, stats}
    counted: parts `hits` of `contamination`, of benchmarks that were not looked for when the corpus was made
    samples: by model, parts of `samples`
    """

    models: tuple[Mapping[str, Any], ...]
    scores: Mapping[str, Mapping[str, Input]]
    questions: Mapping[str, Mapping[str, Input]]
    perplexity: Mapping[str, Mapping[str, Input]]
    documents: Mapping[str, Mapping[str, Input]]
    journals: tuple[Mapping[str, Any], ...] = ()
    corpus: tuple[Mapping[str, Any], ...] = ()
    hits: tuple[Input, ...] = ()
    packs: tuple[Mapping[str, Any], ...] = ()
    samples: Mapping[str, Input] = field(default_factory=dict)
    counted: tuple[Input, ...] = ()


@dataclass(frozen=True)
class ReportStats:
    """The sentences of findings, and what the report covers."""

    findings: tuple[str, ...]
    models: int
    benchmarks: int
    sources: int
    conserved: bool


def report_request(evaluation: EvaluationConfig, outcome: Any) -> tuple[ReportConfig, ReportInputs]:
    """Configuration and inputs of the report on what a run came to.

    `outcome` has `models` (name, tokens, export, scores, perplexity, journals: artifacts), `slices`
    (number, source, artifacts by stage), and `packed` (artifacts of `pack`, oldest first).
    """
    base = outcome.models[0]
    measured = {name for model in outcome.models for name in model.scores}
    groups = [(name, group) for name, group in evaluation.groups().items() if name in measured]
    config = ReportConfig(benchmarks=tuple(groups), sources=tuple(base.perplexity))
    segments = _segments(outcome.models)
    slices = outcome.slices
    inputs = ReportInputs(
        models=tuple(_model(model, first=model is base) for model in outcome.models),
        scores={model.name: _parts(model.scores, "scores") for model in outcome.models},
        questions={model.name: _parts(model.scores, "questions") for model in outcome.models},
        perplexity={model.name: _parts(model.perplexity, "scores") for model in outcome.models},
        documents={model.name: _parts(model.perplexity, "documents") for model in outcome.models},
        journals=tuple(segments),
        corpus=tuple(
            {
                "slice": one.number,
                "source": one.source,
                "stage": stage,
                "key": made.key,
                "stats": dict(made.stats),
            }
            for one in slices
            for stage in CORPUS_STAGES
            if (made := one.artifacts.get(stage)) is not None
        ),
        hits=tuple(
            one.artifacts["decontaminate"].part("hits") for one in slices if "decontaminate" in one.artifacts
        ),
        packs=tuple(_pack(made) for made in outcome.packed),
        counted=tuple(made.part("hits") for made in getattr(outcome, "counted", {}).values()),
        samples={
            model.name: made.part("samples")
            for model in outcome.models
            if (made := getattr(model, "samples", None)) is not None
        },
    )
    return config, inputs


def _parts(artifacts: Mapping[str, Artifact], part: str) -> dict[str, Input]:
    return {name: artifact.part(part) for name, artifact in artifacts.items()}


def _model(model: Any, first: bool) -> dict[str, Any]:
    export = model.export.part("export")
    return {
        "name": model.name,
        "tokens": model.tokens,
        "stage": export.stage,
        "key": export.key,
        "digest": export.digest,
        "path": f"{export.stage}/{export.key[:16]}",
        "seen": 0 if first else int(export.stats["tokens_seen"]),
        "computed": sum(int(segment.stats["tokens"]) for segment in model.journals),
        "segments": [segment.key for segment in model.journals],
    }


def _segments(models: Iterable[Any]) -> list[dict[str, Any]]:
    """Every training segment once, in the order in which the models came; a branch bears its model's name."""
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        for artifact in model.journals:
            found.setdefault(
                artifact.key,
                {
                    "name": model.name,
                    "kind": "branch" if artifact.stage == "decay" else "trunk",
                    "journal": artifact.part("journal"),
                    "computed": int(artifact.stats["tokens"]),
                },
            )
    return list(found.values())


def _pack(artifact: Artifact) -> dict[str, Any]:
    return {"key": artifact.key, "stats": dict(artifact.stats)}


def run(config: ReportConfig, inputs: ReportInputs, draft: Draft) -> ReportStats:
    """Part `report`: report.md, report.html, report.json and figures/ (each as SVG and PNG)."""
    facts = gather(config, inputs)
    figures = write_page(facts, draft.path)
    shown = {name: value for name, value in facts.items() if name != "curves"}
    (draft.path / "report.json").write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    draft.part("report", "report.md", "report.html", "report.json")
    if figures:
        draft.part("report", "figures")
    for problem in facts["data"]["problems"]:
        draft.warn(problem)
    return ReportStats(
        findings=tuple(facts["findings"]),
        models=len(facts["models"]),
        benchmarks=len(facts["benchmarks"]),
        sources=len(facts["perplexity"]),
        conserved=not facts["data"]["problems"],
    )


def write_page(facts: Mapping[str, Any], directory: Path) -> bool:
    """Write report.md, report.html and, where there is something to draw, figures/; whether there was."""
    figures = draw(dict(facts), directory / "figures")
    blocks = blocks_of(dict(facts), figures)
    (directory / "report.md").write_text(markdown_of(blocks), encoding="utf-8")
    (directory / "report.html").write_text(html_of(blocks, directory), encoding="utf-8")
    return bool(figures)
