"""`onward status`: what runs, in plain text or JSON. Asks the services and Prefect's API, and changes nothing.

If nothing runs, the records of a store show its runs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.machine.processes import at_work
from flows.machine.servers import SERVERS, USER, credentials, password_file
from flows.services.record import HomeRecord, read_record, workers_online
from flows.services.rest import Api, ApiError
from flows.tracking.view import TAG, address

_LAST = 5


def collect(store: Path | None) -> dict[str, Any]:
    """Everything that is shown: `up`, `services`, `pools`, `runs` (under way, waiting, next, last), `records`.

    While services run, `credentials` has `user:password` of each server, if this user may read the home's password.
    """
    record = read_record()
    up = record is not None and bool(record.supervised or record.running)
    found: dict[str, Any] = {"up": up, "services": _services(record) if record and up else []}
    url = f"{record.prefect}/api" if record and up else os.environ.get("PREFECT_API_URL")
    if record and up:
        found |= {"prefect": record.prefect, "mlflow": record.mlflow, "supervised": record.supervised}
        found["views"] = views(record.mlflow)
        if (known := credentials()) is not None:
            found["credentials"] = dict.fromkeys(SERVERS, known)
    if url:
        try:
            api = Api(url)
            found["pools"] = _pools(api)
            found["runs"] = _runs(api)
        except ApiError as error:
            found["error"] = str(error)
    if store is not None:
        found["records"] = _records(store)
    return found


def views(mlflow: str) -> dict[str, str]:
    """The page of each experiment's runs in MLflow, those that changed last first; nothing if MLflow does not answer."""
    asked = {"max_results": 100, "order_by": ["last_update_time DESC"]}
    try:
        there = Api(f"{mlflow}/api/2.0/mlflow", seconds=3.0).post("/experiments/search", asked)
    except ApiError:
        return {}
    named = [one for one in there.get("experiments", ()) if any(t["key"] == TAG for t in one.get("tags", ()))]
    return {one["name"]: address(one["experiment_id"], mlflow) for one in named[:_LAST]}


def _services(record: HomeRecord) -> list[dict[str, Any]]:
    rows = [
        {
            "name": name,
            "pid": service.pid if service.alive else None,
            "running_since": _iso(service.since) if service.alive else None,
            "seconds": round(max(0.0, time.time() - service.since)) if service.alive else None,
            "restarts": service.deaths,
        }
        for name, service in record.services.items()
    ]
    supervisor = {"name": "supervisor", "pid": record.pid if record.supervised else None, "restarts": 0}
    return [*rows, supervisor]


def _pools(api: Api) -> list[dict[str, Any]]:
    return [
        {
            "name": pool["name"],
            "paused": pool["is_paused"],
            "limit": pool["concurrency_limit"],
            "workers": [worker["name"] for worker in workers_online(api, pool["name"])],
        }
        for pool in api.every("/work_pools/filter", {})
    ]


def _runs(api: Api) -> dict[str, list[dict[str, Any]]]:
    def these(types: list[str], sort: str, limit: int, **more: Any) -> list[dict[str, Any]]:
        flow_runs = {"state": {"type": {"any_": types}}, **more}
        rows = api.post("/flow_runs/filter", {"flow_runs": flow_runs, "sort": sort, "limit": limit})
        return [_run(row) for row in rows]

    now = datetime.now(UTC).isoformat()
    running = these(["RUNNING", "PENDING", "CANCELLING", "PAUSED"], "START_TIME_DESC", 50)
    for run in running:
        run["stage"] = _stage(api, run["id"])
    due = {"next_scheduled_start_time": {"before_": now}}
    later = {"next_scheduled_start_time": {"after_": now}}
    found = {
        "running": running,
        "waiting": these(["SCHEDULED"], "NEXT_SCHEDULED_START_TIME_ASC", 20, **due),
        "next": these(["SCHEDULED"], "NEXT_SCHEDULED_START_TIME_ASC", 3, **later),
        "last": these(["COMPLETED", "FAILED", "CRASHED", "CANCELLED"], "END_TIME_DESC", _LAST),
    }
    every = [run for runs in found.values() for run in runs]
    names = _deployments(api, {run["deployment"] for run in every if run["deployment"]})
    for run in every:
        run["deployment"] = names.get(run["deployment"])
    return found


def _deployments(api: Api, wanted: set[str]) -> dict[str, str]:
    """`flow/deployment` by id, as `prefect deployment run` takes it. One that was deleted has none."""
    if not wanted:
        return {}
    chosen = {"id": {"any_": sorted(wanted)}}
    deployments = list(api.every("/deployments/filter", {"deployments": chosen}))
    flows = {"id": {"any_": sorted({one["flow_id"] for one in deployments})}}
    flow_names = {one["id"]: one["name"] for one in api.every("/flows/filter", {"flows": flows})}
    return {one["id"]: f"{flow_names.get(one['flow_id'], '?')}/{one['name']}" for one in deployments}


def _run(row: dict[str, Any]) -> dict[str, Any]:
    state = row["state"] or {}
    return {
        "id": row["id"],
        "name": row["name"],
        "state": state.get("name"),
        "message": state.get("message"),
        "deployment": row.get("deployment_id"),
        "pool": row["work_pool_name"],
        "start": row["start_time"],
        "end": row["end_time"],
        "expected": row["next_scheduled_start_time"],
        "seconds": round(row["estimated_run_time"] or 0),
    }


def _stage(api: Api, run: str) -> str | None:
    """The names of the running tasks."""
    body = {
        "flow_runs": {"id": {"any_": [run]}},
        "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}},
        "limit": 5,
    }
    return ", ".join(task["name"] for task in api.post("/task_runs/filter", body)) or None


def _records(place: Path) -> list[dict[str, Any]]:
    from storage.runs import read_records
    from storage.store import Store

    store = Store(place)
    return [
        {
            "run": record.run,
            "state": _true_state(record),
            "attempts": len(record.attempts),
            "artifacts": len(record.artifacts),
            "beside": _beside(store, record),
        }
        for record in read_records(store)
    ]


def _beside(store: Any, record: Any) -> list[dict[str, Any]]:
    """Seconds that were promised for each stage of the run, beside those that it took."""
    from flows.quote.promised import kept_beside, promised

    if promised(store.root, record.run) is None:
        return []
    found = [store.lookup(stage, key) for stage, key in record.artifacts]
    rows = kept_beside(store.root, record.run, [one for one in found if one is not None])
    return [vars(one) for one in rows]


def _true_state(record: Any) -> str:
    """The state of a record, corrected: a record still says `running` after its process was killed."""
    return "killed" if record.state == "running" and not at_work(record.processes) else record.state


def render(found: dict[str, Any], *, secret: bool) -> str:
    """The same as text, with the password only if it is not `secret` from whoever reads this."""
    lines: list[str] = []
    if found["up"]:
        lines += [f"Prefect  {found['prefect']}", f"MLflow   {found['mlflow']}"]
        lines += [f"         runs of {name}: {page}" for name, page in found.get("views", {}).items()]
        lines += [f"log in   {_login(found.get('credentials'), secret=secret)}", ""]
        lines += [_service_line(row) for row in found["services"]]
        if not found["supervised"]:
            lines.append("! the supervisor is gone: onward up takes the services over")
    else:
        lines.append("nothing runs here; onward up starts the servers, a worker and the deployments")
    for pool in found.get("pools", ()):
        state = "paused" if pool["paused"] else ", ".join(pool["workers"]) or "no worker online"
        limit = f"  ({pool['limit']} at a time)" if pool["limit"] is not None else ""
        lines.append(f"pool {pool['name']:<12} {state}{limit}")
    for title, runs in found.get("runs", {}).items():
        lines += _run_lines(title, runs)
    if "error" in found:
        lines.append(f"! {found['error']}")
    for row in found.get("records", ()):
        lines.append(
            f"{row['run']:<28} {row['state']:<10} {row['artifacts']} artifacts, {row['attempts']} attempts"
            + ("  (the same command goes on)" if row["state"] in ("killed", "stopped") else "")
        )
        lines += _beside_lines(row.get("beside") or ())
    if found.get("records") == []:
        lines.append("the store has no run yet")
    return "\n".join(lines) + "\n"


def _beside_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What was promised, beside what it took."""
    from flows.quote.table import hours_text

    lines = [f"  {'':<14} {'promised':>12} {'took':>12}"] if rows else []
    for row in rows:
        lines.append(f"  {row['stage']:<14} {hours_text(row['quoted']):>12} {hours_text(row['took']):>12}")
    return lines


def _login(known: dict[str, str] | None, *, secret: bool) -> str:
    if known is None:
        return f"the password is in {password_file()}, which only its owner can read"
    if secret:
        return f"as {USER}; the password is in {password_file()}"
    return f"{known['prefect']}   (user:password; Prefect's page asks for both in one field)"


def _service_line(row: dict[str, Any]) -> str:
    if row["pid"] is None:
        return f"{row['name']:<12} not running"
    since = f"since {row['running_since'][:19]}  " if row.get("running_since") else ""
    again = f"  started again {row['restarts']} times" if row["restarts"] else ""
    return f"{row['name']:<12} {since}process {row['pid']}{again}"


def _run_lines(title: str, runs: list[dict[str, Any]]) -> list[str]:
    lines = [f"\n{title}"] if runs else []
    for run in runs:
        facts = [f"  {run['state'] or '':<11} {run['name']}"]
        if run.get("deployment"):
            facts.append(run["deployment"])
        if title == "next" and run["expected"]:
            facts.append(f"at {_local(run['expected'])}")
        if title == "last" and run["end"]:
            facts.append(f"ended {_local(run['end'])}, {run['seconds']} s")
        if run.get("stage"):
            facts.append(f"at {run['stage']}")
        lines.append(" · ".join(facts))
        if run["message"] and title in ("waiting", "last") and run["state"] != "Completed":
            lines.append(f"              {run['message'].splitlines()[0][:160]}")
    return lines


def _local(moment: str) -> str:
    with contextlib.suppress(ValueError):
        return (
            datetime.fromisoformat(moment.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        )
    return moment


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
