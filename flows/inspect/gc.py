"""`onward gc`: frees what no recorded run needs, except what MLflow knows or has not received yet.

A version of a registered model keeps its model, everything that the model was made from, and the measurements of all
of these, because `onward lineage` and `onward export` read them. An unpublished account keeps the artifacts that it
names. MLflow is asked while no run can use the store. If a known MLflow cannot be asked, nothing is freed.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flows.tracking.account import unpublished
from flows.tracking.addresses import addresses_of, database_of
from flows.tracking.database import damage_of, damage_told
from storage.artifact import Artifact
from storage.errors import OnwardError
from storage.manifest import NAME as MANIFEST
from storage.runs import Collected, collect_garbage, reachable, references
from storage.secrets import without_secrets
from storage.store import Store
from tasks import stages

_MEASURES = ("evaluate", "perplexity")
_LISTED = 20
_PAGE = 1000


@dataclass(frozen=True)
class Version:
    """A version of a registered model that Onward registered. `stage` and `key` name its artifact."""

    name: str
    stage: str
    key: str


def collect(
    store: Store,
    keep: Sequence[str] = (),
    *,
    forget: Sequence[str] = (),
    mlflow: Sequence[str] = (),
    without_mlflow: bool = False,
    work: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None],
) -> Collected:
    """Free what neither a run record, nor `keep`, nor MLflow needs. `say` is told what is kept because of MLflow.

    `mlflow`: more addresses to ask, besides those that the store's runs published to. `without_mlflow`: continue if an
    address cannot be asked. Raises OnwardError, and frees nothing, if an address cannot be asked, or if a model would be
    freed and no address is known.
    """
    addresses = addresses_of(store, mlflow)

    def spare(unneeded: Sequence[Artifact]) -> set[str]:
        _refuse_bare(store)
        waiting = _waiting(store, unneeded, say)
        if not any(_of_models(artifact) for artifact in unneeded):
            return waiting
        if not addresses and not without_mlflow and any(artifact.has("export") for artifact in unneeded):
            raise OnwardError(
                f"models in {store.root} would be freed, and it is not known in which MLflow they may be registered: "
                "nothing was collected. Name it with --mlflow, or give --without-mlflow"
            )
        versions = [
            one for address in addresses for one in _asked(address, without_mlflow=without_mlflow, say=say)
        ]
        return waiting | _kept(store, versions, unneeded, say)

    return collect_garbage(store, keep, forget=forget, spare=spare, work=work, dry_run=dry_run)


def _refuse_bare(store: Store) -> None:
    """Raise OnwardError if an artifact has lost its manifest: what it was made of may be needed to make it again."""
    for path in store.unreadable(stages.NAMES):
        if not (path / MANIFEST).exists() and any(path.iterdir()):
            raise OnwardError(
                f"{path / MANIFEST} is gone, so it is not known what that artifact was made of: nothing was "
                f"collected. Start the run that made it again, which makes it anew; or set it aside: "
                f"onward verify --store {shlex.quote(str(store.root))} --repair"
            )


def registered(address: str) -> list[Version]:
    """Every version of every registered model that names an artifact of Onward. Raises the errors of MLflow's client."""
    file = database_of(address)
    if file is not None and not file.is_file():  # the client would create one
        raise FileNotFoundError(f"there is no database at {file}")
    if file is not None and (damaged := damage_of(file)):  # it might answer, without all that it knew
        raise sqlite3.DatabaseError(damaged)
    from flows.tracking.client import connect

    client = connect(address, registry=address)
    found: list[Version] = []
    token = None
    while True:
        page = client.search_model_versions("", max_results=_PAGE, page_token=token)
        found += [
            Version(f"{one.name}/{one.version}", one.tags.get("stage", ""), one.tags["stage_key"])
            for one in page
            if "stage_key" in one.tags
        ]
        if not (token := page.token):
            return found


def _asked(address: str, *, without_mlflow: bool, say: Callable[[str], None]) -> list[Version]:
    try:
        return registered(address)
    except Exception as error:  # any error leaves it unknown which models are registered there
        why = f"{type(error).__name__}: {without_secrets(str(error).partition(chr(10))[0])[:200]}"
        shown = without_secrets(address)
        damaged = damage_told(address, str(error))
        if damaged and not without_mlflow:
            raise OnwardError(
                f"nothing was collected, since MLflow at {shown} cannot be asked which models are registered "
                f"(--without-mlflow goes on, and frees those that it alone knew): {damaged}"
            ) from error
        if damaged:
            why = "its database is damaged"
        if not without_mlflow:
            raise OnwardError(
                f"MLflow at {shown} cannot be asked which models are registered ({why}): nothing was collected, since "
                "the only copy of one may be in this store. Start it; or give --without-mlflow to go without those that "
                "cannot be asked, and --mlflow to name where it is now"
            ) from error
        say(f"not asked: MLflow at {shown} ({why}); models that are registered there alone are not kept")
        return []


def _waiting(store: Store, unneeded: Sequence[Artifact], say: Callable[[str], None]) -> set[str]:
    """Keys that accounts have not published yet."""
    try:
        accounts = unpublished(store.root)
    except OSError as error:
        raise OnwardError(
            f"what is not published yet cannot be read ({error}): nothing was collected"
        ) from error
    unreached = {artifact.key for artifact in unneeded}
    for uri, keys in accounts.items():
        if count := len(keys & unreached):
            say(
                f"kept: {count} artifacts that MLflow at {uri} does not know of yet; the next run reports them"
            )
    return set().union(*accounts.values())


def _kept(
    store: Store, versions: Iterable[Version], unneeded: Sequence[Artifact], say: Callable[[str], None]
) -> set[str]:
    """Keys of registered models, and of the measurements of these models and of the models that they were made from."""
    unreached = {artifact.key: artifact for artifact in unneeded}
    models = {version.key: version for version in versions}
    only = [version for key, version in models.items() if key in unreached]
    for version in only[:_LISTED]:
        say(
            f"kept: {version.name} in MLflow is {version.stage}/{version.key[:16]}, which no run needs any more"
        )
    if len(only) > _LISTED:
        say(f"kept: {len(only) - _LISTED} more that are registered in MLflow")
    behind = reachable(store, models)
    measures = {
        one.key
        for one in unneeded
        if one.stage in _MEASURES
        and any(edge["part"] == "export" and edge["key"] in behind for edge in references(one))
    }
    return {*models, *measures}


def _of_models(artifact: Artifact) -> bool:
    return artifact.stage in _MEASURES or artifact.has("export")
