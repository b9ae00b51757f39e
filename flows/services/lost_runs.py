"""Corrects the states of lost runs.

A run whose process is gone is set to Crashed (or Cancelled), a process whose run has ended is ended, and a run that
waits for its pool says so. Prefect cannot know that a process died together with the worker that watched it.

`LostRuns.sweep` looks at the processes of this machine. A process counts as gone only if it is missing in two
consecutive sweeps, because it might just be ending. A sweep must never touch a run of another machine or a run whose
process is alive. After a run has ended, it may only end a process that surely belongs to it: by the run's id in its
environment, or by pid and start time in the run's record.

`python -m flows.services.lost_runs` sweeps forever, for a worker's machine without `onward up`.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from flows.machine.clock import younger
from flows.machine.processes import (
    ProcessId,
    command_of,
    environment_of,
    every_pid,
    parent_of,
    send,
    start_ticks,
    started_at,
)
from flows.services import lost_page
from flows.services.rest import Api, ApiError
from storage.errors import OnwardError
from storage.paths import home
from storage.provenance import host_name
from storage.runs import read_records
from storage.store import Store

_KEPT = (
    "Every finished stage is kept, training up to its newest checkpoint. To go on from there: Retry this run, or, if "
    "it was started in a terminal, the same command."
)
LOST = f"the process of this run is gone: it was killed, or the machine was restarted. {_KEPT}"
STOPPED = f"stopped with its worker (onward down, or the end of its container). {_KEPT}"
LOST_TASK = "the process that ran it is gone"
CANCELLED = "cancelled; its process has left"
_SWEEP_SECONDS = 10.0
_FIRST_SECONDS = 2.0  # what was left before is corrected at once
_SLACK_SECONDS = 60.0  # between the start in the kernel's and in Prefect's account
_HEARTBEAT_SECONDS = 60.0  # a worker may have taken a run this long after its last heartbeat
_SUBMITTING_SECONDS = 60.0  # a worker may take this long from Pending to a process
_ORPHAN_SECONDS = 15.0  # by then, a live worker has answered a cancellation
_ORPHAN_GRACE_SECONDS = 150.0
_OUTLIVED_SECONDS = 30.0  # by then, a run that ended by itself, or by its worker, has left
_RECENT = timedelta(days=1)
_ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class _AskedToEnd:
    """A run whose process was asked to end: when, in which attempt, and the state that it must get."""

    since: float
    attempt: int
    state: dict[str, Any]


class LostRuns:
    """Sweeps over one server's runs, for the processes of this machine and the pools that its workers serve."""

    def __init__(
        self, api: Api, pools: frozenset[str] = frozenset(), names: frozenset[str] = frozenset()
    ) -> None:
        self.api = api
        self.pools = pools
        self.names = names
        self.sweeps = 0
        self._heard: dict[str, float] = {}
        self._suspects: dict[str, str] = {}
        self._asked: dict[str, _AskedToEnd] = {}

    def sweep(self) -> list[str]:
        """Correct what is wrong. Returns a line for each change. Raises ApiError if the server does not answer."""
        said, suspects = [], dict[str, str]()
        self._heard = others_heard(self.api, self.pools, self.names)
        for run in self.api.every("/flow_runs/filter", _runs("RUNNING", "CANCELLING", "PENDING")):
            if not self._ours(run):
                continue
            if self._lives(run):
                said += self._cancel_orphan(run)
                continue
            suspects[run["id"]] = run["state_id"]
            if self._suspects.get(run["id"]) == run["state_id"]:
                said.append(self._set_right(run))
        said += self._outlived()
        said += self._reported()
        said += self._lost_tasks(suspects)
        said += self._waiting()
        self._suspects = suspects
        self.sweeps += 1
        return said

    def _ours(self, run: dict[str, Any]) -> bool:
        """Whether a run is on this machine.

        A worker reports only the pid, a flow also its machine. If a worker of another machine may have the run, a bare pid
        proves nothing.
        """
        process = _process(run)
        return here_alone(run, self._heard) if process is None else process.state() != "elsewhere"

    def _lives(self, run: dict[str, Any]) -> bool:
        state = run["state"]
        since = _moment(state["timestamp"])
        pid = _pid(run)
        if state["type"] == "PENDING" and younger(since, _SUBMITTING_SECONDS):
            return True  # a retry still names the process of the previous attempt
        if pid is not None and state["type"] != "PENDING" and _is_of(pid, run, since):
            return True
        return any(True for _ in self._processes(run["id"]))

    def _processes(self, run: str) -> Iterator[int]:
        """Processes that a worker started for the run, and their children. Trainers exit by themselves and are left out."""
        for pid in every_pid():
            if (
                environment_of(pid).get("PREFECT__FLOW_RUN_ID") == run
                and not _trainer(pid)
                and start_ticks(pid)
            ):
                yield pid

    def _set_right(self, run: dict[str, Any]) -> str:
        if run["state"]["type"] == "CANCELLING":
            state = _cancelled()
        else:
            state = _crashed(LOST)
        answer = self.api.set_state(
            "flow_runs", run["id"], state
        )  # not forced: it may have just ended in another way
        if answer == "ACCEPT":
            set_tasks(self.api, run["id"], LOST_TASK)
            if state["type"] == "CRASHED":
                lost_page.publish(self.api, run)
        return f"{run['name']}: {state['name']} ({answer}), its process {_pid(run) or ''} is gone"

    def _cancel_orphan(self, run: dict[str, Any]) -> list[str]:
        """Cancel a run whose worker died; nobody else would end its process."""
        state = run["state"]
        since = _moment(state["timestamp"])
        if state["type"] != "CANCELLING" or younger(since, _ORPHAN_SECONDS):
            return []
        pid = _pid(run)
        own = pid is not None and _is_of(pid, run, since)
        there = [pid or 0] if own else list(self._processes(run["id"]))  # its children may outlive it
        if not there or any(_has_worker(one) for one in there):
            return []
        return self._ask(run, there, there, _cancelled(), "to be cancelled, and without a worker")

    def _outlived(self) -> list[str]:
        """End processes whose run has ended (by a click, or after missing heartbeats)."""
        said = []
        there: dict[str, list[int]] = {}
        for pid in every_pid():
            own = environment_of(pid).get("PREFECT__FLOW_RUN_ID")
            if own and not _trainer(pid) and start_ticks(pid):
                there.setdefault(own, []).append(pid)
        for identifier, pids in there.items():
            try:
                run = self.api.get(f"/flow_runs/{identifier}")
            except ApiError as error:
                if error.status not in (404, 422):  # of another server, or of none
                    raise
                continue
            said += self._end_outliving(run, pids)
        for run in self._ended_here():
            if recorded := self._recorded(run):
                said += self._end_outliving(run, [recorded])
        return said

    def _end_outliving(self, run: dict[str, Any], pids: list[int]) -> list[str]:
        state = run["state"] or {}
        if state.get("type") not in _ENDED:
            return []
        ended = _moment(state["timestamp"])
        before = [pid for pid in pids if _began_before(pid, ended)]  # processes of a retry began later
        asked = run["id"] in self._asked
        if not before or (younger(ended, _OUTLIVED_SECONDS) and not asked):
            return []
        roots = [pid for pid in before if parent_of(pid) not in before]
        kept = {name: state.get(name) for name in ("type", "name", "message")}
        return self._ask(run, roots, before, kept, f"{state['name']}, but its process lives")

    def _ended_here(self) -> Iterator[dict[str, Any]]:
        """Runs without a worker that ended recently and whose process on this machine may still exist."""
        wanted = _runs(*_ENDED)
        after = (datetime.now(UTC) - _RECENT).isoformat()
        wanted["flow_runs"] |= {"deployment_id": {"is_null_": True}, "end_time": {"after_": after}}
        for run in self.api.every("/flow_runs/filter", wanted):
            process = _process(run)
            if process and process.state() != "elsewhere" and start_ticks(process.pid):
                yield run

    def _recorded(self, run: dict[str, Any]) -> int | None:
        """The live process of this attempt according to the run's record in its store."""
        store = ((run.get("parameters") or {}).get("config") or {}).get("store")
        if not isinstance(store, str):
            return None
        with contextlib.suppress(OnwardError):
            for record in read_records(Store(home() / store)):
                if (known := record.processes.get(run["id"])) is not None:
                    process = ProcessId.from_dict(known)
                    return process.pid if process.state() == "alive" else None
        return None

    def _ask(
        self, run: dict[str, Any], first: list[int], every: list[int], state: dict[str, Any], why: str
    ) -> list[str]:
        """Send SIGTERM once to the `first` processes of a run, with time for a checkpoint; then SIGKILL to all of them."""
        asked = self._asked.get(run["id"])
        names = f"process {', '.join(map(str, every))}"
        if asked is None or asked.attempt != run["run_count"]:
            self._asked[run["id"]] = _AskedToEnd(time.monotonic(), run["run_count"], state)
            send(first, signal.SIGTERM)
            return [f"{run['name']}: {why}: {names} is asked to end"]
        if time.monotonic() - asked.since < _ORPHAN_GRACE_SECONDS:
            return []
        send(every, signal.SIGKILL)
        return [f"{run['name']}: {why}, and still there: {names} is killed"]

    def _reported(self) -> list[str]:
        """Correct runs that were asked to end here but reported Crashed, because they could not know the reason.

        If a worker watched, it reports the same again seconds later.
        """
        said = []
        for identifier, asked in list(self._asked.items()):
            try:
                run = self.api.get(f"/flow_runs/{identifier}")
            except ApiError as error:
                if error.status != 404:
                    raise
                del self._asked[identifier]  # somebody deleted it
                continue
            kind, over = run["state"]["type"], asked.since + _ORPHAN_GRACE_SECONDS + _SLACK_SECONDS
            if run["run_count"] != asked.attempt or kind in ("SCHEDULED", "PENDING"):
                del self._asked[identifier]  # retried
            elif kind == "CRASHED" and asked.state["type"] != "CRASHED":
                self.api.set_state("flow_runs", identifier, asked.state, force=True)
                said.append(f"{run['name']}: {asked.state['name']}")
            elif kind != "CANCELLING" and time.monotonic() > over and not any(self._processes(identifier)):
                del self._asked[identifier]
        return said

    def _lost_tasks(self, suspects: dict[str, str]) -> list[str]:
        """Set task runs that stay Running in an ended flow run to Crashed."""
        ended = {"state": {"type": {"any_": list(_ENDED)}}}
        body = {"flow_runs": ended, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        changed = 0
        for task in self.api.every("/task_runs/filter", body):
            suspects[task["id"]] = task["state_id"]
            if self._suspects.get(task["id"]) == task["state_id"]:
                self.api.set_state("task_runs", task["id"], _crashed(LOST_TASK), force=True)
                changed += 1
        return [f"{changed} tasks of runs that have ended: Crashed"] if changed else []

    def _waiting(self) -> list[str]:
        """Let due runs in a full pool say which runs occupy it. They keep their scheduled time and start as usual."""
        said = []
        for pool in self.api.every("/work_pools/filter", {}):
            limit = pool.get("concurrency_limit")
            if limit is None or pool.get("is_paused"):
                continue
            where = {"work_pools": {"name": {"any_": [pool["name"]]}}}
            there = list(self.api.every("/flow_runs/filter", {**_runs("RUNNING", "PENDING"), **where}))
            if len(there) < max(limit, 1):
                continue
            names = ", ".join(sorted(run["name"] for run in there))
            message = f"work pool {pool['name']} is taken by {names}; this run starts when it ends"
            due = {"next_scheduled_start_time": {"before_": datetime.now(UTC).isoformat()}}
            runs = _runs("SCHEDULED")
            runs["flow_runs"] |= due
            for run in self.api.every("/flow_runs/filter", {**runs, **where}):
                if (run["state"]["name"], run["state"].get("message")) != ("Waiting", message):
                    said += self._say_waiting(run, message)
        return said

    def _say_waiting(self, run: dict[str, Any], message: str) -> list[str]:
        now = self.api.get(f"/flow_runs/{run['id']}")
        if now["state_id"] != run["state_id"]:
            return []  # it was just taken
        state = {
            "type": "SCHEDULED",
            "name": "Waiting",
            "message": message,
            "state_details": {"scheduled_time": run["next_scheduled_start_time"]},
        }
        answer = self.api.set_state("flow_runs", run["id"], state)
        return [f"{run['name']}: Waiting ({answer}): {message}"]


def set_tasks(api: Api, run: str, message: str) -> None:
    """Set the task runs of a flow run that have not ended to Crashed."""
    body = {
        "flow_runs": {"id": {"any_": [run]}},
        "task_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}},
    }
    for task in list(api.every("/task_runs/filter", body)):
        api.set_state("task_runs", task["id"], _crashed(message), force=True)


def _runs(*types: str) -> dict[str, Any]:
    return {"flow_runs": {"state": {"type": {"any_": list(types)}}}}


def _crashed(message: str) -> dict[str, Any]:
    return {"type": "CRASHED", "name": "Crashed", "message": message}


def _cancelled() -> dict[str, Any]:
    return {"type": "CANCELLED", "name": "Cancelled", "message": CANCELLED}


def _process(run: Mapping[str, Any]) -> ProcessId | None:
    """The process as the run itself reported it; None if a worker reported a bare pid or nobody reported anything."""
    return ProcessId.from_text(str(run.get("infrastructure_pid") or ""))


def _pid(run: dict[str, Any]) -> int | None:
    pid = str(run.get("infrastructure_pid") or "").rpartition(":")[2]
    return int(pid) if pid.isdigit() else None


def _is_of(pid: int, run: Mapping[str, Any], since: float) -> bool:
    """Whether the process belongs to the run and is not another one with the same pid."""
    process = _process(run)
    if process and process.started:
        return process.state() == "alive"
    environment = environment_of(pid)
    own = environment.get("PREFECT__FLOW_RUN_ID")
    if own is not None:
        return own == run["id"] and bool(start_ticks(pid))
    if environment and process is None:
        return False  # a process that a worker starts has its run's id
    return _began_before(
        pid, since + _SLACK_SECONDS
    )  # run directly: a process that began after the run is another one


def others_heard(api: Api, pools: Iterable[str], names: Iterable[str] = ()) -> dict[str, float]:
    """When a worker of another machine last served each pool: 0 means never, ∞ means now.

    A worker is ours if its name is in `names` or ends in this machine's name.
    """
    mine, host = frozenset(names), f"-{host_name()}"
    heard = {}
    for pool in pools:
        try:
            workers = list(api.every(f"/work_pools/{pool}/workers/filter", {}))
        except ApiError as error:
            if error.status != 404:
                raise
            workers = []  # no pool yet
        others = [one for one in workers if one["name"] not in mine and not one["name"].endswith(host)]
        heard[pool] = max((_heard(worker) for worker in others), default=0.0)
    return heard


def _heard(worker: Mapping[str, Any]) -> float:
    if worker["status"] == "ONLINE":
        return math.inf
    return _moment(worker["last_heartbeat_time"]) if worker["last_heartbeat_time"] else 0.0


def here_alone(run: Mapping[str, Any], heard: Mapping[str, float]) -> bool:
    """Whether no worker of another machine can have taken the run. If the run is active, it is on this machine."""
    heard_until = heard.get(str(run.get("work_pool_name")), math.inf)  # ∞: a pool that is not served here
    began = run.get("start_time") or run["state"]["timestamp"]
    return _moment(began) > heard_until + _HEARTBEAT_SECONDS


def sweep_until(watch: LostRuns, stop: threading.Event, say: Callable[[str], object]) -> None:
    """Sweep until asked to stop. No answer of a server, nor a missing one, ends the loop; an error is reported once."""
    pause, failed = _FIRST_SECONDS, ""
    while not stop.wait(pause):
        try:
            for line in watch.sweep():
                say(line)
            pause, failed = _FIRST_SECONDS if watch.sweeps < 3 else _SWEEP_SECONDS, ""
        except Exception as error:  # the sweep must survive any answer of the server
            away = isinstance(error, ApiError) and not error.status
            pause = _FIRST_SECONDS if away else _SWEEP_SECONDS
            if str(error) != failed:
                failed = str(error)
                say(f"sweep: {type(error).__name__}: {failed}")


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _began_before(pid: int, moment: float) -> bool:
    began = started_at(pid)
    return began is not None and began < moment


def _trainer(pid: int) -> bool:
    return "tasks.training" in command_of(pid)


def _has_worker(pid: int) -> bool:
    """Whether a Prefect worker watches the process. Nobody else learns of a cancellation of a directly started run."""
    command = command_of(parent_of(pid))
    return "flows.services.prefect_worker" in command or "worker start" in command


def main() -> int:
    """Sweep forever."""
    watch = LostRuns(Api(os.environ["PREFECT_API_URL"]), frozenset(sys.argv[1:]))
    sweep_until(watch, threading.Event(), lambda line: sys.stderr.write(f"{line}\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
