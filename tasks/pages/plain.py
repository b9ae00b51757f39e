"""Facts to plain JSON and back: frozen dataclasses in the code, objects in the file.

Fields are written in the order of the dataclass. A page's file keeps its bytes while names and order of the fields
stay.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Json = dict[str, Any]


def named(name: str) -> Any:
    """A field with another name in JSON, for example if its name is a Python keyword."""
    return dataclasses.field(metadata={"json": name})


def optional(default: Any = None) -> Any:
    """A field that is left out of JSON, and of a stage's key, while it has its default."""
    return dataclasses.field(default=default, metadata={"optional": True, "in_key": False})


def unwritten(default: Any = None) -> Any:
    """A field that is never in JSON or in a stage's key."""
    return dataclasses.field(default=default, metadata={"written": False, "in_key": False})


def plain(value: Any) -> Any:
    """Dataclasses, mappings and sequences as plain JSON."""
    if dataclasses.is_dataclass(value):
        return {
            field.metadata.get("json", field.name): plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if _is_written(field, getattr(value, field.name))
        }
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def _is_written(field: dataclasses.Field[Any], value: Any) -> bool:
    if field.metadata.get("optional") and value == field.default:
        return False
    return bool(field.metadata.get("written", True))


def read_as(kind: type[T], value: Any) -> T:
    """Plain JSON as a dataclass. Names that the dataclass does not have are ignored."""
    found: T = _read(kind, value)
    return found


def _read(kind: Any, value: Any) -> Any:
    if value is None or kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        hints = get_type_hints(kind)
        fields = {field.metadata.get("json", field.name): field.name for field in dataclasses.fields(kind)}
        return kind(**{name: _read(hints[name], value[key]) for key, name in fields.items() if key in value})
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read(next(one for one in inner if one is not type(None)), value)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(_read(one, item) for one, item in zip(kinds, value, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: _read(inner[1], item) for name, item in value.items()}
    return value
