"""Fields of a frozen dataclass that declare everything in one place: role, default, bounds, description.

A dataclass with fields made by `identity` and `execution` is a configuration section, like those of
`storage.settings`: pydantic reads the fields' metadata. `load` builds the same dataclass from plain JSON with the
standard library alone. The trainer needs this because it runs without pydantic.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from storage.errors import ConfigError
from storage.units import Bounds, Written

T = TypeVar("T")

STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
"""The pydantic settings of such a dataclass: `__pydantic_config__ = STRICT`."""
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def identity(
    default: Any = dataclasses.MISSING,
    *,
    description: str,
    since: str | None = None,
    before: Any = ...,
    **constraints: Any,
) -> Any:
    """A field that affects bytes and is part of the stage key. The parameters are those of `storage.settings.identity`."""
    return _field(default, marked("identity", default, description, constraints, since, before))


def execution(default: Any = dataclasses.MISSING, *, description: str, **constraints: Any) -> Any:
    """A field that says where, how fast or under what name a stage runs. It is never part of a key."""
    return _field(default, marked("execution", default, description, constraints))


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    factory = metadata.pop("default_factory", dataclasses.MISSING)
    found: Any = dataclasses.field(default=default, default_factory=factory, metadata=metadata)
    return found


def marked(
    role: str,
    default: Any,
    description: str,
    constraints: Mapping[str, Any],
    since: str | None = None,
    before: Any = ...,
) -> dict[str, Any]:
    """The arguments for pydantic's `Field`, besides the default.

    Pydantic does not know some facts, which go into its extra: the role, the choices, the release that the field came
    with, and the value that means "as before".
    """
    required = default in (..., dataclasses.MISSING) and "default_factory" not in constraints
    if since is not None:
        if not re.fullmatch(r"[0-9]+\.[0-9]+(\.[0-9]+)?", since):
            raise ConfigError(f"since={since!r} is no release; write for instance since='0.2'")
        if required:
            raise ConfigError(f"a field since {since} needs the default that means: as before")
    elif before is not ...:
        raise ConfigError(f"before={before!r} goes with since: the release that the field came with")
    extra: dict[str, Any] = {"role": role}
    if since is not None:
        extra["since"] = since
    if before is not ...:
        extra["before"] = before
    if "choices" in constraints:
        extra["choices"] = list(constraints["choices"])
    plain = {name: value for name, value in constraints.items() if name != "choices"}
    return {"description": description, "json_schema_extra": extra, **plain}


def load(kind: type[T], data: Any, where: str = "", **given: Any) -> T:
    """Build `kind`, a dataclass, from the JSON object `data`. Fields in `given` are not read from it.

    A missing field takes the value that means "as before" if there is one, else its default. Raises ConfigError with the
    dotted name of a field (prefixed by `where`) that is missing without a default, unknown, of a wrong type, or out of
    bounds.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or 'The specification'} must be a JSON object.")
    left, found, hints = dict(data), dict(given), get_type_hints(kind, include_extras=True)
    prefix = f"{where}." if where else ""
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name = prefix + field.name
        if field.name in given:
            continue
        extra = field.metadata.get("json_schema_extra", {})
        if field.name in left or "before" in extra:
            value = _read(hints[field.name], left.pop(field.name, extra.get("before")), name)
            bounds = {bound: field.metadata[bound] for bound in _BOUNDS if bound in field.metadata}
            _check(value, bounds, name)
            found[field.name] = value
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{name} is missing from the specification.")
    if left:
        raise ConfigError(f"{prefix}{min(left)} is not a field of the specification.")
    return kind(**found)


def _read(kind: Any, value: Any, name: str) -> Any:
    """Read `value` as a `kind`. Raises ConfigError."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _read_annotated(kind, value, name)
    if origin in (Union, types.UnionType):
        return _read_union(inside, value, name)
    if origin is Literal:
        if not any(value == one and type(value) is type(one) for one in inside):
            raise _wrong(kind, value, name)
        return value
    if origin is tuple:
        many = inside[-1] is Ellipsis
        if not isinstance(value, list) or not (many or len(value) == len(inside)):
            raise _wrong(kind, value, name)
        of_each = [inside[0]] * len(value) if many else inside
        return tuple(_read(one, item, name) for one, item in zip(of_each, value, strict=True))
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong(kind, value, name)
        return {key: _read(inside[1], item, f"{name}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        return load(kind, value, name)  # type: ignore[arg-type]
    return _read_plain(kind, value, name)


def _read_annotated(kind: Any, value: Any, name: str) -> Any:
    bare, *marks = get_args(kind)
    for mark in marks:
        if isinstance(mark, Written):
            try:
                value = mark.parse(value)
            except ValueError as error:
                raise ConfigError(f"{name}: {error}.") from error
    value = _read(bare, value, name)
    for mark in marks:
        if isinstance(mark, Bounds):
            _check(value, mark.given, name)
    return value


def _read_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """Read one of several types. Their field `kind` distinguishes sections; other types are tried in turn."""
    if value is None and types.NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not types.NoneType)
    if all(dataclasses.is_dataclass(kind) for kind in kinds) and len(kinds) > 1:
        cases = {get_args(get_type_hints(kind)["kind"])[0]: kind for kind in kinds}
        tag = value.get("kind") if isinstance(value, Mapping) else None
        if tag not in cases:
            raise ConfigError(f"{name}.kind must be {_either(list(cases))}, not {tag!r}.")
        return load(cases[tag], value, name)
    if len(kinds) == 1:
        return _read(kinds[0], value, name)
    for kind in kinds:
        try:
            return _read(kind, value, name)
        except ConfigError:
            continue
    raise _wrong(Union[kinds], value, name)  # noqa: UP007 (of a tuple)


def _read_plain(kind: Any, value: Any, name: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(kind, value, name)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, not {value!r}.")
    return value


def _check(value: Any, bounds: Mapping[str, float], name: str) -> None:
    kept = (getattr(operator, bound)(value, limit) for bound, limit in bounds.items())
    if value is not None and not all(kept):
        raise ConfigError(f"{name} must be {_within(bounds)}, not {value!r}.")


def _wrong(kind: Any, value: Any, name: str) -> ConfigError:
    return ConfigError(f"{name} must be {_words(kind)}, not {value!r}.")


def _words(kind: Any) -> str:
    """A type's name for users."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = " and ".join(_within(mark.given) for mark in inside[1:] if isinstance(mark, Bounds))
        return _words(inside[0]) + (f" {limits}" if limits else "")
    if origin is Literal:
        return _either(inside)
    if origin in (Union, types.UnionType):
        return _either([_words(one) for one in inside])
    if origin is tuple:
        count = "" if inside[-1] is Ellipsis else f" of {len(inside)}"
        return f"a list{count}, each {_words(inside[0])}"
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", Path: "a path"}
    return names.get(kind, "a JSON object")


def _within(bounds: Mapping[str, float]) -> str:
    return " and ".join(f"{_BOUNDS[bound]} {limit}" for bound, limit in bounds.items())


def _either(choices: Any) -> str:
    *others, last = (str(choice) for choice in choices)
    return f"{', '.join(others)} or {last}" if others else last
