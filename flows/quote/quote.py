"""The quote: what is left of a run, at measured or assumed rates, in hours, bytes and money.

Where the rates come from is said of each line. `measured`: by a rehearsal of this configuration on this machine.
`recorded`: by artifacts of this store. `assumed`: a rule of thumb, which a rehearsal replaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.config import RunConfig
from flows.dag.plan import PlanRow
from flows.quote.assumed import TRUNK_BYTES, Assumed
from flows.quote.rates import Rate, Rates
from flows.quote.work import Item, SourceWork, Work
from tasks import stages

MEASURED, RECORDED, ASSUMED = "measured", "recorded", "assumed"


@dataclass(frozen=True)
class Line:
    """One stage of a quote. `seconds` of what is to do: None if nothing is known. `bytes` that it leaves on the disk."""

    stage: str
    done: int
    to_do: int
    amount: float
    unit: str
    seconds: float | None
    bytes: float | None
    rate: str
    """`measured`, `recorded` or `assumed`; empty where there is nothing to do."""


@dataclass(frozen=True)
class Quote:
    """What is left of a run. `open`: stages of which no time is known, so that `seconds` is too little."""

    lines: tuple[Line, ...]
    sources: tuple[SourceWork, ...]
    start_seconds: float
    seconds: float
    open: tuple[str, ...]
    bytes: float
    """On the disk, of all that is to be made."""
    passing_bytes: float
    """More than that while it trains: checkpoints, which are removed at the end."""
    peak_memory: float | None
    device_memory: float | None
    price: float | None

    @property
    def to_do(self) -> int:
        """Artifacts to be made."""
        return sum(line.to_do for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """Rates with where they come from, and what else was measured beside them."""

    rates: Rates = field(default_factory=Rates)
    recorded: Rates = field(default_factory=Rates)
    start_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    memory: Mapping[str, float] | None = None
    """Peak of the run's processes together, in bytes, by stage."""
    device_memory: float | None = None

    @property
    def known(self) -> Rates:
        """Both together; what was recorded in the run's own store goes before what a rehearsal measured."""
        return Rates(
            {**self.rates.kinds, **self.recorded.kinds},
            {**self.rates.sources, **self.recorded.sources},
            self.recorded.token_bytes or self.rates.token_bytes,
        )

    def of(self, kind: str) -> tuple[Rate, str] | None:
        """The rate of a kind, and its name: recorded before measured."""
        for rates, name in ((self.recorded, RECORDED), (self.rates, MEASURED)):
            if (found := rates.of(kind)) is not None:
                return found, name
        return None


def quote_of(
    run: RunConfig, work: Work, measured: Measured, training: Sequence[PlanRow], cores: int
) -> Quote:
    """The quote of a run's work. `training`: its rows with their estimates (flows/quote/training.py), which stand in where
    nothing was measured. `cores`: workers of the corpus stages.
    """
    assumed = Assumed.of(training, cores)
    lines: dict[str, list[tuple[Item, float | None, float | None, str]]] = {}
    for item in work.items:
        found = measured.of(item.kind)
        rate, name = found or (assumed.rate(item), ASSUMED)
        seconds = rate.seconds(item.to_do, item.amount) if rate and item.to_do else None
        if seconds is not None and item.stage in stages.TRAINING and found:
            seconds += measured.checkpoint_seconds * int(seconds / run.training.execution.checkpoint_every)
        size = rate.bytes(item.to_do, item.amount) if rate and item.to_do else None
        lines.setdefault(item.stage, []).append((item, seconds, size, name))
    quoted = [_line(stage, lines[stage]) for stage in stages.NAMES if stage in lines]
    to_do = any(line.to_do for line in quoted)
    start = measured.start_seconds if to_do else 0.0
    seconds = start + sum(line.seconds or 0.0 for line in quoted)
    peaks = [row.training["peak_bytes"] for row in training if row.training and "peak_bytes" in row.training]
    per_hour = run.price_per_hour
    memory = measured.memory or {}
    peak = max((memory[line.stage] for line in quoted if line.to_do and line.stage in memory), default=None)
    return Quote(
        lines=tuple(quoted),
        sources=work.sources,
        start_seconds=start,
        seconds=seconds,
        open=tuple(line.stage for line in quoted if line.to_do and line.seconds is None),
        bytes=sum(line.bytes or 0.0 for line in quoted),
        passing_bytes=_checkpoints(run, quoted, assumed.parameters),
        peak_memory=peak or max(peaks, default=None),
        device_memory=measured.device_memory,
        price=None if per_hour is None else seconds / 3600 * per_hour,
    )


def _line(stage: str, parts: Sequence[tuple[Item, float | None, float | None, str]]) -> Line:
    to_do = [part for part in parts if part[0].to_do]
    names = {part[3] for part in to_do}
    known = [part[1] for part in to_do]
    sizes = [part[2] for part in to_do]
    return Line(
        stage,
        sum(part[0].done for part in parts),
        sum(part[0].to_do for part in parts),
        sum(part[0].amount for part in to_do),
        parts[0][0].unit,
        None if not known or None in known else sum(one or 0.0 for one in known),
        None if not sizes or None in sizes else sum(one or 0.0 for one in sizes),
        next((name for name in (ASSUMED, MEASURED, RECORDED) if name in names), ""),
    )


def _checkpoints(run: RunConfig, lines: Sequence[Line], parameters: float | None) -> float:
    """Bytes of the checkpoints of one training segment, one more than are kept: the next is written beside them.

    With training.stop three states with the lowest losses besides: of two checkpoints, and the next one.
    """
    if not parameters or not any(line.to_do for line in lines if line.stage in stages.TRAINING):
        return 0.0
    states = run.training.execution.keep_last + 1 + (3 if run.training.stop else 0)
    return TRUNK_BYTES * parameters * states
