"""The report's inputs: its configuration, and the parts and statistics that it reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from storage.artifact import Input
from storage.settings import Settings, identity
from tasks.pages.plain import optional
from tasks.pages.report.facts import ReportModel


class ReportConfig(Settings):
    """The order of presentation, and the group of each benchmark."""

    benchmarks: tuple[tuple[str, str], ...] = identity(
        (), description="(benchmark, domain or general), in order"
    )
    sources: tuple[str, ...] = identity((), description="Sources with held-out documents, in order")


@dataclass(frozen=True, kw_only=True)
class JournalSegment:
    """One training segment: the model it was trained for, its journal, and the tokens it computed."""

    name: str
    kind: Literal["trunk", "branch"]
    journal: Input
    computed: int
    series: str = optional("")
    """The run it belongs to, if the models of several runs are compared."""
    peak: float | None = optional()
    """The learning rate that was asked for."""
    stopped: Mapping[str, Any] | None = field(default=None, metadata={"since": "0.2"})
    """If training.stop ended it: the source, tokens and loss of its own lowest, which it ends with, those of the lowest of
    all trunks, and the tokens at which it was seen to be so."""


@dataclass(frozen=True, kw_only=True)
class CorpusStage:
    """The statistics of one stage for one slice."""

    slice: int
    source: str
    stage: str
    key: str
    stats: Mapping[str, Any]


@dataclass(frozen=True)
class Pack:
    """The statistics of one round of packing."""

    key: str
    stats: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class MergedModel:
    """A model of weights between models: `kind` is that of tasks/models/merge.py, or `chat` for the chat model itself."""

    name: str
    kind: str
    value: float
    stage: str
    key: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Merging:
    """Merged models and what was measured of them, as `ReportInputs` has it of the others. `roles`: by source."""

    models: tuple[MergedModel, ...]
    scores: Mapping[str, Mapping[str, Input]]
    questions: Mapping[str, Mapping[str, Input]]
    perplexity: Mapping[str, Mapping[str, Input]]
    documents: Mapping[str, Mapping[str, Input]]
    roles: Mapping[str, str]


@dataclass(frozen=True)
class ReportInputs:
    """The report's inputs: parts by their digests, facts as plain JSON.

    models: base first. scores, questions: parts of `evaluate` by model and benchmark. perplexity, documents: parts
    of `perplexity` by model and source. journals: oldest first. hits: parts of `decontaminate`, one per slice.
    counted: parts `hits` of `contamination`, for benchmarks that were not searched for when the corpus was made.
    samples: parts of `samples` by model. merging: models between the base and the last one, if any were made. answers:
    parts of `evaluate` by model and benchmark, of those that hold the bytes of the right answers.
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
    merging: Merging | None = field(default=None, metadata={"since": "0.2"})
    answers: Mapping[str, Mapping[str, Input]] = field(default_factory=dict, metadata={"since": "0.2"})
