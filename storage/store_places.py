"""Which directories are stores, and which stores a project has. Light to import, because the command line uses it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.errors import ConfigError
from storage.manifest import NAME
from storage.paths import home

_DEFAULT = "store"


def is_store(path: Path) -> bool:
    """Whether a directory holds an artifact, a run record, or the work of a run that has not finished anything yet."""
    patterns = (f"[!.]*/[!.]*/{NAME}", "runs/[!.]*.json", ".work/*.lock")
    return path.is_dir() and any(next(path.glob(pattern), None) is not None for pattern in patterns)


def stores_of_home(root: Path) -> list[Path]:
    """The stores of a project directory: `store`, those in `stores/`, and those that its configurations name."""
    named = (path for file in configurations_of(root) if (path := _named_by(file)) is not None)
    places = [root / _DEFAULT, *sorted(root.glob("stores/*")), *named]
    return list(dict.fromkeys(path.resolve() for path in places if is_store(path)))


def configurations_of(root: Path) -> list[Path]:
    """The YAML files of a project directory and of its `configs/`."""
    return sorted((*root.glob("configs/*.y*ml"), *root.glob("*.y*ml")))


def store_of_config(path: Path) -> Path:
    """The store that a configuration names, absolute. Raises ConfigError if the file is not a configuration."""
    raw = _read(path)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} is not a configuration: it holds no mapping of keys to values")
    return home() / str(raw.get("store", _DEFAULT))


def _named_by(path: Path) -> Path | None:
    """The store that a file names; None if the file is not a configuration or names no store."""
    try:
        raw = _read(path)
    except ConfigError:
        return None
    return home() / str(raw["store"]) if isinstance(raw, dict) and raw.get("store") else None


def _read(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error


def run_names(store: Path) -> Iterator[str]:
    """Names of the runs that have a record in a store."""
    return (path.stem for path in sorted(store.glob("runs/[!.]*.json")))
