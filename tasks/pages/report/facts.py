"""The facts of the report as dataclasses; `facts_json` gives `report.json`, from which `Results` is read back.

Figures and pages are made from these alone. Scores and changes are fractions: 0.023 is 2.3 points, or 2.3 % of a
perplexity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from tasks.pages.ledger import LEDGER, Amounts, BenchmarkHits, Ledger, PackedRound
from tasks.pages.plain import named, optional, plain, unwritten
from tasks.pages.wording import signed

GROUPS = ("domain", "general")
Verdict = Literal["improved", "worse", "no clear change", "too few documents", "too few questions"]
Pair = tuple[str, str]
"""Names of two models, from and to."""
Json = dict[str, Any]


# ---- models and training ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ReportModel:
    """A measured model: where its export lies, its budget, and the tokens seen and computed for it."""

    name: str
    tokens: int
    stage: str
    key: str
    digest: str
    path: str
    seen: int
    computed: int
    segments: tuple[str, ...] = ()
    """Keys of the training segments that led to it."""
    series: tuple[str, ...] = optional(())
    """The runs it belongs to, if the models of several runs are compared."""


@dataclass(frozen=True, kw_only=True)
class TrainedSegment:
    """One training segment, by the artifact that holds it."""

    name: str
    kind: str
    computed: int
    stage: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Points of a training segment: step, tokens seen and loss (nats per token) of each logged step."""

    name: str
    kind: str
    series: str
    tokens: Sequence[int]
    loss: Sequence[float | None]
    step: Sequence[int] | None
    """None: the journal has no steps."""
    rate: Sequence[float | None] = ()
    """The learning rate of each step; empty if the journal has none."""
    peak: float | None = None
    """The rate that was asked for."""


# ---- results ------------------------------------------------------------------------------------------------------


class Interval(Protocol):
    """A value and the ends of its interval; None if there is only one question."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


@dataclass(frozen=True)
class Within:
    """A value and the ends of its interval."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ChangedAnswers:
    """Numbers of questions that became right and wrong, and McNemar's p."""

    gained: int
    lost: int
    p: float


@dataclass(frozen=True, kw_only=True)
class ModelChange:
    """The change of one measure from one model to another, with its tests (`tasks.evaluation.compare.Change`)."""

    before: str = named("from")
    after: str = named("to")
    value: float
    low: float | None
    high: float | None
    stderr: float
    count: int
    p: float
    adjusted: float
    verdict: Verdict
    seen: float | None
    """The smallest change that would have been detected; None if there are too few documents or questions to tell."""
    mcnemar: ChangedAnswers | None = optional()  # noqa: RUF009 (a field)
    flips: float | None = optional()

    @property
    def clear(self) -> bool:
        """Whether it has a verdict."""
        return self.verdict in ("improved", "worse")

    @property
    def few(self) -> bool:
        """Whether there are too few documents or questions for a verdict."""
        return self.verdict.startswith("too few")

    @property
    def exact(self) -> float | None:
        """The exact test's p, if there is one."""
        return self.mcnemar.p if self.mcnemar else self.flips


@dataclass(frozen=True)
class PerplexityScore:
    """A model on the held-out documents of one source."""

    perplexity: float
    low: float | None
    high: float | None
    bits_per_byte: float


@dataclass(frozen=True)
class GroupScore:
    """A model's mean score over a group of benchmarks."""

    score: float
    low: float | None
    high: float | None
    stderr: float


@dataclass(frozen=True)
class BenchmarkScore:
    """A model's main score on a benchmark, and every other metric with its standard error."""

    score: float
    low: float | None
    high: float | None
    stderr: float
    at_chance: bool
    metrics: Mapping[str, float]
    errors: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class PerplexityRow:
    """One source with held-out documents: every model measured on it. Lengths are in tokens."""

    source: str
    documents: int
    tokens: int
    bytes: int
    max_length: int
    stride: int
    lengths: tuple[int, ...]
    models: Mapping[str, PerplexityScore]
    changes: tuple[ModelChange, ...] = ()

    @property
    def label(self) -> str:
        """The name of what is measured."""
        return f"perplexity on {self.source}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One benchmark: how it was asked, its chance level, and every model that was asked."""

    benchmark: str
    group: str
    metric: str
    split: str | None
    shots: int | None
    limit: int | None
    questions: int
    available: int
    max_length: int
    lengths: tuple[int, ...]
    chance: float
    rule: str
    """How the chance level was found: guess or majority."""
    models: Mapping[str, BenchmarkScore]
    changes: tuple[ModelChange, ...] = ()

    @property
    def label(self) -> str:
        """The name of what is measured."""
        return self.benchmark


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """The mean over the benchmarks of a group that all models have."""

    group: str
    benchmarks: tuple[str, ...]
    chance: float
    models: Mapping[str, GroupScore]
    changes: tuple[ModelChange, ...] = ()

    @property
    def label(self) -> str:
        """The name of what is measured."""
        return f"mean, {self.group}"


@dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """Bits per byte of the right answers of a benchmark; or, without a benchmark, their mean over those of a group."""

    group: str
    benchmark: str | None
    benchmarks: tuple[str, ...]
    """Those that a mean is of."""
    questions: int
    models: Mapping[str, GroupScore]
    changes: tuple[ModelChange, ...] = ()

    @property
    def label(self) -> str:
        """The name of what is measured."""
        return f"bits per byte, {self.benchmark or f'mean, {self.group}'}"


ResultRow = PerplexityRow | BenchmarkRow | GroupRow | AnswerRow
R = TypeVar("R", PerplexityRow, BenchmarkRow, GroupRow, AnswerRow)


def change_of(row: ResultRow, before: str, after: str) -> ModelChange | None:
    """The change from one model to another, or None if they cannot be compared."""
    return next((one for one in row.changes if (one.before, one.after) == (before, after)), None)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What was measured: models, comparisons, and the rows of every measure. `report.json` begins with this."""

    models: tuple[ReportModel, ...]
    pairs: tuple[Pair, ...]
    computed: int
    """Tokens of all segments together."""
    segments: tuple[TrainedSegment, ...]
    measured: tuple[tuple[str, str], ...]
    """(stage, key) of every measurement, to look up what it cost."""
    perplexity: tuple[PerplexityRow, ...]
    benchmarks: tuple[BenchmarkRow, ...]
    groups: tuple[GroupRow, ...]
    answers: tuple[AnswerRow, ...] = optional(())
    """Benchmarks, and then the means of groups; of evaluations of 0.1.0 there are none."""

    @property
    def names(self) -> list[str]:
        """The models' names, base first."""
        return [model.name for model in self.models]

    def of_one_line(self, before: str, after: str) -> bool:
        """Whether training went from one model to the other: in a comparison, whether they are of one run."""
        first, second = (next(one for one in self.models if one.name == name) for name in (before, after))
        return not (first.series or second.series) or bool(set(first.series) & set(second.series))

    @property
    def means(self) -> list[GroupRow]:
        """Groups of more than one benchmark, whose mean says something of its own."""
        return [row for row in self.groups if len(row.benchmarks) > 1]


# ---- all of it ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleRow:
    """A prompt, the decoding method, and the continuation of every model."""

    prompt: str
    decoding: str
    models: Mapping[str, str]


@dataclass(frozen=True)
class PackedBy:
    """A round of packing and the key of the artifact that holds it."""

    key: str
    round: PackedRound


@dataclass(frozen=True, kw_only=True)
class MergePoint:
    """A model on the way between two others: `share` is α, or None for what lies beside the way. `kind`: base, trained,
    average, instruct (of a chat model's difference), or chat (the chat model itself).
    """

    name: str
    kind: str
    share: float | None
    stage: str
    key: str


@dataclass(frozen=True, kw_only=True)
class MergeFacts:
    """The merged models beside the base and the last model, with the changes of each from both."""

    base: str
    trained: str
    points: tuple[MergePoint, ...]
    perplexity: tuple[PerplexityRow, ...]
    benchmarks: tuple[BenchmarkRow, ...]
    groups: tuple[GroupRow, ...]
    roles: Mapping[str, str]
    chosen: str | None
    """The merged model that is to be taken in place of the trained one; None: the trained one, or none."""
    chat: str | None
    """Of several with a chat model's difference, the one to be taken."""
    findings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReportFacts(Results):
    """All facts of the report."""

    samples: tuple[SampleRow, ...] = ()
    data: Ledger = field(default_factory=Ledger)
    contamination: tuple[BenchmarkHits, ...] = ()
    packing: tuple[PackedBy, ...] = ()
    curves: tuple[Curve, ...] = unwritten(())
    """Used by the figures only."""
    findings: tuple[str, ...] = ()
    merges: MergeFacts | None = optional()  # noqa: RUF009 (a field)
    title: str | None = unwritten()
    """Set if it differs from the title made from the models' names."""


def facts_json(facts: ReportFacts) -> Json:
    """The content of report.json."""
    return {
        **plain(facts),
        "data": {
            "sources": [
                {
                    "source": one.source,
                    "slices": one.slices,
                    "stages": [_stage(stage) for stage in one.stages],
                }
                for one in facts.data.sources
            ],
            "problems": list(facts.data.document_problems),
        },
        "contamination": [_hits(row) for row in facts.contamination],
        "packing": [_packing(one) for one in facts.packing],
    }


def _stage(own: Amounts) -> Json:
    amounts = {
        "documents_in": own.documents_in,
        "documents_out": own.documents_out,
        "documents_dropped": own.documents_dropped,
        "documents_held_out": own.documents_held_out,
        "bytes_in": own.bytes_in,
        "bytes_out": own.bytes_out,
        "tokens": own.tokens,
    }
    counted = {name: value for name, value in amounts.items() if value is not None}
    return {"stage": own.stage, "dropped_by_reason": dict(own.reasons), **counted}


def _hits(row: BenchmarkHits) -> Json:
    return {
        "benchmark": row.benchmark,
        "questions": row.questions,
        "unchecked": row.unchecked,
        "questions_found": row.questions_found,
        "documents_found": row.documents_found,
        **({"afterwards": True} if row.afterwards else {}),
    }


def _packing(one: PackedBy) -> Json:
    own = one.round
    sources = []
    for source in own.sources:
        states = {name: getattr(source, name) for name in ("epochs", *LEDGER)}
        sources.append(
            {
                "source": source.source,
                "share": source.tokens / max(own.tokens, 1),
                "tokens": source.tokens,
                **{name: value for name, value in states.items() if value is not None},
            }
        )
    return {
        "round": own.round,
        "key": one.key,
        "sequences": own.sequences,
        "tokens": own.tokens,
        "padding": own.padding,
        "padding_fraction": own.padding_fraction,
        "documents_whole": own.documents_whole,
        "documents_cut": own.documents_cut,
        "sources": sources,
    }


# ---- in words -----------------------------------------------------------------------------------------------------


def within(change: Interval, scale: float = 100, digits: int = 1) -> str:
    """A change with its interval: +2.3 [0.8, 3.9]. A single question or document has no interval."""
    value = signed(scale * change.value, digits)
    if change.low is None or change.high is None:
        return value
    return f"{value} [{_end(scale * change.low, digits)}, {_end(scale * change.high, digits)}]"


def _end(value: float, digits: int) -> str:
    """An end of an interval. Of very few documents it may be so far away that its figures say nothing."""
    return "> 99,999" if value > 99_999 else f"{value:.{digits}f}".replace("-", "−")
