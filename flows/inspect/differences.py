"""The fields in which configurations differ: identity fields, which affect bytes, and separately execution fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.config import parse_config
from storage.errors import ConfigError
from storage.keys import MISSING, difference
from storage.settings import Section, identity_values, is_section, plain, role_of, types_of


@dataclass(frozen=True)
class Field:
    """One field (`training.learning_rate`) in which runs differ. `values` are plain JSON, by the run's label."""

    path: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Differences:
    """Identity fields and execution fields in which runs differ, by path.

    If an older configuration has fields that no longer exist, all differences are in `unknown` instead.
    """

    identity: tuple[Field, ...]
    execution: tuple[Field, ...]
    unknown: tuple[Field, ...] = ()


def differences(configs: Mapping[str, Mapping[str, Any]]) -> Differences:
    """The fields in which configurations differ, by the runs' labels. `configs` are as in a run record."""
    try:
        runs = {label: parse_config(dict(config), label) for label, config in configs.items()}
    except ConfigError:
        return Differences((), (), tuple(_fields(configs)))
    return Differences(
        tuple(_fields({label: identity_values(run) for label, run in runs.items()})),
        tuple(_fields({label: execution_of(run) for label, run in runs.items()})),
    )


def execution_of(settings: Section) -> dict[str, Any]:
    """What `identity_values` leaves out, as plain JSON: execution fields, those inside of identity sections included."""
    found: dict[str, Any] = {}
    for name in types_of(type(settings)):
        value = getattr(settings, name)
        if role_of(type(settings), name) == "execution":
            found[name] = plain(value)
        elif below := _execution_inside(value):
            found[name] = below
    return found


def _execution_inside(value: Any) -> Any:
    if is_section(type(value)):
        return execution_of(value)
    if isinstance(value, list | tuple):
        inside = [_execution_inside(item) for item in value]
        return inside if any(inside) else None
    return None


def _fields(configs: Mapping[str, Any]) -> list[Field]:
    """Leaves in which any run differs from the first. Tuples and lists are equal, as in JSON."""
    plain = {label: json.loads(json.dumps(config)) for label, config in configs.items()}
    labels: Sequence[str] = list(plain)
    first = plain[labels[0]]
    paths: dict[str, dict[str, Any]] = {}
    for label in labels[1:]:
        for one in difference(first, plain[label]):
            values = paths.setdefault(one.path, dict.fromkeys(labels, one.before))
            values[label] = one.after
    return [Field(path, values) for path, values in sorted(paths.items())]


def shown(value: Any) -> str:
    """A field's value for a reader, as a cell of a table."""
    if value == MISSING:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
