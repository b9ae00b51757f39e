"""Reads the flow's spec.json into the dataclasses of spec.py. Every field is checked; errors name the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.errors import ConfigError
from storage.fields import load
from tasks.training.combinations import of_identity, refuse
from tasks.training.spec import Identity, Spec


def read_spec(path: Path) -> Spec:
    """Read and check spec.json. Raises ConfigError naming the wrong field."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a training specification ({error}).") from error
    return parse_spec(data)


def parse_spec(data: Any) -> Spec:
    """Check a decoded spec.json. Raises ConfigError naming the wrong field."""
    if not isinstance(data, dict):
        raise ConfigError("The training specification must be a JSON object.")
    rest = dict(data)
    part = rest.pop("identity", None)
    canonical = json.dumps(part, sort_keys=True, separators=(",", ":"))
    identity = load(Identity, part, "identity", canonical=canonical)
    refuse(of_identity(identity))
    spec = load(Spec, rest, identity=identity)
    if (spec.paths.base is None) != (identity.base is None):
        raise ConfigError("paths.base lies where identity.base does: both, or neither.")
    return spec
