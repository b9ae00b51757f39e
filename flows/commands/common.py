"""Shared by the commands: how a user names a configuration, and which store a command uses. Light to import."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import completion
from flows.machine.environment import command_line
from storage.errors import ConfigError, OnwardError
from storage.paths import home
from storage.store_places import configurations_by_store, is_store, store_of_config, stores_of_home

STOPPED = "stopped"
Config = Annotated[
    Path,
    typer.Argument(help="YAML file of the run", show_default=False, autocompletion=completion.configurations),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="override a key of the file, such as training.token_budgets='[40M]'; may be repeated",
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="directory of the store; else that of --config, else the only store of this directory",
        autocompletion=completion.stores,
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file of a run, whose store is taken",
        autocompletion=completion.configurations,
    ),
]


class Answers:
    """Standard output. What cannot be written is an OnwardError; a reader that has left stays a BrokenPipeError."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write. Raises OnwardError."""
        return int(self._said(self._stream.write, text))

    def flush(self) -> None:
        """Flush. Raises OnwardError."""
        self._said(self._stream.flush)

    def _said(self, act: Any, *arguments: Any) -> Any:
        try:
            return act(*arguments)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OnwardError(f"standard output cannot be written: {error.strerror}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Forgiving:
    """Standard error, but what cannot be written is dropped: no command fails because nobody reads its messages."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_streams() -> None:
    """Open those of the three standard streams that are closed. Otherwise the next file gets their number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def write_utf8() -> None:
    """Write answers and messages as UTF-8, also where PYTHONIOENCODING asks for what cannot hold them."""
    os.environ.pop("PYTHONIOENCODING", None)  # for children
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def load(path: Path, overrides: list[str], *, elsewhere: bool = False) -> Any:
    """Load and check the configuration (`elsewhere`: for another machine's device). Raises ConfigError."""
    from flows.config import load_config
    from flows.runs.checks import check

    config = load_config(path, overrides)
    check(config, elsewhere=elsewhere)
    return config


def model_of(model: str, store: Path | None, config: Path | None, mlflow: str | None) -> tuple[Any, Any, Any]:
    """(store, artifact, registration) of a model as a user names it. The store is only chosen where its name needs one."""
    from flows.lineage.names import resolve

    return resolve(model, store if store is not None else partial(chosen_store, None, config), mlflow)


def catalog_of(store: Path) -> Any:
    """The catalogue of a store."""
    from storage.catalog import Catalog
    from storage.store import Store

    return Catalog(Store(store))


def chosen_store(store: Path | None, config: Path | None = None) -> Path:
    """The store that a command uses: the given one, the one of a configuration, or the only one of this home.

    If the user did not name it, it is reported on standard error. Raises OnwardError if there is no store, and ConfigError
    if there are several.
    """
    if store is not None:
        if not is_store(store):
            raise OnwardError(_missing(store))
        return store
    if config is not None:
        found = store_of_config(config)
        if not is_store(found):
            raise OnwardError(f"{config} names the store {found}, but there is no store yet; run it first")
        return _told(found, f"of {config}")
    known = stores_of_home(home())
    if not known:
        raise OnwardError(_none_here())
    named = configurations_by_store(home())
    if len(known) > 1:
        raise ConfigError(f"{home()} has {len(known)} stores; name one:{_to_type(known, named)}")
    return _told(known[0], f"of {_files(named[known[0]])}" if known[0] in named else "the only one here")


def only_store() -> Path | None:
    """The only store of this home; None if there is no store or several."""
    known = stores_of_home(home())
    return known[0] if len(known) == 1 else None


def nearest(option: str, given: str, allowed: Sequence[str]) -> ConfigError:
    """The error for an unknown value. The message names the nearest known value first, then all of them."""
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return ConfigError(f"{option} {given}: unknown stage; {hint}Known are {', '.join(allowed)}")


def _none_here() -> str:
    """That there is no store here, and what is to be typed: a run, or the command with a store that lies above."""
    planned = configurations_by_store(home())
    if planned:
        runs = "".join(
            f"\n  onward run {completion.from_here(files[0])}    (its store: {completion.from_here(store)})"
            for store, files in planned.items()
        )
        return f"there is no store in {home()} yet; a run makes the one that its configuration names:{runs}"
    above = next((found for place in list(home().parents)[:3] if (found := stores_of_home(place))), [])
    if above:
        return f"there is no store in {home()}, but above it:{_to_type(above, {})}"
    return (
        f"there is no store in {home()}: neither in store/ or stores/ nor in what a configuration there names; "
        "name it with --store, or its configuration with --config"
    )


def _to_type(found: Sequence[Path], named: Mapping[Path, list[Path]]) -> str:
    """The same command with each of the stores, a line each, and the configurations that name it."""
    command = command_line()
    start = f"{command} " if command.startswith("onward ") else ""
    return "".join(
        f"\n  {start}--store {shlex.quote(str(completion.from_here(path)))}"
        + (f"    (of {_files(named[path])})" if path in named else "")
        for path in found
    )


def _files(paths: Sequence[Path]) -> str:
    """Configurations by name; of many, the first two."""
    names = [str(completion.from_here(path)) for path in paths]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _told(path: Path, why: str) -> Path:
    sys.stderr.write(f"store: {completion.from_here(path)} ({why})\n")
    return path


def _missing(store: Path) -> str:
    what = "it holds neither artifacts nor runs" if store.is_dir() else "there is no such directory"
    others = [completion.from_here(path) for path in stores_of_home(home())]
    known = f"; stores of {home()}: {', '.join(others)}" if others else ""
    return f"there is no store at {store}: {what}{known}"


@contextlib.contextmanager
def clean_stdout() -> Iterator[Any]:
    """Reserve standard output for our one line. Output of any library or child process goes to standard error instead."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w", encoding="utf-8") as out:
        try:
            yield out
        finally:
            sys.stdout.flush()
            out.flush()
            os.dup2(kept, 1)
