"""The page of a run whose process is gone: nobody else can say what is kept of it and how it goes on."""

from __future__ import annotations

import contextlib
from typing import Any

from flows.runs.ending import Ending, lost_ending, ways_of_lost
from flows.services.rest import Api
from flows.ui.front import ENDING, FIRST_SECONDS, created_first
from storage.errors import OnwardError
from storage.paths import home
from storage.runs import RunRecord, read_records
from storage.store import Store


def publish(api: Api, run: dict[str, Any]) -> None:
    """Publish the page of a lost flow run as the first of its artifacts, in place of that of an earlier attempt."""
    ending, identifier = _ending(run), str(run["id"])
    wanted = {
        "key": ENDING,
        "type": "markdown",
        "data": ending.page,
        "description": ending.title,
        "flow_run_id": identifier,
    }
    chosen = {"artifacts": {"flow_run_id": {"any_": [identifier]}}}
    there = list(api.every("/artifacts/filter", chosen))
    for old in (one["id"] for one in there if one["key"] == ENDING):
        api.delete(f"/artifacts/{old}")
    created_first(
        lambda: str(api.post("/artifacts/", wanted)["id"]),
        lambda one: api.delete(f"/artifacts/{one}"),
        [one["id"] for one in there if one["key"] != ENDING],
        FIRST_SECONDS,
    )


def _ending(run: dict[str, Any]) -> Ending:
    store, record = None, None
    place = ((run.get("parameters") or {}).get("config") or {}).get("store")
    if isinstance(place, str):
        store = Store(home() / place)
        record = _record(store, run["id"])
    return lost_ending(store, record, ways_of_lost(deployed=run.get("deployment_id") is not None))


def _record(store: Store, run: str) -> RunRecord | None:
    with contextlib.suppress(OnwardError, OSError):
        return next((one for one in read_records(store) if run in one.attempts), None)
    return None
