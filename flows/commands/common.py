"""What commands share: how a configuration and a store are named and opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from storage.errors import OnwardError

STOPPED = "stopped; what was finished is kept, the same command goes on from there"
Config = Annotated[Path, typer.Argument(help="YAML file of the run", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="override a key: training.token_budgets='[40M]'")
]


def load(path: Path, overrides: list[str]) -> Any:
    """The configuration, checked. Raises ConfigError."""
    from flows.config import load_config
    from flows.runs.checks import check

    config = load_config(path, overrides)
    check(config)
    return config


def catalog_of(store: Path) -> Any:
    """The catalogue of the store in a directory. Raises OnwardError where there is none."""
    from storage.catalog import Catalog
    from storage.store import Store

    return Catalog(Store(existing(store)))


def existing(store: Path) -> Path:
    """The directory, where it is one. Raises OnwardError."""
    if not store.is_dir():
        raise OnwardError(f"there is no store at {store}; name it with --store")
    return store
