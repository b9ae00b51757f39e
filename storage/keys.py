"""Stage keys: the canonical JSON of everything that decides an artifact's bytes, and its sha256.

Invariant: equal identity gives an equal key in any process, under any hash seed and any order of fields; a value of a
type that has no canonical form raises instead of being guessed.

A key names the version of its stage, and of those of the stage's components that it uses and that have changed since
0.1.0. A component is what a configuration can do without: a family of rules, a kind of file. So a change in one makes
again only what it was used for. A stage that has some names them: `COMPONENTS`, version by name, all 1 at first, and
`components(config, inputs)`, the names of those that are used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from storage.artifact import Chain, Input


def canonical_json(value: Any) -> bytes:
    """The canonical JSON of a value: sorted keys, no spaces, ASCII. Raises TypeError or ValueError if there is none."""
    _check(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _check(value: Any, where: str) -> None:
    if value is None or type(value) in (bool, int, str):
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}: no canonical JSON")
        return
    if type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
        return
    if isinstance(value, dict):
        for name, item in value.items():
            if type(name) is not str:
                raise TypeError(f"{where} has the key {name!r}, which is no text")
            _check(item, f"{where}.{name}")
        return
    raise TypeError(f"{where} is a {type(value).__name__}, which has no canonical JSON form")


def stage_key(
    stage: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    components: Mapping[str, int] | None = None,
) -> str:
    """sha256 (64 hex digits) over stage, version, identity configuration and the digests of the inputs.

    `components`: the versions of those that are used and changed (`changed_components`), where there are any.
    """
    payload: dict[str, Any] = {
        "stage": stage,
        "version": version,
        "config": dict(config),
        "inputs": dict(inputs),
    }
    if components:
        payload["components"] = dict(components)
    return hashlib.sha256(canonical_json(payload)).hexdigest()


def changed_components(module: Any, config: Any, inputs: Any) -> dict[str, int]:
    """The versions, by name, of the stage's components that these use, as far as they are above 1.

    Which are used is asked only where one has changed, since it may take a look into files.
    """
    changed = {name: version for name, version in getattr(module, "COMPONENTS", {}).items() if version > 1}
    if not changed:
        return {}
    used = set(module.components(config, inputs))
    return {name: version for name, version in sorted(changed.items()) if name in used}


def key_inputs(inputs: Any) -> dict[str, Any]:
    """The part of a stage's inputs that enters its key: digests of parts, the last digest of a chain, other plain values.

    `inputs` is a dataclass; a field with `metadata={"in_key": False}` is left out, and so is one with
    `metadata={"since": "0.2"}` (it came with that release) while its value is its default. A dataclass inside it counts
    as the mapping of those of its fields that are not None.
    """
    return {name: _digests(value) for name, value in _fields(inputs)}


def recorded_inputs(inputs: Any) -> dict[str, Any]:
    """Like `key_inputs`, with stage, key and part beside each digest. The manifest records this."""
    return {name: _references(value) for name, value in _fields(inputs)}


def parts_of(inputs: Any) -> list[Input]:
    """Every part of another artifact that a stage may read, those that are in no key and all links of chains too."""
    if isinstance(inputs, Input):
        return [inputs]
    if isinstance(inputs, Chain):
        return list(inputs.links)
    if isinstance(inputs, Mapping):
        inputs = list(inputs.values())
    elif dataclasses.is_dataclass(inputs) and not isinstance(inputs, type):
        inputs = [getattr(inputs, field.name) for field in dataclasses.fields(inputs)]
    if isinstance(inputs, list | tuple):
        return [part for value in inputs for part in parts_of(value)]
    return []


def _fields(inputs: Any) -> list[tuple[str, Any]]:
    return [
        (field.name, getattr(inputs, field.name))
        for field in dataclasses.fields(inputs)
        if field.metadata.get("in_key", True) and not _as_before(field, getattr(inputs, field.name))
    ]


def _as_before(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether an input that came after 0.1.0 is not there, or at the value that means: as before."""
    if "since" not in field.metadata:
        return False
    if field.default_factory is not dataclasses.MISSING:
        return bool(value == field.default_factory())
    if field.default is dataclasses.MISSING:
        raise TypeError(f"the input {field.name}, since {field.metadata['since']}, needs a default")
    return bool(type(value) is type(field.default) and value == field.default)


def _digests(value: Any) -> Any:
    if isinstance(value, Input):
        return value.digest
    if isinstance(value, Chain):
        return value.digest
    if isinstance(value, list | tuple):
        return [_digests(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _digests(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {name: _digests(item) for name, item in _fields(value) if item is not None}
    return value


def _references(value: Any) -> Any:
    if isinstance(value, Input):
        return {"stage": value.stage, "key": value.key, "part": value.part, "digest": value.digest}
    if isinstance(value, Chain):
        return _references(value.links[-1]) if value.links else None
    if isinstance(value, list | tuple):
        return [_references(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _references(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {name: _references(item) for name, item in _fields(value) if item is not None}
    return value


@dataclasses.dataclass(frozen=True)
class Difference:
    """One field in which two keys differ. `before` or `after` is `MISSING` if that side lacks the field."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.before)} → {_shown(self.after)}"


MISSING = "(absent)"
"""Stands for the value of a field that one side lacks."""


def difference(before: Any, after: Any, path: str = "") -> list[Difference]:
    """The leaves in which two plain JSON values differ, by dotted path."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found: list[Difference] = []
        for name in sorted({*before, *after}):
            below = f"{path}.{name}" if path else str(name)
            found += difference(before.get(name, MISSING), after.get(name, MISSING), below)
        return found
    if isinstance(before, list | tuple) and isinstance(after, list | tuple) and len(before) == len(after):
        found = []
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            found += difference(one, other, f"{path}[{index}]")
        return found
    return [] if before == after else [Difference(path, before, after)]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
