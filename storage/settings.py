"""Configuration sections. Every field is either identity (in the key) or execution (never in the key).

A stage's configuration is a subclass of `Settings`; `identity()` or `execution()` makes each field. `identity_of` gives
the part that enters a stage key, and raises if a field has neither role. A section may also be a frozen dataclass with
fields of `storage.fields`, which a process without pydantic can read.

Invariant: a new option changes no existing key. An option newer than 0.1.0 states `since`, and its default means
"as before". At that default, the option is in no key. The same holds for a whole new section.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from storage.errors import ConfigError
from storage.fields import marked
from storage.units import Count as Count
from storage.units import FreeText as FreeText
from storage.units import LineText as LineText
from storage.units import PathText as PathText
from storage.units import Real as Real
from storage.units import Seconds as Seconds
from storage.units import Whole as Whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section: TypeAlias = "BaseModel | DataclassInstance"
"""A configuration section: a pydantic model, or a dataclass with fields of `storage.fields`."""


class Settings(BaseModel):
    """Base class of all configuration sections: frozen; an unknown key and a number that is not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def identity(
    default: Any = ...,
    *,
    description: str,
    since: str | None = None,
    before: Any = ...,
    **constraints: Any,
) -> Any:
    """A field that affects bytes and is part of the stage key. Constraints are pydantic's (`gt`, `le`, …).

    `since` is the release that added the field (`0.2`); every field that 0.1.0 did not have needs it. The field is in no
    key while its value means "as before", that is, gives the bytes that were made without the field. This value is the
    field's first default. If the default changes later, `before` keeps the first one.
    `choices` are the texts that a form offers. The code that reads the value checks everything else.
    """
    return _field(default, marked("identity", default, description, constraints, since, before))


def execution(default: Any = ..., *, description: str, **constraints: Any) -> Any:
    """A field that says where, how fast or under what name a stage runs. It is never part of a key."""
    return _field(default, marked("execution", default, description, constraints))


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    return Field(**metadata) if "default_factory" in metadata else Field(default, **metadata)


def is_section(kind: Any) -> bool:
    """Whether the fields of this type are configuration keys of their own."""
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def types_of(section: type[Section]) -> dict[str, Any]:
    """The type of each field, by name, in order."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def role_of(section: type[Section], field: str) -> str:
    """`identity` or `execution`. Raises ConfigError if the field has neither role."""
    role = _extra(section, field).get("role")
    if role not in ("identity", "execution"):
        raise ConfigError(f"{section.__name__}.{field} is neither an identity nor an execution field")
    return str(role)


def since_of(section: type[Section], field: str) -> str | None:
    """The release that added an identity field; None for the fields of 0.1.0, which are in every key."""
    since = _extra(section, field).get("since")
    return None if since is None else str(since)


def before_of(section: type[Section], field: str) -> Any:
    """The value at which a field with `since` is in no key, as plain JSON."""
    extra = _extra(section, field)
    if "before" in extra:
        return extra["before"]
    if issubclass(section, BaseModel):
        return _plain(section.model_fields[field].get_default(call_default_factory=True), identity_values)
    found = section.__dataclass_fields__[field]
    default = found.default if found.default_factory is dataclasses.MISSING else found.default_factory()
    return _plain(default, identity_values)


def _extra(section: type[Section], field: str) -> Mapping[str, Any]:
    if issubclass(section, BaseModel):
        extra: Any = section.model_fields[field].json_schema_extra
    else:
        extra = section.__dataclass_fields__[field].metadata.get("json_schema_extra")
    return extra if isinstance(extra, dict) else {}


def identity_of(settings: Section) -> dict[str, Any]:
    """The part of a section that enters a key, as plain JSON. Nested sections are included and filtered in the same way.

    A field with `since` is left out while its value means "as before".
    """
    section = type(settings)
    found = {}
    for name in types_of(section):
        if role_of(section, name) != "identity":
            continue
        value = getattr(settings, name)
        if since_of(section, name) is None or not _same(
            _plain(value, identity_values), before_of(section, name)
        ):
            found[name] = _plain(value, identity_of)
    return found


def identity_values(settings: Section) -> dict[str, Any]:
    """Every identity field with its value, as plain JSON, also those that `identity_of` leaves out of keys. For display."""
    section = type(settings)
    return {
        name: _plain(getattr(settings, name), identity_values)
        for name in types_of(section)
        if role_of(section, name) == "identity"
    }


def completed(recorded: Any, settings: Any) -> Any:
    """Complete an earlier result of `identity_of` with the fields that it left out or did not know.

    Each such field gets the value that means "as before". `settings` is a section that says which fields exist.
    """
    if isinstance(settings, list | tuple) and isinstance(recorded, list) and len(recorded) == len(settings):
        return [completed(*pair) for pair in zip(recorded, settings, strict=True)]
    if not is_section(type(settings)) or not isinstance(recorded, Mapping):
        return recorded
    found, section = dict(recorded), type(settings)
    for name in types_of(section):
        if name in found:
            found[name] = completed(found[name], getattr(settings, name))
        elif since_of(section, name) is not None:
            found[name] = before_of(section, name)
    return found


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values are the same in a key: 1, 1.0 and true are three different values."""
    return json.dumps(one, sort_keys=True, default=str) == json.dumps(other, sort_keys=True, default=str)


def _plain(value: Any, of: Callable[[Section], dict[str, Any]]) -> Any:
    if is_section(type(value)):
        return of(value)
    if isinstance(value, list | tuple):
        return [_plain(item, of) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, of) for key, item in value.items()}
    return value


def plain(value: Any) -> Any:
    """A configuration value as plain JSON; sections with all of their fields."""
    return TypeAdapter(type(value)).dump_python(value, mode="json")
