"""What the report is made of: its configuration, and the parts and statistics that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from storage.artifact import Input
from storage.settings import Settings, identity
from tasks.pages.plain import optional
from tasks.pages.report.facts import ReportModel


class ReportConfig(Settings):
    """In which order things are shown, and which benchmark belongs to which group."""

    benchmarks: tuple[tuple[str, str], ...] = identity(
        (), description="(benchmark, domain or general), in order"
    )
    sources: tuple[str, ...] = identity((), description="Sources with held-out documents, in order")


@dataclass(frozen=True, kw_only=True)
class JournalSegment:
    """One training segment: the model that it was trained for, its journal, and the tokens that it computed."""

    name: str
    kind: Literal["trunk", "branch"]
    journal: Input
    computed: int
    series: str = optional("")
    """The run that it belongs to, where the models of several runs are compared."""


@dataclass(frozen=True, kw_only=True)
class CorpusStage:
    """What one stage did with one slice, by its statistics."""

    slice: int
    source: str
    stage: str
    key: str
    stats: Mapping[str, Any]


@dataclass(frozen=True)
class Pack:
    """One round of packing, by its statistics."""

    key: str
    stats: Mapping[str, Any]


@dataclass(frozen=True)
class ReportInputs:
    """What the report is made of; parts by their digests, facts as plain JSON.

    models: base first. scores, questions: by model, by benchmark: parts of `evaluate`; perplexity, documents: by model, by
    source. journals: oldest first. hits: parts of `decontaminate`, one a slice. counted: parts `hits` of `contamination`,
    of benchmarks that were not looked for when the corpus was made. samples: by model, parts of `samples`.
    """

    models: tuple[ReportModel, ...]
    scores: Mapping[str, Mapping[str, Input]]
    questions: Mapping[str, Mapping[str, Input]]
    perplexity: Mapping[str, Mapping[str, Input]]
    documents: Mapping[str, Mapping[str, Input]]
    journals: tuple[JournalSegment, ...] = ()
    corpus: tuple[CorpusStage, ...] = ()
    hits: tuple[Input, ...] = ()
    packs: tuple[Pack, ...] = ()
    samples: Mapping[str, Input] = field(default_factory=dict)
    counted: tuple[Input, ...] = ()
