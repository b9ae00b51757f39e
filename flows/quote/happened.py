"""A quote beside what happened: for each stage, the seconds that were quoted, and those that its artifacts took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.quote.rates import Made, seconds_of


@dataclass(frozen=True)
class Beside:
    """One stage, or all of them. `took` counts what one attempt made of each artifact, not what kills cost."""

    stage: str
    quoted: float
    took: float

    @property
    def off(self) -> float:
        """By how much it took longer (0.1: a tenth) or less long (−0.1)."""
        return self.took / self.quoted - 1 if self.quoted else 0.0


def beside(quote: Mapping[str, Any], made: Sequence[Made]) -> list[Beside]:
    """The stages of a quote (its JSON) of which nothing was there and something is now, and last all of these together."""
    took: dict[str, float] = {}
    for one in {one.artifact.key: one for one in made}.values():
        took[one.stage] = took.get(one.stage, 0.0) + seconds_of(one)
    rows = [
        Beside(line["stage"], line["seconds"], took[line["stage"]])
        for line in quote.get("lines", ())
        if line["seconds"] is not None and not line["done"] and line["stage"] in took
    ]
    return [*rows, _sum(rows)] if rows else []


def _sum(rows: Iterable[Beside]) -> Beside:
    rows = list(rows)
    return Beside("in all", sum(one.quoted for one in rows), sum(one.took for one in rows))
