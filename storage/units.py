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
LARGEST = 2**63 - 1
"""The largest integer of any field."""
_LONGEST_NUMBER = 100
_LONGEST_NAME, _LONGEST_LINE, _LONGEST_TEXT = 255, 4_000, 100_000
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
        return self._bounded(handler(source))

    def _bounded(self, core: Any) -> Any:
        """The schema of a number with these limits; they belong to the number, also if it has another written form."""
        if core["type"] == "function-before":
            return {**core, "schema": self._bounded(core["schema"])}
        return {**core, **self.given}


def parse_seconds(value: Any) -> Any:
    """Read `5s`, `5min`, `1h`, `300ms` or a plain number of seconds."""
    if isinstance(value, str):
        match = _SECONDS.match(value)
        if not match:
            raise ValueError(f"{value[:40]!r} is not a duration; write for instance 30s, 5min or 2h")
        return float(match.group(1)) * _UNIT_SECONDS[(match.group(2) or "s").lower()]
    return as_number(value)


def as_number(value: Any) -> Any:
    """Return a number unchanged. Raises ValueError for true and false, and for more digits than any field has.

    Without this, true would count as 1, and an integer of thousands of digits breaks what converts or shows it.
    """
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"is beyond {LARGEST}")
    if isinstance(value, str) and len(value) > _LONGEST_NUMBER:
        raise ValueError(f"a text of {len(value):,} characters is no number")
    return value


def auto_or_whole(value: Any) -> Any:
    """Read `auto`, or a whole number that may be written as text, as a form does. Other types are returned unchanged."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
        return int(value)
    return as_number(value)


def auto_or_count(value: Any) -> Any:
    """Read `auto`, or a count such as 64K; the rest is as for `parse_count`."""
    return value if value == "auto" else parse_count(value)


def as_path(value: Any) -> Any:
    """Return a path or pattern unchanged. Raises ValueError for a text that no file system takes as a name."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise ValueError("is empty; name a path")
    parts = value.encode(errors="replace").split(b"/")
    if max(map(len, parts)) > _LONGEST_NAME or sum(map(len, parts)) + len(parts) > _LONGEST_LINE:
        raise ValueError(
            f"a path of {len(value):,} characters is too long: {_LONGEST_NAME} bytes at most between two slashes, "
            f"{_LONGEST_LINE:,} in all"
        )
    return as_line(value)


def as_line(value: Any) -> Any:
    """Return a text of one line unchanged. Raises ValueError for control characters, and for more than 4,000 characters."""
    if isinstance(value, str) and any(ord(character) < 32 for character in value):
        raise ValueError(f"{value[:40]!r} holds a control character; write one line without any")
    if isinstance(value, str) and len(value) > _LONGEST_LINE:
        raise ValueError(f"a text of {len(value):,} characters is too long: {_LONGEST_LINE:,} at most")
    return as_text(value)


def as_text(value: Any) -> Any:
    """Return a text unchanged. Raises ValueError for what no tokenizer takes, and for more than 100,000 characters."""
    if not isinstance(value, str):
        return value
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{value[:40]!r} holds a character that is none (NUL, or half of a pair)")
    if len(value) > _LONGEST_TEXT:
        raise ValueError(f"a text of {len(value):,} characters is too long: {_LONGEST_TEXT:,} at most")
    return value


def seconds_text(seconds: float) -> str:
    """The exact text of a duration: `5min`, `20s`, `500ms`. `parse_seconds` reads it back."""
    for unit in ("h", "min", "s", "ms"):
        text = f"{seconds / _UNIT_SECONDS[unit]:g}{unit}"
        if not re.search(r"[.e]", text) and parse_seconds(text) == seconds:
            return text
    return f"{seconds!r}s"


Whole = Annotated[int, Written(as_number)]
"""An integer. Unlike `int`, it is never made from true or false."""

Real = Annotated[float, Written(as_number)]
"""A number. Unlike `float`, it is never made from true or false."""

PathText = Annotated[str, Written(as_path)]
"""A path, or a pattern of paths."""

LineText = Annotated[str, Written(as_line)]
"""A text of one line: a name, an address."""

FreeText = Annotated[str, Written(as_text)]
"""A text of any number of lines."""

Count = Annotated[int, Written(parse_count, "count")]
"""An integer that may be written `400M`, `64K`, `1B` (decimal)."""

Seconds = Annotated[float, Written(parse_seconds, "seconds")]
"""A duration in seconds that may be written `5s`, `5min`, `1h`."""
