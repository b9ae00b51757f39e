"""Shell completion of files, stores, stages, runs and models. Light to import, and silent if something cannot be read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from storage.paths import home
from storage.store_places import configurations_of, is_store, run_names, store_of_config, stores_of_home
from tasks import stages
from tasks.models import form

MODEL_STAGES = tuple(
    stage.name
    for stage in stages.TABLE
    if stage.group in ("models", "training") and stage.name != "tokenizer"
)
"""The stages that make a model."""
FORMATS = ("text", "mermaid", "openlineage")
_KEY_DIGITS = 12


def configurations(incomplete: str) -> list[str]:
    """YAML files of the home, and files and directories that match the typed text."""
    known = [from_here(path) for path in configurations_of(home())]
    typed = Path(incomplete)
    directory = typed if incomplete.endswith("/") else typed.parent
    found = (path for path in _listed(directory) if path.is_dir() or path.suffix in (".yaml", ".yml"))
    below = [f"{path}/" if path.is_dir() else str(path) for path in found if not path.name.startswith(".")]
    return _beginning(dict.fromkeys([*known, *below]), incomplete)


def stores(incomplete: str) -> list[str]:
    """The stores of the home."""
    return _beginning((from_here(path) for path in stores_of_home(home())), incomplete)


def last_stages(incomplete: str) -> list[str]:
    """The stages after which a run can end."""
    return _beginning(stages.ENDS, incomplete)


def forced_stages(incomplete: str) -> list[str]:
    """The stages that can be made again."""
    return _beginning(("all", *stages.NAMES), incomplete)


def any_stage(incomplete: str) -> list[str]:
    """Every stage."""
    return _beginning(stages.NAMES, incomplete)


def formats(incomplete: str) -> list[str]:
    """The output formats of lineage."""
    return _beginning(FORMATS, incomplete)


def model_formats(incomplete: str) -> list[str]:
    """The formats of an exported model."""
    return _beginning(form.FORMATS, incomplete)


def dtypes(incomplete: str) -> list[str]:
    """The types of an exported model's weights."""
    return _beginning(form.DTYPES, incomplete)


def runs(ctx: Any, incomplete: str) -> list[str]:
    """Runs that have a record in the chosen store."""
    return _beginning((name for store in _chosen(ctx) for name in run_names(store)), incomplete)


def models(ctx: Any, incomplete: str) -> list[str]:
    """Models of the chosen store, as stage/key."""
    keys = (
        f"{stage}/{path.name[:_KEY_DIGITS]}"
        for store in _chosen(ctx)
        for stage in MODEL_STAGES
        for path in sorted(store.glob(f"{stage}/[!.]*"))
    )
    return _beginning(keys, incomplete)


def _chosen(ctx: Any) -> list[Path]:
    given, config = ctx.params.get("store"), ctx.params.get("config")
    try:
        if given or config:
            named = Path(given) if given else store_of_config(Path(config))
            return [named] if is_store(named) else []
        return stores_of_home(home())
    except Exception:  # completion must not print errors into the shell
        return []


def _listed(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def from_here(path: Path) -> str:
    """A path relative to the working directory if it lies below it, else the path itself."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _beginning(values: Iterable[str], incomplete: str) -> list[str]:
    return [value for value in values if value.startswith(incomplete)]
