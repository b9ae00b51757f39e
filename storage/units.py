"""Types of numbers that people write with units (`400M`, `5min`), and bounds inside a type. No pydantic here.

Pydantic calls two methods of a marker in `Annotated` for its part of the schema. So the markers need not import
pydantic, and the trainer reads the same types without it (`storage.fields`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from storage.counts import parse_count

_SECONDS = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|min|h|d)?\s*$", re.IGNORECASE)
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Written:
    """A marker in `Annotated`: the value has another written form, which `parse` reads. `parse` raises ValueError.

    `format` names this form in the JSON schema, for code that shows it in a form.
    """

    parse: Callable[[Any], Any]
    format: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        function = {"type": "no-info", "function": self.parse}
        return {"type": "function-before", "function": function, "schema": handler(source)}

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], Any]) -> Any:
        return handler(core) if self.format is None else {**handler(core), "format": self.format}


@dataclass(frozen=True)
class Bounds:
    """A marker in `Annotated`: limits of a number inside another type (a union, a tuple)."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    @property
    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {name: limit for name, limit in vars(self).items() if limit is not None}

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        return {**handler(source), **self.given}


def parse_seconds(value: Any) -> Any:
    """Read `5s`, `5min`, `1h`, `300ms` or a plain number of seconds."""
    if isinstance(value, str):
        match = _SECONDS.match(value)
        if not match:
            raise ValueError(f"{value!r} is not a duration; write for instance 30s, 5min or 2h")
        return float(match.group(1)) * _UNIT_SECONDS[(match.group(2) or "s").lower()]
    return value


def seconds_text(seconds: float) -> str:
    """The exact text of a duration: `5min`, `20s`, `500ms`. `parse_seconds` reads it back."""
    for unit in ("h", "min", "s", "ms"):
        text = f"{seconds / _UNIT_SECONDS[unit]:g}{unit}"
        if not re.search(r"[.e]", text) and parse_seconds(text) == seconds:
            return text
    return f"{seconds!r}s"


Count = Annotated[int, Written(parse_count, "count")]
"""An integer that may be written `400M`, `64K`, `1B` (decimal)."""

Seconds = Annotated[float, Written(parse_seconds, "seconds")]
"""A duration in seconds that may be written `5s`, `5min`, `1h`."""
