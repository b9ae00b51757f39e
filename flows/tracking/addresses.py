"""The MLflow addresses that the runs of a store published to. `onward gc` must not collect what is registered there.

`<store>/.tracking/mlflow-<digest of the address>.json` is written, without secrets, before anything is published to an
address. It travels with the store, and stays when the run is forgotten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from flows.tracking.account import DIRECTORY, heads
from storage.atomic import write_bytes
from storage.errors import OnwardError
from storage.paths import mlflow_database
from storage.runs import read_records
from storage.secrets import without_secrets
from storage.store import Store

SQLITE = "sqlite:///"


def registry_of(uri: str) -> str:
    """The registry for runs that publish to `uri`: the same server, unless MLFLOW_REGISTRY_URI names another one."""
    return _absolute(os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def note_address(store: Path, uri: str) -> None:
    """Record a registry's address. Raises OSError if it cannot be written."""
    shown = without_secrets(uri)
    path = store / DIRECTORY / f"mlflow-{_name(shown)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, (json.dumps({"mlflow": shown}) + "\n").encode())


def addresses_of(store: Store, given: Iterable[str] = ()) -> list[str]:
    """Every registry that may know models of this store, each once, in its given or configured form with secrets.

    It collects the addresses in `given`, in the store's notes, accounts and run records, and the one that a run would use
    now (but not this home's database if it does not exist). Raises OnwardError if a note cannot be read.
    """
    found = {without_secrets(uri): uri for uri in (*_noted(store), *_of_runs(store))}
    known = dict.fromkeys(found)
    for uri in (*_configured(), *(_absolute(one) for one in given)):
        found[without_secrets(uri)] = uri
    return [found[shown] for shown in {**known, **found}]


def database_of(uri: str) -> Path | None:
    """The file of a SQLite database; None for other addresses."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def _configured() -> Iterator[str]:
    set_ = [os.environ.get(name) for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI")]
    yield from (_absolute(uri) for uri in set_ if uri)
    local = mlflow_database()
    if (file := database_of(local)) is not None and file.exists():
        yield local


def _name(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def _noted(store: Store) -> Iterator[str]:
    for path in sorted((store.root / DIRECTORY).glob("mlflow-*.json")):
        try:
            uri = str(json.loads(path.read_bytes())["mlflow"])
            if path.stem != f"mlflow-{_name(uri)}":
                raise ValueError("it is not what was written")
            yield uri
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OnwardError(
                f"{path}, which names an MLflow, cannot be read: {error}. Remove it, and name that MLflow with --mlflow"
            ) from error


def _of_runs(store: Store) -> Iterator[str]:
    for head in heads(store.root):
        if uri := head.get("uri"):
            yield str(uri)
    for record in read_records(store):
        tracking = record.config.get("tracking")
        if isinstance(tracking, Mapping) and (uri := tracking.get("mlflow_uri")):
            yield _absolute(str(uri))


def _absolute(uri: str) -> str:
    """An address with the absolute path of a database file, so that it means the same everywhere."""
    file = database_of(uri)
    return uri if file is None else f"{SQLITE}{file.resolve()}"
