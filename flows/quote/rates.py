"""What stages take of time and disk, by kind: fitted to artifacts that were made, by a rehearsal or by the run itself.

A kind is a stage's name, with the benchmark or the source where these differ: `filter`, `evaluate/hellaswag`. Each
artifact of a kind is a point: how much work it was, how long it took, how many bytes it has. Work is counted in the
kind's own unit: bytes of the slice's text for the corpus stages, tokens of batches for training, tokens for
perplexity, questions for a benchmark. A rate is the line through the points, with no part below zero.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from storage.artifact import Artifact
from tasks import stages

_WARM_UP = 0.2
"""Share of a segment's steps that are not steady yet: caches fill, kernels are chosen, graphs compiled."""
_LEAST_STEADY = 3
_SLOW = 1.5
"""Steps longer than so many medians wait for something else, such as a checkpoint that is written beside them."""
_ALIKE = 2.5
"""Points of which the largest has no more work than so many of the smallest say nothing of what is fixed: texts differ by
as much."""
_OF_TEXT = ("tokenizer", *stages.CORPUS, "contamination", "data")


@dataclass(frozen=True)
class Made:
    """An artifact of a run, with what names it there."""

    stage: str
    slice: int | None
    round: int | None
    item: str | None
    artifact: Artifact
    seconds: float | None = None
    """What making it took with all around it: checking the inputs, the commit. None: as the artifact itself says."""


@dataclass(frozen=True)
class Point:
    """One artifact of a kind: its amount of work, the seconds that it took, its bytes on the disk."""

    amount: float
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Rate:
    """Seconds and bytes of one kind: `fixed` for each artifact, and for each unit of work. `points`: artifacts measured."""

    fixed_seconds: float
    unit_seconds: float
    fixed_bytes: float = 0.0
    unit_bytes: float = 0.0
    points: int = 0

    def seconds(self, count: int, amount: float) -> float:
        """Of so many artifacts, which are so much work together."""
        return self.fixed_seconds * count + self.unit_seconds * amount

    def bytes(self, count: int, amount: float) -> float:
        """On the disk, of so many artifacts."""
        return self.fixed_bytes * count + self.unit_bytes * amount


@dataclass(frozen=True)
class SourceRate:
    """What slices of a source give: tokens for a byte of text that is read, and bytes held out of its first slice."""

    tokens_per_byte: float
    kept: float = 1.0
    """Share of its bytes that no stage drops."""
    held_out: float = 0.0
    """Bytes held out of the first slice, for each byte that was read of it."""
    first_bytes: float = 0.0
    """Bytes of the first slice."""


@dataclass(frozen=True)
class Rates:
    """All that artifacts show. What they show nothing of is not there."""

    kinds: Mapping[str, Rate] = field(default_factory=dict)
    sources: Mapping[str, SourceRate] = field(default_factory=dict)
    token_bytes: float | None = None
    """Bytes of a token of the text that is kept."""

    def of(self, kind: str) -> Rate | None:
        """The rate of a kind; of a kind with a name, the mean over its stage where there is none of its own."""
        if kind in self.kinds:
            return self.kinds[kind]
        stage = kind.partition("/")[0]
        alike = [rate for name, rate in self.kinds.items() if name.partition("/")[0] == stage]
        if not alike or "/" not in kind:
            return None
        return Rate(
            statistics.fmean(one.fixed_seconds for one in alike),
            statistics.fmean(one.unit_seconds for one in alike),
            statistics.fmean(one.fixed_bytes for one in alike),
            statistics.fmean(one.unit_bytes for one in alike),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which `of_json` reads back."""
        return {
            "kinds": {name: asdict(rate) for name, rate in self.kinds.items()},
            "sources": {name: asdict(one) for name, one in self.sources.items()},
            "token_bytes": self.token_bytes,
        }

    @classmethod
    def of_json(cls, raw: Mapping[str, Any]) -> Rates:
        """From the result of `to_json`. Raises TypeError and KeyError for anything else."""
        return cls(
            {name: Rate(**one) for name, one in raw["kinds"].items()},
            {name: SourceRate(**one) for name, one in raw["sources"].items()},
            raw["token_bytes"],
        )


def rates_of(*runs: Sequence[Made]) -> Rates:
    """The rates that the artifacts of some runs show. What sources give is taken from the last run that read them."""
    points: dict[str, list[Point]] = defaultdict(list)
    for made in runs:
        for kind, found in points_of(made).items():
            points[kind] += found
    everything = [one for made in runs for one in made]
    kinds = {kind: fitted(found) for kind, found in points.items()}
    kinds |= _trained(everything)
    sources: dict[str, SourceRate] = {}
    for made in runs:
        sources |= _sources(made)
    return Rates(kinds, sources, _token_bytes(everything))


def points_of(made: Iterable[Made]) -> dict[str, list[Point]]:
    """The points of each kind, in order. Each artifact counts once."""
    made = list({one.artifact.key: one for one in made}.values())
    text = text_of(made)
    found: dict[str, list[Point]] = defaultdict(list)
    for one in made:
        amount = _amount(one, text)
        if amount is not None:
            found[kind_of(one.stage, one.item)].append(Point(amount, seconds_of(one), bytes_of(one.artifact)))
    return dict(found)


def kind_of(stage: str, item: str | None) -> str:
    """The name of the kind: of measurements with the benchmark or the source, else of the stage alone."""
    named = stage in ("evaluate", "perplexity", "contamination") and item
    return f"{stage}/{item}" if named else stage


def fitted(points: Sequence[Point]) -> Rate:
    """The line through points: from the mean of the smaller half to that of the larger; neither part is negative.

    Points of about the same amount give the amount's rate alone: what is fixed is in it.
    """
    fixed, unit = _line([(one.amount, one.seconds) for one in points])
    fixed_bytes, unit_bytes = _line([(one.amount, one.bytes) for one in points])
    return Rate(fixed, unit, fixed_bytes, unit_bytes, len(points))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(fixed, for each unit)."""
    amounts = [amount for amount, _ in points]
    mean = statistics.fmean(value for _, value in points)
    if max(amounts) <= 0:
        return mean, 0.0
    middle = (max(amounts) + min(amounts)) / 2
    small = [point for point in points if point[0] <= middle]
    large = [point for point in points if point[0] > middle]
    through_zero = sum(value for _, value in points) / sum(amounts)
    if not large or max(amounts) <= _ALIKE * min(amounts):
        return 0.0, through_zero
    (x0, y0), (x1, y1) = (
        (statistics.fmean(column) for column in zip(*half, strict=True)) for half in (small, large)
    )
    slope = (y1 - y0) / (x1 - x0)
    if slope <= 0:
        return mean, 0.0
    fixed = y0 - slope * x0
    return (fixed, slope) if fixed >= 0 else (0.0, y1 / x1)


def with_tokens(rates: Rates, made: Sequence[Made], asked: Mapping[str, float]) -> Rates:
    """Rates of benchmarks by the tokens that they compute, at so many tokens for each question (`asked`)."""
    kinds = dict(rates.kinds)
    for name, each in asked.items():
        kind = kind_of("evaluate", name)
        points = [
            Point(one.artifact.manifest.provenance["execution"]["tokens_computed"], seconds_of(one), 0.0)
            for one in made
            if one.stage == "evaluate" and one.item == name
        ]
        if points:
            rate = fitted(points)
            kinds[kind] = replace(
                kinds[kind], fixed_seconds=rate.fixed_seconds, unit_seconds=rate.unit_seconds * each
            )
    return replace(rates, kinds=kinds)


def text_of(made: Iterable[Made]) -> dict[int, float]:
    """Bytes of text of each slice, by its number."""
    return {
        one.slice: float(one.artifact.stats["bytes_out"])
        for one in made
        if one.stage == "ingest" and one.slice is not None
    }


def seconds_of(one: Made) -> float:
    """Seconds that making the artifact took, in the attempt that finished it."""
    return (
        one.seconds
        if one.seconds is not None
        else float(one.artifact.manifest.provenance.get("seconds", 0.0))
    )


def bytes_of(artifact: Artifact) -> float:
    """Bytes of the artifact's files on the disk."""
    return float(sum(file.bytes for part in artifact.manifest.parts.values() for file in part.files))


def _amount(one: Made, text: Mapping[int, float]) -> float | None:
    """The work of an artifact in its kind's unit; None if it says nothing."""
    stats = one.artifact.stats
    if one.stage in stages.TRAINING:
        return None
    if one.stage == "extract":
        return float(stats["bytes_out"])
    if one.stage in _OF_TEXT:
        known = text.get(one.slice) if one.slice is not None else sum(text.values())
        return known if known else None
    if one.stage == "pack":
        return float(stats["tokens"] + stats["padding"])
    if one.stage in ("perplexity", "samples"):
        return float(stats["tokens"])
    if one.stage == "evaluate":
        return float(stats["questions"])
    return 0.0


def _sources(made: Sequence[Made]) -> dict[str, SourceRate]:
    slices: dict[int, dict[str, Artifact]] = defaultdict(dict)
    for one in made:
        if one.slice is not None:
            slices[one.slice][one.stage] = one.artifact
    found: dict[str, list[dict[str, Artifact]]] = defaultdict(list)
    for _, stages_made in sorted(slices.items()):
        if "ingest" in stages_made and "tokenize" in stages_made:
            found[stages_made["ingest"].stats["source"]].append(stages_made)
    rates = {}
    for source, own in found.items():
        read = sum(one["ingest"].stats["bytes_out"] for one in own)
        tokens = sum(one["tokenize"].stats["tokens"] for one in own)
        first = own[0]
        begun, held = (
            float(first["ingest"].stats["bytes_out"]),
            first["decontaminate"].stats["bytes_held_out"],
        )
        kept = sum(one["decontaminate"].stats["bytes_out"] for one in own) + held
        if read and tokens:
            rates[source] = SourceRate(tokens / read, kept / read, held / max(1.0, begun), begun)
    return rates


def _token_bytes(made: Sequence[Made]) -> float | None:
    stats = [one.artifact.stats for one in made if one.stage == "tokenize"]
    tokens = sum(one["tokens"] for one in stats)
    return sum(one["bytes_in"] for one in stats) / tokens if tokens else None


@dataclass(frozen=True)
class Steady:
    """The steps of a training segment: seconds of a steady one, and of all together."""

    step_seconds: float
    steps: int
    all_seconds: float


def steady(seconds: Sequence[float]) -> Steady | None:
    """What a segment's steps take once it is warm: the mean of its later steps, without those that wait for something.

    None if there are too few.
    """
    warm = list(seconds[min(len(seconds) - _LEAST_STEADY, max(1, int(_WARM_UP * len(seconds)))) :])
    if len(seconds) < _LEAST_STEADY + 1:
        return None
    limit = _SLOW * statistics.median(warm)
    return Steady(statistics.fmean(one for one in warm if one <= limit), len(seconds), sum(seconds))


@dataclass(frozen=True)
class _Segment:
    """A training segment, measured."""

    stage: str
    compiled: bool
    tokens: int
    """Of a step."""
    steady: Steady
    seconds: float
    bytes: float


def _trained(made: Sequence[Made]) -> dict[str, Rate]:
    """The rates of the training stages, in tokens of batches. What is fixed: start, compiling, export, and the commit.

    A steady step takes the same in a trunk and in a branch: segments that are compiled alike are taken together.
    """
    segments = [
        found for one in made if one.stage in stages.TRAINING and (found := _segment(one)) is not None
    ]
    rates = {}
    for stage in stages.TRAINING:
        own = [one for one in segments if one.stage == stage]
        if not own:
            continue
        alike = [one for one in segments if one.compiled == own[-1].compiled]
        steps = sum(one.steady.steps for one in alike)
        each = sum(one.steady.steps * one.steady.step_seconds / one.tokens for one in alike) / steps
        fixed = [max(0.0, one.seconds - each * one.tokens * one.steady.steps) for one in own]
        rates[stage] = Rate(
            statistics.median(fixed), each, statistics.fmean(one.bytes for one in own), points=len(own)
        )
    return rates


def _segment(one: Made) -> _Segment | None:
    """None if it has too few steps to say anything."""
    config, execution = one.artifact.manifest.config, one.artifact.manifest.provenance.get("execution", {})
    found = steady(clock_of(one.artifact.path / "clock.parquet"))
    if found is None:
        return None
    tokens = config["sequences_per_step"] * config["sequence_length"]
    compiled = bool(execution.get("compile", False))
    return _Segment(one.stage, compiled, tokens, found, seconds_of(one), bytes_of(one.artifact))


def clock_of(path: Path, column: str = "seconds") -> list[float]:
    """A column of a segment's clock file; empty if there is none."""
    import pyarrow.parquet as parquet

    try:
        return [
            float(one) for one in parquet.read_table(path, columns=[column]).column(0).drop_null().to_pylist()
        ]
    except (OSError, ValueError, KeyError):
        return []
