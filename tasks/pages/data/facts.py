"""The facts of the data page as dataclasses; `facts_json` gives `data.json`. Figures and page are made from these
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.pages.data.extracted import Extracted
from tasks.pages.data.likeness import Likeness
from tasks.pages.ledger import LEDGER, Amounts, BenchmarkHits, Ledger, PackedRound, SourceTokens, sources_of
from tasks.pages.plain import optional, plain

Json = dict[str, Any]
BINS_PER_DECADE = 8
"""Bin b holds lengths from 10^(b / BINS_PER_DECADE) on."""
FATES = ("trained on", "held out", "dropped by decontaminate", "dropped by filter", "dropped by dedup")


@dataclass(frozen=True)
class Reason:
    """How many documents a stage dropped for a reason, out of those it was given (`asked`)."""

    stage: str
    reason: str
    documents: int
    asked: int


@dataclass(frozen=True)
class FateLengths:
    """Documents of one length in characters and one fate, as they were read; `text` is in bytes."""

    fate: str
    bin: int
    documents: int
    text: int


@dataclass(frozen=True)
class LengthCount:
    """Documents of one length."""

    bin: int
    documents: int


@dataclass(frozen=True)
class Lengths:
    """Documents by length in characters, as they were read and as they are trained on, and by length in tokens."""

    before: tuple[FateLengths, ...]
    after: tuple[LengthCount, ...]
    tokens: tuple[LengthCount, ...]


@dataclass(frozen=True, kw_only=True)
class RuleValues:
    """What one rule of the filter measured on a sample.

    `before`, `after`: documents in each bin between the edges; the outer bins also hold everything beyond. `limit`
    is None if the filter does not use the rule.
    """

    rule: str
    limit: float | None
    least: bool
    """True: the limit is the least value that is kept. False: it is the most."""
    documents: int
    kept: int
    edges: tuple[float, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    median: float
    median_after: float | None
    failing: int


@dataclass(frozen=True)
class GroupSize:
    """How many groups of copies have `size` documents, including the kept one."""

    size: int
    clusters: int


@dataclass(frozen=True)
class CopyGroup:
    """A group of copies: the kept document, and its near and exact copies."""

    kept: str
    size: int
    near: int
    exact: int


@dataclass(frozen=True)
class CopyGroups:
    """Groups of copies by size, and the largest groups."""

    sizes: tuple[GroupSize, ...]
    largest: tuple[CopyGroup, ...]


@dataclass(frozen=True)
class NearPair:
    """A near-duplicate beside the kept document, from their first difference on."""

    id: str
    source: str
    kept: str
    similarity: float
    text: str
    kept_text: str


@dataclass(frozen=True)
class Example:
    """A dropped document; without text if ingest dropped it."""

    id: str | None
    source: str
    value: float | None
    detail: str
    characters: int | None
    text: str | None


@dataclass(frozen=True)
class ReasonExamples:
    """Examples of what a stage dropped for a reason."""

    stage: str
    reason: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """How much of the corpus the details cover. `longest` is in bytes; `longer` counts the documents above it."""

    shards: int
    shards_in_all: int
    masked: bool
    longest: int
    longer: int
    classifier: bool


@dataclass(frozen=True)
class LargeShare:
    """A rule of the filter that took a large share of a slice (tasks/corpus/shares.py)."""

    slice: int
    source: str
    rule: str
    documents: int
    asked: int


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """All facts of the page."""

    flow: Ledger
    reasons: tuple[Reason, ...]
    lengths: Lengths
    scores: tuple[RuleValues, ...]
    clusters: CopyGroups
    pairs: tuple[NearPair, ...]
    contamination: tuple[BenchmarkHits, ...]
    counted: tuple[BenchmarkHits, ...]
    packing: tuple[PackedRound, ...]
    examples: tuple[ReasonExamples, ...]
    sample: Sample
    large: tuple[LargeShare, ...] = ()
    findings: tuple[str, ...] = ()
    extracted: Extracted | None = optional()  # noqa: RUF009 (a field)
    likeness: tuple[Likeness, ...] = optional(())


# ---- data.json ----------------------------------------------------------------------------------------------------


def facts_json(facts: DataFacts) -> Json:
    """The content of data.json."""
    return {
        **plain(facts),
        "flow": {
            "sources": [
                {
                    "source": one.source,
                    "slices": one.slices,
                    "stages": [_stage(stage) for stage in one.stages],
                }
                for one in facts.flow.sources
            ],
            "stages": [_stage(stage) for stage in facts.flow.stages],
            "problems": list(facts.flow.problems),
        },
        "contamination": [_hits(row) for row in facts.contamination],
        "counted": [_counted(row) for row in facts.counted],
        "packing": {
            "rounds": [_round(one) for one in facts.packing],
            "sources": [_source(last, packed) for last, packed in sources_of(facts.packing)],
        },
    }


def _stage(own: Amounts) -> Json:
    amounts: Mapping[str, int | None] = {
        "documents_in": own.documents_in,
        "documents_out": own.documents_out,
        "documents_dropped": own.documents_dropped,
        "documents_held_out": own.documents_held_out or 0,
        "text_in": own.text_in,
        "text_out": own.text_out,
        "text_dropped": own.text_dropped,
        "text_held_out": own.text_held_out,
        "text_edited": own.text_edited,
        "tokens": own.tokens,
    }
    counted = {name: value for name, value in amounts.items() if value is not None}
    return {"stage": own.stage, "reasons": dict(own.reasons), "edits": dict(own.edits), **counted}


def _hits(row: BenchmarkHits) -> Json:
    return {
        "benchmark": row.benchmark,
        "source": row.source,
        "questions_found": row.questions_found,
        "documents_found": row.documents_found,
        "questions": row.questions,
        "unchecked": row.unchecked,
    }


def _counted(row: BenchmarkHits) -> Json:
    return {
        "benchmark": row.benchmark,
        "documents_found": row.documents_found,
        "indexed": row.indexed,
        "questions": row.questions,
        "questions_found": row.questions_found,
        "unchecked": row.unchecked,
    }


def _round(one: PackedRound) -> Json:
    return {
        "round": one.round,
        "sequences": one.sequences,
        "sequence_length": one.sequence_length,
        "tokens": one.tokens,
        "padding": one.padding,
        "padding_share": one.padding_fraction,
        "documents": one.documents,
        "cut": one.documents_cut,
        "cut_share": one.documents_cut / one.documents,
        "concatenation_cut": one.concatenation_cut,
        "concatenation_cut_share": one.concatenation_cut / one.documents,
    }


def _source(last: SourceTokens, packed: list[tuple[int, int]]) -> Json:
    states = {name: getattr(last, name) for name in ("epochs", *LEDGER)}
    return {
        "source": last.source,
        "rounds": [{"round": number, "tokens": tokens} for number, tokens in packed],
        **{name: value for name, value in states.items() if value is not None},
    }
