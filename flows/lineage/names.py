"""The names that users give to a model: a registered model's alias or version, a stage key or its beginning, or a path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from flows.lineage.graph import Registered, find_artifact
from storage.artifact import Artifact
from storage.errors import OnwardError
from storage.paths import mlflow_database
from storage.secrets import without_secrets
from storage.store import Store
from storage.store_places import PLACE, is_store
from tasks import stages

_VERSION = re.compile(r"([^/:@]+)/([0-9]+)")
_ALIAS = re.compile(r"([^/:@]+)@([\w-]+)")


def resolve(
    given: str, store: Path | Callable[[], Path], mlflow: str | None = None
) -> tuple[Store, Artifact, Registered | None]:
    """The artifact that `given` names, its store, and the version of a registered model if one named it.

    `given`: `name@alias`, `name/version`, a path in a store, a stage key, `stage/key`, or a beginning of one. `store`: the
    store for keys, or a function that finds it when needed. A version records its own store, which is searched too.
    `mlflow`: address of the registry (None: MLFLOW_TRACKING_URI, else this home's database). Raises OnwardError if the
    artifact cannot be found.
    """
    if (found := _at(given)) is not None:
        return *found, None
    if match := _ALIAS.fullmatch(given):
        return _registered(given, match[1], match[2], None, store, mlflow)
    match = _VERSION.fullmatch(given)
    if match and match[1] not in stages.NAMES:
        return _registered(given, match[1], None, match[2], store, mlflow)
    store = store if isinstance(store, Path) else store()
    if not is_store(store):
        raise OnwardError(f"there is no store at {store}; name it with --store")
    opened = Store(store)
    return opened, find_artifact(opened, given), None


def _at(given: str) -> tuple[Store, Artifact] | None:
    """The artifact in the directory of this name, or the artifact that contains it."""
    path = Path(given)
    try:
        if not path.is_dir():
            return None
    except (OSError, ValueError):  # too long for a file name, or not a valid one
        return None
    for directory in (path.resolve(), *path.resolve().parents):
        if PLACE.fullmatch(directory.name) and is_store(store := directory.parents[1]):
            opened = Store(store)
            return opened, opened.read(directory)
    return None


def _registered(
    given: str,
    name: str,
    alias: str | None,
    number: str | None,
    store: Path | Callable[[], Path],
    mlflow: str | None,
) -> tuple[Store, Artifact, Registered]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    from flows.tracking.client import connect
    from flows.tracking.database import damage_told

    uri = mlflow or os.environ.get("MLFLOW_TRACKING_URI") or mlflow_database()
    shown = without_secrets(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise OnwardError(f"{given}: there is no MLflow database at {shown}; name one with --mlflow")
    try:
        client = connect(uri)
        if alias is not None:
            version = client.get_model_version_by_alias(name, alias)
        else:
            version = client.get_model_version(name, str(number))
    except (MlflowException, SQLAlchemyError) as error:
        if damaged := damage_told(uri, str(error)):
            raise OnwardError(f"{given} cannot be looked up in MLflow at {shown}: {damaged}") from error
        raise OnwardError(
            f"{given} is not in MLflow at {shown}: {without_secrets(str(error).partition(chr(10))[0])[:200]}"
        ) from error
    tags = version.tags
    if "stage_key" not in tags:
        raise OnwardError(
            f"{given} is in MLflow at {shown}, but was not registered by Onward (it has no stage_key)"
        )
    known = Registered(
        name, str(version.version), given, shown, int(version.creation_timestamp), version.run_id
    )
    places = [store] if isinstance(store, Path) else []
    places += [Path(tags["store"])] if "store" in tags else []
    for place in places:
        opened = Store(place)
        artifact = opened.lookup(tags["stage"], tags["stage_key"]) if is_store(place) else None
        if artifact is not None:
            return opened, artifact, known
    looked = " nor in ".join(map(str, places)) or "a store that it names"
    raise OnwardError(
        f"{given} is {tags['stage']}/{tags['stage_key'][:16]}, which is not in {looked}; name its store with --store"
    )
