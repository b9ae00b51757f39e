"""The names that users give to a model: a registered model's alias or version, a budget of a run or what was made of it, a
stage key or its beginning, or a path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.config import parse_config
from flows.dag.merges import CHAT
from flows.dag.rounds import Round, rounds_of
from flows.lineage.graph import Registered, find_artifact
from storage.artifact import Artifact
from storage.counts import count_text, parse_count
from storage.errors import OnwardError
from storage.paths import mlflow_database
from storage.runs import read_records
from storage.secrets import without_secrets
from storage.store import Store
from storage.store_places import PLACE, is_store
from tasks import stages
from tasks.models.merge import NAMES as MERGED
from tasks.models.merge import MergeConfig

_VERSION = re.compile(r"([^/:@]+)/([0-9]+)")
_OF_A_RUN = re.compile(
    rf"(?:(?P<run>[\w.-]+):)?(?P<name>base|{CHAT}|[0-9]+(?:\.[0-9]+)?[KMGBkmgb]?"
    rf"(?:-trunk|-(?:{'|'.join(MERGED.values())})-[0-9]+(?:\.[0-9]+)?)?)"
)
_HEX = re.compile(r"[0-9a-f]{2,64}")
_ENDS = ("trunk", "decay", "rewarm")
"""The segments that may end with a budget's model: the trunk, if nothing decays."""
_MODELS = ("base", "train", "decay", "merge")
_ALIAS = re.compile(r"([^/:@]+)@([\w-]+)")


def resolve(
    given: str, store: Path | Callable[[], Path], mlflow: str | None = None
) -> tuple[Store, Artifact, Registered | None]:
    """The artifact that `given` names, its store, and the version of a registered model if one named it.

    `given`: `name@alias`, `name/version` (also with `models:/` before it, as in MLflow), a path in a store, `base` or a
    budget of a run (`1B`, `RUN:1B`), its trunk (`1B-trunk`) or a merged model (`1B-alpha-0.5`), a stage key,
    `stage/key`, or a beginning of one. `store`: the store for budgets and keys, or a function that finds it when needed.
    A version records its own store, which is searched too.
    `mlflow`: address of the registry (None: MLFLOW_TRACKING_URI, else this home's database). Raises OnwardError if the
    artifact cannot be found.
    """
    if (found := _at(given)) is not None:
        return *found, None
    given = given.removeprefix("models:/")
    if match := _ALIAS.fullmatch(given):
        return _registered(given, match[1], match[2], None, store, mlflow)
    match = _VERSION.fullmatch(given)
    if match and match[1] not in stages.NAMES:
        return _registered(given, match[1], None, match[2], store, mlflow)
    store = store if isinstance(store, Path) else store()
    if not is_store(store):
        raise OnwardError(f"there is no store at {store}; name it with --store")
    opened = Store(store)
    if (match := _OF_A_RUN.fullmatch(given)) and (match["run"] or not _is_key(opened, given)):
        return opened, _of_a_run(opened, match["run"], match["name"]), None
    return opened, find_artifact(opened, given), None


def _is_key(store: Store, given: str) -> bool:
    """Whether a text that may be a budget (`40b`) is the beginning of a key, and of no model's name."""
    keys = next(store.root.glob(f"*/{given}*"), None) if _HEX.fullmatch(given) else None
    return keys is not None and not any(_wanted(given) in models for models in models_of(store).values())


def _wanted(name: str) -> str:
    budget, dash, way = name.partition("-")
    return name if name in ("base", CHAT) else f"{count_text(parse_count(budget))}{dash}{way}"


def models_of(store: Store) -> dict[str, dict[str, str]]:
    """The models of each run that the store remembers: for each run, by name, `stage/key`.

    Names are `base`, the budgets, `1B-trunk` for the trunk that a budget's branch left, and those of merged models. Runs
    whose configuration this release cannot read are left out.
    """
    found: dict[str, dict[str, str]] = {}
    for record in read_records(store):
        try:
            run = parse_config(record.config)
            rounds = rounds_of(run)
        except OnwardError:
            continue
        known = (store.lookup(stage, key) for stage, key in record.artifacts if stage in _MODELS)
        models = [artifact for artifact in known if artifact is not None]
        chats = {_chat_of(artifact) for artifact in models}
        for one in models:
            name = CHAT if one.key in chats else _name(one, rounds)
            if name is not None:
                found.setdefault(record.run, {})[name] = f"{one.stage}/{one.key}"
    return found


def _chat_of(artifact: Artifact) -> str | None:
    """The key of the chat model that a merged model was made of."""
    of_chat = artifact.stage == "merge" and artifact.manifest.config["kind"] == "instruct"
    return str(artifact.manifest.inputs["models"][1]["part"]["key"]) if of_chat else None


def _name(artifact: Artifact, rounds: Sequence[Round]) -> str | None:
    """What a run calls one of its models; None for what is no model of its own."""
    config = artifact.manifest.config
    kind = config.get("kind")
    if artifact.stage == "base" or kind == "pretrain":
        return "base" if artifact.has("export") else None
    if artifact.stage == "merge":
        return f"{rounds[-1].name}-{MergeConfig(**config).name}"
    last = int(config["last_step"])
    if not artifact.has("export"):
        return next((f"{one.name}-trunk" for one in rounds if one.branch_step == last), None)
    return next((one.name for one in rounds if one.last_step == last), None) if kind in _ENDS else None


def _of_a_run(store: Store, asked: str | None, name: str) -> Artifact:
    """The model of this name, of the run that is named or of all runs if they have the same."""
    runs = {
        run: models
        for run, models in models_of(store).items()
        if asked in (None, run, run.rpartition("-")[0])
    }
    wanted = _wanted(name)
    found = {models[wanted]: run for run, models in runs.items() if wanted in models}
    if len(found) == 1:
        return find_artifact(store, next(iter(found)))
    if found:
        which = ", ".join(f"{run}:{wanted}" for run in sorted(found.values()))
        raise OnwardError(f"several runs in {store.root} have another model {wanted}; name one: {which}")
    there = sorted({f"{run}:{one}" for run, models in runs.items() for one in models if "-trunk" not in one})
    of_run = "" if asked is None else f" of a run {asked}"
    raise OnwardError(
        f"there is no model {wanted}{of_run} in {store.root}"
        + (f"; there are {', '.join(there[:12])}" if there else "")
    )


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
