"""The form in the Prefect UI: a flow's parameters as a JSON schema that the UI shows well and the server checks.

The UI draws properties (a text input for a string, tabs for a union). The server refuses, before anything runs, what the
same schema does not allow, and names the field. For some properties both need different things: a count may be the text
`400M` or a number, but a person wants one text input. Such a property is a reference that each side resolves in its own
place. The UI looks under the schema's `definitions`. The server, following JSON schema, looks under the definitions of
the section around it, because every section has an `$id`. Before submitting, the UI checks what it draws.

`form_schema` gives the schema of a flow, `form_values` its values as the form writes them. Rules that no schema can
express are checked when the flow starts, before its first stage (`flows.runs.checks`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from prefect import Flow
from prefect.utilities.callables import parameter_schema

from storage.counts import count_text
from storage.units import seconds_text

Schema = dict[str, Any]

_COUNT = r"^[0-9][0-9_.e]*[KMBGkmbg]?B?$"
_SECONDS = r"^[0-9][0-9.]*(ms|s|min|h|d)?$"
_POSITIVE = r"(?=.*[1-9])"
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
_SPELLED = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""Bounds that pydantic leaves under its own names if a type has its own parser."""
_NULL = {"type": "null"}
_DEFINITIONS = "#/definitions/"
_TITLES = {
    "config": "Configuration",
    "until": "Last stage",
    "force": "Make again",
    "kv_heads": "KV heads",
    "change": "Changed most",
}
_SWITCH = ["auto", "on", "off"]
_FIRST = ("change", "name", "training", "model", "corpus", "evaluation")
"""What is changed most stands first: on the form, and in the configuration."""
_CASES = {"wsd": "Warm up, hold, decay (wsd)", "rewarm": "Warm up anew in each round (rewarm)"}
"""Tabs' titles, where the value alone says little."""
_MARKED = re.compile(r"(?<![`\w])[^\s`]*[<*][^\s`]*[^\s`,;.:]")
"""A word that Markdown, as which the UI shows a description, would take for a tag or for emphasis."""


def form_schema(flow: Flow[..., Any]) -> Schema:
    """The JSON schema of a flow's parameters, for `parameter_openapi_schema` of its deployments."""
    raw = parameter_schema(flow.fn).model_dump()
    form = _Form()
    for name, definition in raw["definitions"].items():
        form.definitions[name] = form.section(definition)
    root = form.section({**raw, "definitions": None})
    for name, section in form.definitions.items():
        if "properties" in section:
            section |= {"title": form.tabs[name]} if name in form.tabs else {}
            known = {used: form.checks.get(used, {"$ref": used}) for used in sorted(_used(section))}
            section |= {"$id": name, "definitions": known}
    return {**root, "additionalProperties": False, "definitions": form.definitions}


def _used(schema: Any) -> set[str]:
    """Names of the definitions that a schema refers to, including those in the checks of its cases."""
    if isinstance(schema, Mapping):
        own = {schema["$ref"].rsplit("/", 1)[-1]} if "$ref" in schema else set()
        return own.union(*(_used(value) for value in schema.values()))
    if isinstance(schema, list):
        return set().union(*(_used(value) for value in schema))
    return set()


def form_values(parameters: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Parameters (plain JSON) as the form writes them: counts and durations as text, empty values left out."""
    written = _written(dict(parameters), schema, schema)
    assert isinstance(written, dict)
    return written


class _Form:
    """Builds the schema. The UI reads `definitions`; only the server reads `checks`."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}
        self.checks: dict[str, Schema] = {}
        self.tabs: dict[str, str] = {}
        """Titles of sections that stand in a tab: the UI shows the section's, and not the tab's own."""

    def section(self, schema: Schema) -> Schema:
        """An object: its properties in order, with titles and positions, because a database may not keep the order."""
        shown = {name: value for name, value in schema.items() if name not in ("definitions", "properties")}
        properties = schema.get("properties", {})
        first = _FIRST if "training" in properties or "change" in properties else ()
        place = {name: at for at, name in enumerate(properties)}
        order = sorted(
            properties,
            key=lambda name: (
                name == "config",
                first.index(name) if name in first else len(first),
                properties[name].get("position", place[name]),
            ),
        )
        shown["properties"] = {
            name: {**self._property(name, properties[name]), "position": at} for at, name in enumerate(order)
        }
        return shown

    def _property(self, name: str, schema: Schema) -> Schema:
        shown = _spelled(schema)
        shown.pop("role", None)
        kind = shown.pop("anyOf", None) or shown.pop("oneOf", None)
        if "discriminator" in shown:
            mapping = shown.pop("discriminator")
            cases = {v: k for k, v in mapping["mapping"].items()}
            named = {cases[one["$ref"]]: one["$ref"] for one in kind or ()}
            shown |= {"title": _title(name), "description": _described(shown, "empty")}
            return self._cases(shown, mapping["propertyName"], named)
        nullable = kind is not None and _NULL in kind
        if kind is not None:
            kind = [one for one in kind if one != _NULL]
            shown |= self._union(kind, nullable)
        if nullable and shown.get("default", ...) is None:
            del shown["default"]  # for the server, a property without a default may be null
        if isinstance(shown.get("default"), Mapping):  # the UI begins with it, and takes no null in it
            shown["default"] = {key: value for key, value in shown["default"].items() if value is not None}
        shown["title"] = _title(name)
        shown["description"] = _described(shown, "off" if "anyOf" in shown else "empty")
        if "const" in shown:
            shown["enum"] = [shown.pop("const")]
        if "choices" in shown:
            shown["items"] = {**shown["items"], "enum": shown.pop("choices")}
        return self._leaf(shown, nullable)

    def _union(self, kind: list[Schema], nullable: bool) -> Schema:
        """A union: a list or a text if it amounts to one, else tabs."""
        if len(kind) == 1 and "$ref" not in kind[0]:
            return _spelled(kind[0])
        types = {"auto" if one.get("const") == "auto" else one.get("type") for one in kind}
        if types == {"auto", "boolean"}:
            return {"format": "switch"}
        if types == {"auto", "integer"}:
            return {"format": "auto-or-number"}
        if nullable:
            on = [{**one, "title": "On", "description": ""} for one in kind]
            self.tabs |= {one["$ref"].rsplit("/", 1)[-1]: "On" for one in kind if "$ref" in one}
            return {"anyOf": [*on, {**_NULL, "title": "Off"}]}
        return {"anyOf": [one if "$ref" in one else {**one, "title": "Name or path"} for one in kind]}

    def _cases(self, shown: Schema, tag: str, cases: Mapping[str, str]) -> Schema:
        """A tab for each case (name → reference). The server only checks the case that the value's tag names."""
        names = {case: ref.rsplit("/", 1)[-1] for case, ref in cases.items()}
        check: Schema = {"type": "object", "required": [tag], "properties": {tag: {"enum": list(cases)}}}
        for case, name in names.items():
            of_case = {"type": "object", "required": [tag], "properties": {tag: {"const": case}}}
            check = {"if": of_case, "then": {"$ref": name}, "else": check}
        self.checks |= {name: {} for name in names.values()}  # as a tab it allows anything: `check` refuses
        self.tabs |= {name: _CASES[case] for case, name in names.items() if case in _CASES}
        tabs = [{"$ref": ref, "title": _CASES.get(case, case)} for case, ref in cases.items()]
        return {**shown, "anyOf": tabs, **check}

    def _leaf(self, shown: Schema, nullable: bool) -> Schema:
        if "items" in shown:
            shown["items"] = self._leaf(dict(shown["items"]), False)
        if nullable and "enum" in shown:
            choices = {"type": "string", "enum": shown.pop("enum")}
            return self._apart(shown, choices, {"enum": [*choices["enum"], None]})
        splits: dict[str, Callable[[Schema, bool], tuple[Schema, Schema]]] = {
            "count": _count,
            "seconds": _seconds,
            "switch": _switch,
            "auto-or-number": _auto_or_number,
        }
        if shown.get("format") in splits:
            return self._apart(shown, *splits[shown["format"]](shown, nullable))
        return shown

    def _apart(self, shown: Schema, form: Schema, check: Schema) -> Schema:
        """The property as a reference that the UI reads as `form` and the server as `check`."""
        bare = {k: v for k, v in shown.items() if k not in ("type", "format", "items", *_BOUNDS)}
        name = form.get("format", "choice")
        known = [key for key, value in self.checks.items() if value == check and key.startswith(name)]
        known = [key for key in known if self.definitions[key] == form]
        if not known:
            known = [f"{name}-{len(self.checks) + 1}"]
            self.definitions[known[0]] = form
            self.checks[known[0]] = check
        if "default" in bare:
            bare["default"] = _text(bare["default"], name)
        return {"$ref": f"{_DEFINITIONS}{known[0]}", **bare}


def _count(shown: Schema, nullable: bool) -> tuple[Schema, Schema]:
    return _number_as_text("count", _COUNT, "integer", shown, nullable)


def _seconds(shown: Schema, nullable: bool) -> tuple[Schema, Schema]:
    return _number_as_text("seconds", _SECONDS, "number", shown, nullable)


def _number_as_text(
    name: str, pattern: str, type_: str, shown: Schema, nullable: bool
) -> tuple[Schema, Schema]:
    positive = shown.get("exclusiveMinimum", -1) >= 0 or shown.get("minimum", 0) > 0
    pattern = pattern.replace("^", "^" + _POSITIVE, 1) if positive else pattern
    bounds = {bound: shown[bound] for bound in _BOUNDS if bound in shown}
    form = {"type": "string", "format": name, "pattern": pattern}
    return form, {"type": ["string", type_, *(["null"] if nullable else [])], "pattern": pattern, **bounds}


def _switch(shown: Schema, nullable: bool) -> tuple[Schema, Schema]:
    form = {"type": "string", "format": "switch", "enum": _SWITCH}
    return form, {"enum": [*_SWITCH, True, False]}


def _auto_or_number(shown: Schema, nullable: bool) -> tuple[Schema, Schema]:
    pattern = r"^(auto|[1-9][0-9]*)$"
    form = {"type": "string", "format": "auto-or-number", "pattern": pattern}
    return form, {"type": ["string", "integer"], "pattern": pattern, "minimum": 1}


def _spelled(schema: Schema) -> Schema:
    return {_SPELLED.get(word, word): value for word, value in schema.items()}


def _described(shown: Schema, empty: str) -> str:
    """The description as a sentence, with the bounds and the default of a single value. `empty` is the word for null."""
    text = " ".join(shown.get("description", "").split()).rstrip(".")
    text = _MARKED.sub(lambda word: f"`{word[0]}`", re.sub(r"\bnull\b", empty, text))
    words = [f"{word} {_said(shown[bound], shown)}" for bound, word in _BOUNDS.items() if bound in shown]
    default = shown.get("default")
    if isinstance(default, str | int | float):
        words.append(f"default {_said(default, shown)}")
    return " ".join(_capital(part) + "." for part in (text, ", ".join(words)) if part)


def _said(value: Any, shown: Schema) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    written = _text(value, shown.get("format", "")) if value else value
    return f"{written:g}" if isinstance(written, float) else str(written)


def _capital(text: str) -> str:
    """Capitalize the first letter of a sentence, but not a name with fixed spelling."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z-]+([ ,;]|$)", text) else text


def _title(name: str) -> str:
    return _TITLES.get(name) or _capital(name.replace("_", " "))


def _text(value: Any, name: str) -> Any:
    """A value as text, by the name of its definition (`count-3`)."""
    name = re.sub(r"-\d+$", "", name)
    if isinstance(value, bool):
        return {True: "on", False: "off"}[value] if name == "switch" else value
    if name == "count" and isinstance(value, int):
        return count_text(value)
    if name == "seconds" and isinstance(value, int | float):
        return seconds_text(float(value))
    return str(value) if name == "auto-or-number" else value


def _written(value: Any, shown: Schema, schema: Schema) -> Any:
    name = shown.get("$ref", "").rsplit("/", 1)[-1]
    if name and "properties" not in schema["definitions"][name] and not isinstance(value, Mapping):
        return _text(value, name)
    if name:
        shown = {**schema["definitions"][name], **shown}
    if "anyOf" in shown:
        return _written(value, _branch(value, shown["anyOf"], schema), schema)
    if isinstance(value, Mapping) and "properties" in shown:
        known = shown["properties"]
        return {
            name: _written(item, known.get(name, {}), schema)
            for name, item in value.items()
            if item is not None or "anyOf" in known.get(name, {})
        }
    if isinstance(value, list | tuple):
        return [_written(item, shown.get("items") or {}, schema) for item in value]
    return value


def _branch(value: Any, branches: list[Schema], schema: Schema) -> Schema:
    """The branch of a union that a value belongs to: the first object that has all of its properties."""
    for branch in branches:
        known = schema["definitions"].get(branch.get("$ref", "").rsplit("/", 1)[-1], {}).get("properties")
        if known is not None and isinstance(value, Mapping) and set(value) <= set(known):
            return branch
    return {}
