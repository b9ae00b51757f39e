"""Stage `report`: one page about what the adaptation did to the model and what was done to the data.

A pure function of the store's content: no clock, no name or id of a run; the same inputs give the same bytes. The
cost is added at publication (`cost`). `gather` collects the facts, `figures` draws, `page` arranges, and
`tasks.pages` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.artifact import Artifact, Input
from storage.draft import Draft
from tasks.evaluation.catalog import EvaluationConfig
from tasks.pages.html import html_of
from tasks.pages.made import MadeModel, MadeRun
from tasks.pages.markdown import markdown_of
from tasks.pages.report.facts import ReportModel, facts_json
from tasks.pages.report.figures import draw
from tasks.pages.report.gather import gather
from tasks.pages.report.inputs import (
    CorpusStage,
    JournalSegment,
    MergedModel,
    Merging,
    Pack,
    ReportConfig,
    ReportInputs,
)
from tasks.pages.report.page import blocks_of
from tasks.stages import CORPUS
from tasks.training.state.stopping import lowest_of, stopped_of

STAGE = "report"
VERSION = 5


@dataclass(frozen=True)
class ReportStats:
    """The findings as sentences, and what the report covers."""

    findings: tuple[str, ...]
    models: int
    benchmarks: int
    sources: int
    conserved: bool


def report_request(
    evaluation: EvaluationConfig, outcome: MadeRun, roles: Mapping[str, str] | None = None
) -> tuple[ReportConfig, ReportInputs]:
    """Configuration and inputs of the report on a run's outcome. `roles`: domain or replay, by source."""
    base = outcome.models[0]
    measured = {name for model in outcome.models for name in model.scores}
    groups = [(name, group) for name, group in evaluation.groups().items() if name in measured]
    config = ReportConfig(benchmarks=tuple(groups), sources=tuple(base.perplexity))
    slices = outcome.slices
    inputs = ReportInputs(
        models=tuple(_model(model, first=model is base) for model in outcome.models),
        scores={model.name: _parts(model.scores, "scores") for model in outcome.models},
        questions={model.name: _parts(model.scores, "questions") for model in outcome.models},
        answers={
            model.name: _parts(told, "answers")
            for model in outcome.models
            if (
                told := {
                    name: made for name, made in model.scores.items() if "answers" in made.manifest.parts
                }
            )
        },
        perplexity={model.name: _parts(model.perplexity, "scores") for model in outcome.models},
        documents={model.name: _parts(model.perplexity, "documents") for model in outcome.models},
        journals=_segments(outcome.models),
        corpus=tuple(
            CorpusStage(
                slice=one.number, source=one.source, stage=stage, key=made.key, stats=dict(made.stats)
            )
            for one in slices
            for stage in CORPUS
            if (made := one.artifacts.get(stage)) is not None
        ),
        hits=tuple(
            one.artifacts["decontaminate"].part("hits") for one in slices if "decontaminate" in one.artifacts
        ),
        packs=tuple(Pack(made.key, dict(made.stats)) for made in outcome.packed),
        counted=tuple(made.part("hits") for made in outcome.counted.values()),
        samples={
            model.name: made.part("samples")
            for model in outcome.models
            if (made := model.samples) is not None
        },
        merging=_merging(outcome.merged, roles or {}),
    )
    return config, inputs


def chosen_of(made: Artifact) -> tuple[str, str]:
    """The merged models that a report chose, by name: one between the models, one of a chat model. Empty: none."""
    facts = json.loads((made.path / "report.json").read_bytes()).get("merges") or {}
    return str(facts.get("chosen") or ""), str(facts.get("chat") or "")


def _merging(merged: Sequence[MadeModel], roles: Mapping[str, str]) -> Merging | None:
    if not merged:
        return None
    return Merging(
        models=tuple(_merged(model) for model in merged),
        scores={model.name: _parts(model.scores, "scores") for model in merged},
        questions={model.name: _parts(model.scores, "questions") for model in merged},
        perplexity={model.name: _parts(model.perplexity, "scores") for model in merged},
        documents={model.name: _parts(model.perplexity, "documents") for model in merged},
        roles=roles,
    )


def _merged(model: MadeModel) -> MergedModel:
    export, stats = model.export.part("export"), model.export.stats
    merged = export.stage == "merge"
    return MergedModel(
        name=model.name,
        kind=str(stats["kind"]) if merged else "chat",
        value=float(stats["value"]) if merged else 0.0,
        stage=export.stage,
        key=export.key,
        digest=export.digest,
    )


def _parts(artifacts: Mapping[str, Artifact], part: str) -> dict[str, Input]:
    return {name: artifact.part(part) for name, artifact in artifacts.items()}


def _model(model: MadeModel, first: bool) -> ReportModel:
    export = model.export.part("export")
    return ReportModel(
        name=model.name,
        tokens=model.tokens,
        stage=export.stage,
        key=export.key,
        digest=export.digest,
        path=f"{export.stage}/{export.key[:16]}",
        seen=0 if first else int(export.stats["tokens_seen"]),
        computed=sum(int(segment.stats["tokens"]) for segment in model.journals),
        segments=tuple(segment.key for segment in model.journals),
    )


def _segments(models: Iterable[MadeModel]) -> tuple[JournalSegment, ...]:
    """Every training segment once, in the order of the models. A branch has its model's name."""
    found: dict[str, JournalSegment] = {}
    for model in models:
        for artifact in model.journals:
            segment = JournalSegment(
                name=model.name,
                kind="branch" if artifact.stage == "decay" else "trunk",
                journal=artifact.part("journal"),
                computed=int(artifact.stats["tokens"]),
                peak=artifact.manifest.config.get("schedule", {}).get("peak"),
                stopped=_stopped(artifact.stats.get("result") or {}),
            )
            found.setdefault(artifact.key, segment)
    return tuple(found.values())


def _stopped(result: Mapping[str, Any]) -> dict[str, Any] | None:
    if (best := stopped_of(result)) is None:
        return None
    rule = result["stopping"]
    tokens, loss = lowest_of(rule)
    lowest = {"lowest": loss, "lowest_tokens": tokens}
    return {**best, **lowest, "source": rule["source"], "at": result["tokens_seen"]}


def run(config: ReportConfig, inputs: ReportInputs, draft: Draft) -> ReportStats:
    """Part `report`: report.md, report.html, report.json and figures/ (each as SVG and PNG)."""
    facts = gather(config, inputs)
    pictures = draw(facts, draft.path / "figures")
    blocks = blocks_of(facts, pictures)
    (draft.path / "report.md").write_text(markdown_of(blocks), encoding="utf-8")
    (draft.path / "report.html").write_text(html_of(blocks, draft.path), encoding="utf-8")
    (draft.path / "report.json").write_text(json.dumps(facts_json(facts), indent=1) + "\n", encoding="utf-8")
    draft.part("report", "report.md", "report.html", "report.json", *(["figures"] if pictures else []))
    for problem in facts.data.document_problems:
        draft.warn(problem)
    return ReportStats(
        findings=facts.findings,
        models=len(facts.models),
        benchmarks=len(facts.benchmarks),
        sources=len(facts.perplexity),
        conserved=not facts.data.document_problems,
    )
