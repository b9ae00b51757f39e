"""docs/configuration.md and configs/schema.json, made of the configuration's own fields.

`python -m flows.keys.reference` writes both; a test holds that they are as it would write them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.config import RunConfig
from flows.keys.advice import ADVICE
from storage.counts import count_text
from storage.units import seconds_text

DOCUMENT, SCHEMA = Path("docs/configuration.md"), Path("configs/schema.json")
_COUNT = {"type": "string", "pattern": r"^\s*[0-9][0-9_]*(\.[0-9]+)?([eE]\+?[0-9]+)?\s*[kKmMbBgG]?[bB]?\s*$"}
_SECONDS = {"type": "string", "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*(ms|s|min|h|d)?\s*$"}
_OURS = ("role", "since", "before", "choices", "format")
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_PLACES = {
    "": "The run",
    "corpus": "`corpus`: what is read, and what of it is kept",
    "corpus.sources": "`corpus.sources`: a list, one entry a source",
    "corpus.dedup": "`corpus.dedup`: duplicates",
    "corpus.filter": "`corpus.filter`: quality ([filters.md](filters.md))",
    "corpus.decontaminate": "`corpus.decontaminate`: benchmark questions in the text",
    "corpus.execution": "`corpus.execution`: where shards run",
    "model": "`model`: what training begins with",
    "packing": "`packing`: from tokens to sequences",
    "training": "`training`: budgets, rate, precision ([training.md](training.md))",
    "training.schedule": "`training.schedule`: the learning rate over the run",
    "training.optimizer": "`training.optimizer`: AdamW",
    "training.average": "`training.average`: a mean of checkpoints as the model",
    "training.stop": "`training.stop`: an end before the budgets, where more training does harm",
    "training.execution": "`training.execution`: where, and how fast",
    "evaluation": "`evaluation`: what each model is measured on ([evaluation.md](evaluation.md))",
    "evaluation.own": "`evaluation.own`: a list of benchmarks of your own",
    "merge": "`merge`: models of weights between models ([merge.md](merge.md))",
    "tracking": "`tracking`: MLflow",
}
_HEAD = """# Every key of a configuration

Made by `python -m flows.keys.reference` of the fields themselves. A wrong key or value is refused with the nearest right
one. Editors that know JSON Schema complete and check a file whose first line is
`# yaml-language-server: $schema=schema.json` (the path of [configs/schema.json](../configs/schema.json)).

Keys with a • are *execution*: they say where, how fast, or under what name something is made. They may change at any time,
and nothing is made again; files count by their content, wherever they lie. Every other key is *identity*: it decides bytes,
and what depends on it is made again if it changes ([caching.md](caching.md)). Numbers may be
written as `400M`, `1.5G`, `64K`; times as `30s`, `5min`, `2h`.
`onward run CONFIG --set KEY=VALUE` sets any of them for one run.

Begin with [configs/edu-125m.yaml](../configs/edu-125m.yaml) on one GPU, with
[configs/textbooks-135m.yaml](../configs/textbooks-135m.yaml) on a laptop, or let `onward init FOLDER` write one that fits.
"""


@dataclass(frozen=True)
class Key:
    """A key that takes a value. `name` is dotted; `base.init` is written out, as it is in a file."""

    name: str
    description: str
    values: str
    default: str
    identity: bool

    @property
    def place(self) -> str:
        """The section that it is shown in."""
        parts = self.name.split(".")[:-1]
        while (place := ".".join(parts)) not in _PLACES:
            parts = parts[:-1]
        return place


def keys() -> list[Key]:
    """Every key that takes a value, once, in the order of the sections."""
    found: dict[str, Key] = {}
    for key in _keys(RunConfig.model_json_schema(), "", True):
        known = found.setdefault(key.name, key)
        if key.values not in known.values:  # `kind` has a value in each of the sections that it chooses
            found[key.name] = replace(known, values=f"{known.values}, {key.values}")
    return sorted(found.values(), key=lambda key: list(_PLACES).index(key.place))


def document() -> str:
    """The text of docs/configuration.md."""
    lines, place = [_HEAD], None
    for key in keys():
        if key.place != place:
            place = key.place
            lines += [
                "",
                f"## {_PLACES[place]}",
                "| key | meaning | values | default | when to change it |",
                "| --- " * 5 + "|",
            ]
        name = key.name.removeprefix(f"{place}.") if place else key.name
        cells = (
            f"`{name}`{'' if key.identity else ' •'}",
            key.description,
            key.values,
            key.default,
            ADVICE[key.name],
        )
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def schema() -> str:
    """The text of configs/schema.json: what editors check. Numbers with units are texts of their form too."""
    made = RunConfig.model_json_schema()
    new = {"type": "object", "additionalProperties": False, "required": ["init"]}
    base = made["$defs"]["ModelConfig"]["properties"]["base"]
    base["anyOf"] = [{**new, "properties": {"init": one}} if "$ref" in one else one for one in base["anyOf"]]
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A run of Onward"}
    return json.dumps({**whole, **_for_editors(made)}, indent=1, ensure_ascii=False) + "\n"


def _keys(
    node: dict[str, Any], prefix: str, identity: bool, root: dict[str, Any] | None = None
) -> Iterator[Key]:
    root = root or node
    for name, field in node.get("properties", {}).items():
        mine = identity and (field.get("role") == "identity" or name == "base")
        inner = list(_sections(field, root["$defs"]))
        dotted = f"{prefix}{name}"
        if not inner or dotted in ("model.base", "corpus.dedup.minhash", "corpus.dedup.paragraphs"):
            values = _values(field, root["$defs"])
            default = "(required)" if name in node.get("required", ()) else _default(field)
            yield Key(dotted, _sentence(field["description"], values), values, default, mine)
        for section in inner:
            below = f"{dotted}.init." if dotted == "model.base" else f"{dotted}."
            yield from _keys(root["$defs"][section], below, mine, root)


def _sections(field: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    """The sections that a field is made of, also where it may be null or is a list."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        if known[name].get("type") == "object":
            yield name
    for one in [*field.get("anyOf", ()), *field.get("oneOf", ())]:
        yield from _sections(one, known)
    if isinstance(field.get("items"), dict):
        yield from _sections(field["items"], known)


def _values(field: dict[str, Any], known: dict[str, Any]) -> str:
    if "choices" in field:
        return ", ".join(f"`{choice}`" for choice in field["choices"])
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(
            dict.fromkeys(_values(one, known) for one in [*field.get("anyOf", ()), *field.get("oneOf", ())])
        )
    if "$ref" in field:
        return "a section" if known[field["$ref"].rsplit("/", 1)[-1]].get("type") == "object" else "text"
    if "enum" in field or "const" in field:
        return ", ".join(f"`{choice}`" for choice in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        items = field.get("items")
        return f"list of {_values(items, known)}" if isinstance(items, dict) else "two numbers"
    word = {"string": "text", "boolean": "`true`, `false`", "null": "`null`", "object": "rule: number"}.get(
        str(field.get("type")), {"count": "count", "seconds": "time"}.get(field.get("format", ""), "number")
    )
    bounds = [
        f"{sign} {_number(_limit(field, limit))}"
        for limit, sign in _SIGNS.items()
        if _limit(field, limit) is not None
    ]
    return f"{word} {', '.join(bounds)}".strip()


def _limit(field: dict[str, Any], name: str) -> Any:
    ours = next(short for short, long in _LIMITS.items() if long == name)
    return field.get(name, field.get(ours))


def _default(field: dict[str, Any]) -> str:
    value = field.get("default", {})
    if field.get("format") == "seconds":
        return f"`{seconds_text(value)}`"
    if field.get("format") == "count":
        return f"`{count_text(value)}`"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value, ensure_ascii=False)}`"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _sentence(text: str, values: str) -> str:
    """A description as a sentence. A value or a name of the code at its beginning keeps its letters."""
    first = text.split()[0].rstrip(":;,")
    if f"`{first}`" not in values and not re.search(r"[._0-9]", first):
        text = text[0].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("\n", " ")


def _for_editors(node: Any) -> Any:
    """A part of the schema without our own words, and with what the texts of numbers look like."""
    if isinstance(node, list):
        return [_for_editors(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {
        key: _for_editors(value) for key, value in node.items() if key not in _OURS or isinstance(value, dict)
    }
    for ours, proper in _LIMITS.items():
        if ours in made and "type" in made:
            made[proper] = made.pop(ours)
    form = node.get("format")
    written = {"count": _COUNT, "seconds": _SECONDS}.get(form) if isinstance(form, str) else None
    if written is None:
        return made
    told = {key: made.pop(key) for key in ("title", "description", "default") if key in made}
    return {**told, "anyOf": [made, written]}


def main() -> None:
    """Write both files."""
    DOCUMENT.write_text(document(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
