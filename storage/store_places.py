"""Which directories are stores, and which stores a project has. Light to import, because the command line uses it.

A directory is a store by what only a store has, never by its name or depth: commands that move or remove files trust it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.errors import ConfigError
from storage.paths import home
from storage.units import as_path

_DEFAULT = "store"
_MANIFEST = "manifest.json"
PLACE = re.compile(r"[0-9a-f]{16}")
"""The name of an artifact's directory: the beginning of its key."""
WORK = re.compile(r"[a-z0-9][a-z0-9_-]*-[0-9a-f]{16}")
"""The name of a work directory: the stage, and the beginning of the key."""
_KEY = re.compile(r"[0-9a-f]{64}")
_OWN = frozenset(
    {".lock", ".work", ".tracking", ".cache", ".digests", ".rehearsed", "runs", "shelves.sqlite"}
)
"""What a store has before anything is made in it."""


def is_store(path: Path) -> bool:
    """Whether a directory holds an artifact, a run record, or the work of a run that has not finished anything yet."""
    try:
        if not path.is_dir():
            return False
        return (
            any(_is_artifact(one) for one in path.glob(f"[!.]*/[0-9a-f]*/{_MANIFEST}"))
            or any(_is_record(one) for one in path.glob("runs/[!.]*.json"))
            or any(WORK.fullmatch(one.stem) and one.is_file() for one in path.glob(".work/*.lock"))
            or _is_fresh(path)
        )
    except (OSError, ValueError):  # not to be read, or no name of a file
        return False


def _is_artifact(manifest: Path) -> bool:
    """Whether a manifest is one of ours, in the place that it names."""
    raw = _mapping(manifest)
    stage, key = manifest.parts[-3], manifest.parts[-2]
    named = str(raw.get("key"))
    return bool(
        PLACE.fullmatch(key)
        and _KEY.fullmatch(named)
        and named.startswith(key)
        and raw.get("stage") == stage
        and isinstance(raw.get("parts"), dict)
    )


def _is_record(path: Path) -> bool:
    raw = _mapping(path)
    return raw.get("run") == path.stem and isinstance(raw.get("artifacts"), list)


def _is_fresh(path: Path) -> bool:
    """Whether it is what a run makes first: a lock that is an empty file, and nothing that is not the store's."""
    lock = path / ".lock"
    return lock.is_file() and lock.stat().st_size == 0 and {one.name for one in path.iterdir()} <= _OWN


def _mapping(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return raw if isinstance(raw, dict) else {}


def stores_of_home(root: Path) -> list[Path]:
    """The stores of a project directory: `store`, those in `stores/`, and those that its configurations name."""
    named = (path for file in configurations_of(root) if (path := _named_by(file)) is not None)
    places = [root / _DEFAULT, *sorted(root.glob("stores/*")), *named]
    return list(dict.fromkeys(path.resolve() for path in places if is_store(path)))


def configurations_of(root: Path) -> list[Path]:
    """The YAML files of a project directory and of its `configs/`."""
    return sorted((*root.glob("configs/*.y*ml"), *root.glob("*.y*ml")))


def configurations_by_store(root: Path) -> dict[Path, list[Path]]:
    """The stores that a project's configurations name, also those not made yet, with the files that name each."""
    found: dict[Path, list[Path]] = {}
    for file in configurations_of(root):
        if (store := _named_by(file)) is not None:
            found.setdefault(store.resolve(), []).append(file)
    return found


def store_of_config(path: Path) -> Path:
    """The store that a configuration names, absolute. Raises ConfigError if the file is not a configuration."""
    raw = _read(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is not a configuration: it holds no mapping of keys to values")
    return _named(raw.get("store", _DEFAULT), path)


def _named_by(path: Path) -> Path | None:
    """The store that a file names; None if the file is not a configuration or names no store."""
    try:
        raw = _read(path)
        return _named(raw["store"], path) if isinstance(raw, dict) and raw.get("store") else None
    except ConfigError:
        return None


def _named(store: Any, path: Path) -> Path:
    try:
        if not isinstance(store, str):
            raise ValueError("is no text; name a directory")
        return home() / str(as_path(store))
    except ValueError as error:
        raise ConfigError(f"{path}: store: {error}") from error


def _read(path: Path) -> Any:
    from storage.yaml_text import read_yaml

    return read_yaml(path)


def run_names(store: Path) -> Iterator[str]:
    """Names of the runs that have a record in a store."""
    return (path.stem for path in sorted(store.glob("runs/[!.]*.json")))
