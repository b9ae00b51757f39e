"""Configuration sections whose every field is either identity (in the key) or execution (never in it).

A stage's configuration is a subclass of `Settings`; each field is made by `identity()` or `execution()`. `identity_of`
gives the part that goes into a stage key, and raises on a field that is marked as neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from storage.errors import ConfigError

_COUNT = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?)\s*([KMBG]?)B?\s*$", re.IGNORECASE)
_SCALE = {"": 1, "K": 1_000, "M": 1_000_000, "B": 1_000_000_000, "G": 1_000_000_000}
_SECONDS = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|min|h|d)?\s*$", re.IGNORECASE)
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


class Settings(BaseModel):
    """Base of every configuration section: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def identity(default: Any = ..., *, description: str, **constraints: Any) -> Any:
    """A field that decides bytes: it is part of the stage key. Constraints are pydantic's (`gt`, `le`, …).

    `choices` are the texts that a form offers; what else is wrong with a value is the reader's to say.
    """
    return _marked("identity", default, description, constraints)


def execution(default: Any = ..., *, description: str, **constraints: Any) -> Any:
    """A field that says where, how fast or under what name: it is never part of a key."""
    return _marked("execution", default, description, constraints)


def _marked(role: str, default: Any, description: str, constraints: dict[str, Any]) -> Any:
    extra: dict[str, Any] = {"role": role}
    if "choices" in constraints:
        extra["choices"] = list(constraints.pop("choices"))
    if "default_factory" in constraints:
        return Field(description=description, json_schema_extra=extra, **constraints)
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def role_of(model: type[BaseModel], field: str) -> str:
    """`identity` or `execution`; raises ConfigError where the field is marked as neither."""
    extra = model.model_fields[field].json_schema_extra
    role = extra.get("role") if isinstance(extra, dict) else None
    if role not in ("identity", "execution"):
        raise ConfigError(f"{model.__name__}.{field} is marked neither identity nor execution")
    return str(role)


def identity_of(settings: BaseModel) -> dict[str, Any]:
    """The identity fields as plain JSON, nested sections included (theirs filtered in the same way)."""
    return {
        name: _plain(getattr(settings, name))
        for name in type(settings).model_fields
        if role_of(type(settings), name) == "identity"
    }


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def parse_count(value: Any) -> Any:
    """`400M`, `2.5K`, `1B`, `64MB` or a plain number, as an integer (decimal units).

    Raises ValueError where the text is no count, or not a whole number.
    """
    if isinstance(value, str):
        match = _COUNT.match(value)
        if not match:
            raise ValueError(f"{value!r} is not a count; write for instance 500000, 500K, 400M or 1B")
        exact = float(match.group(1).replace("_", "")) * _SCALE[match.group(2).upper()]
        if exact != round(exact):
            raise ValueError(f"{value!r} is not a whole number")
        return round(exact)
    return value


def parse_seconds(value: Any) -> Any:
    """`5s`, `5min`, `1h`, `300ms` or a plain number of seconds, as a float."""
    if isinstance(value, str):
        match = _SECONDS.match(value)
        if not match:
            raise ValueError(f"{value!r} is not a duration; write for instance 30s, 5min or 2h")
        return float(match.group(1)) * _UNIT_SECONDS[(match.group(2) or "s").lower()]
    return value


def count_text(count: int) -> str:
    """A count as people write it, exactly: `400M`, `1.5B`, `524288`. `parse_count` reads it back."""
    for unit, scale in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= scale and count % (scale // 100) == 0:
            whole, hundredths = divmod(count // (scale // 100), 100)
            text = f"{whole}.{hundredths:02}".rstrip("0").rstrip(".") + unit
            if float(text[:-1]) * scale == count:  # as it will be read
                return text
    return str(count)


def seconds_text(seconds: float) -> str:
    """A duration as people write it, exactly: `5min`, `20s`, `500ms`. `parse_seconds` reads it back."""
    for unit in ("h", "min", "s", "ms"):
        text = f"{seconds / _UNIT_SECONDS[unit]:g}{unit}"
        if not re.search(r"[.e]", text) and parse_seconds(text) == seconds:
            return text
    return f"{seconds!r}s"


@dataclass(frozen=True)
class _Format:
    """Names in the JSON schema how a number may be written, for what shows it in a form."""

    name: str

    def __get_pydantic_json_schema__(self, core: Any, handler: Callable[[Any], Any]) -> Any:
        return {**handler(core), "format": self.name}


Count = Annotated[int, BeforeValidator(parse_count), _Format("count")]
"""An integer that may be written `400M`, `64K`, `1B` (decimal)."""

Seconds = Annotated[float, BeforeValidator(parse_seconds), _Format("seconds")]
"""A duration in seconds that may be written `5s`, `5min`, `1h`."""
