"""Keys: what decides an artifact's bytes, as canonical JSON, and its sha256.

Invariant: equal identity gives an equal key in any process, under any hash seed and any order of fields; a value of a
type that has no canonical form raises instead of being guessed.
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
    """The one JSON text of a value: keys sorted, no spaces, ASCII. Raises TypeError or ValueError on what has none."""
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


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, Any]) -> str:
    """sha256 (64 hex digits) over stage, version, identity configuration and the digests of the inputs."""
    payload = {"stage": stage, "version": version, "config": dict(config), "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(payload)).hexdigest()


def key_inputs(inputs: Any) -> dict[str, Any]:
    """What of a stage's inputs is in its key: digests of parts, the last digest of a chain, plain values as they are.

    `inputs` is a dataclass; a field with `metadata={"in_key": False}` is left out. A dataclass inside it counts as the
    mapping of those of its fields that are not None.
    """
    return {name: _digests(value) for name, value in _fields(inputs)}


def recorded_inputs(inputs: Any) -> dict[str, Any]:
    """The same with stage, key and part beside each digest, for the manifest."""
    return {name: _references(value) for name, value in _fields(inputs)}


def _fields(inputs: Any) -> list[tuple[str, Any]]:
    return [
        (field.name, getattr(inputs, field.name))
        for field in dataclasses.fields(inputs)
        if field.metadata.get("in_key", True)
    ]


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
    """One field in which two keys differ; `before` or `after` is `MISSING` where a side lacks it."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.path}: {_shown(self.before)} → {_shown(self.after)}"


MISSING = "(absent)"


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
