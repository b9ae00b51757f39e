"""True states: runs whose process is gone are set Crashed (or Cancelled), and a run that waits for its pool says so.

Prefect cannot know that a process died together with the worker that watched it. `Watch.sweep` looks at the processes of
this machine; what is gone in two sweeps, one after the other, is really gone, and not just ending. It must never touch
a run of another machine, or one whose process lives.

`python -m flows.watch` sweeps for ever: for a worker's machine where no `onward up` runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from flows.processes import (
    command_of,
    environment_of,
    every_pid,
    parent_of,
    send,
    start_ticks,
    started_at,
)
from flows.rest import Api, ApiError

_KEPT = (
    "Every finished stage is kept, training up to its newest checkpoint. Retry this run to go on from there."
)
LOST = f"the process of this run is gone: it was killed, or the machine was restarted. {_KEPT}"
STOPPED = f"stopped with its worker (onward down, or the end of its container). {_KEPT}"
LOST_TASK = "the process that ran it is gone"
CANCELLED = "cancelled; its process has left"
_SLACK_SECONDS = 60.0  # between the kernel's account of a start and Prefect's
_SUBMITTING_SECONDS = 60.0  # a worker may take so long from Pending to a process
_ORPHAN_SECONDS = 15.0  # a worker that lives has answered a cancellation by then
_ORPHAN_GRACE_SECONDS = 150.0


class Watch:
    """Sweeps over one server's runs, for the processes of this machine and the pools that its workers serve."""

    def __init__(
        self, api: Api, pools: frozenset[str] = frozenset(), names: frozenset[str] = frozenset()
    ) -> None:
        self.api = api
        self.pools = pools
        self.names = names
        self.host = os.uname().nodename
        self.sweeps = 0
        self._alone = frozenset[str]()
        self._suspects: dict[str, str] = {}
        self._asked: dict[str, float] = {}

    def sweep(self) -> list[str]:
        """Set right what is to be; a line for each change. Raises ApiError where the server does not answer."""
        said, suspects = [], dict[str, str]()
        self._alone = pools_alone(self.api, self.pools, self.names)
        for run in self.api.every("/flow_runs/filter", _runs("RUNNING", "CANCELLING", "PENDING")):
            if not self._ours(run):
                continue
            if self._lives(run):
                said += self._cancel_orphan(run)
                continue
            suspects[run["id"]] = run["state_id"]
            if self._suspects.get(run["id"]) == run["state_id"]:
                said.append(self._set_right(run))
        said += self._cancelled_orphans()
        said += self._lost_tasks(suspects)
        said += self._waiting()
        self._suspects = suspects
        self.sweeps += 1
        return said

    def _ours(self, run: dict[str, Any]) -> bool:
        """A worker names the pid alone, a flow its machine too; in a pool that others serve too it says nothing."""
        host, _, pid = str(run.get("infrastructure_pid") or "").rpartition(":")
        if host:
            return host == self.host and pid.isdigit()
        return run.get("work_pool_name") in self._alone

    def _lives(self, run: dict[str, Any]) -> bool:
        state = run["state"]
        since = _moment(state["timestamp"])
        pid = _pid(run)
        if state["type"] == "PENDING" and time.time() - since < _SUBMITTING_SECONDS:
            return True  # a retry still names the process of the attempt before
        if pid is not None and state["type"] != "PENDING" and _is_of(pid, run["id"], since):
            return True
        return any(True for _ in self._processes(run["id"]))

    def _processes(self, run: str) -> Iterator[int]:
        """What a worker started for the run and what that started, trainers left out: those leave by themselves."""
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
        )  # not forced: it may just have ended otherwise
        if answer == "ACCEPT":
            set_tasks(self.api, run["id"], LOST_TASK)
        return f"{run['name']}: {state['name']} ({answer}), its process {_pid(run) or ''} is gone"

    def _cancel_orphan(self, run: dict[str, Any]) -> list[str]:
        """A run that is to be cancelled, but whose worker died: nobody else would end its process."""
        state = run["state"]
        pid = _pid(run)
        if state["type"] != "CANCELLING" or time.time() - _moment(state["timestamp"]) < _ORPHAN_SECONDS:
            return []
        if pid is None or _has_worker(pid):
            return []
        own = _is_of(pid, run["id"], _moment(state["timestamp"]))
        there = [pid] if own else list(self._processes(run["id"]))  # what it started may outlive it
        asked = self._asked.get(run["id"])
        if asked is None:
            self._asked[run["id"]] = time.monotonic()
            send(there, signal.SIGTERM)
            return [f"{run['name']}: to be cancelled, and without a worker: process {pid} is asked to end"]
        if time.monotonic() - asked < _ORPHAN_GRACE_SECONDS:
            return []
        send(there, signal.SIGKILL)
        return [f"{run['name']}: to be cancelled, and still there: process {pid} is killed"]

    def _cancelled_orphans(self) -> list[str]:
        """Those that were asked to end here, and could not know why: what they report as Crashed is Cancelled."""
        said = []
        for identifier in list(self._asked):
            run = self.api.get(f"/flow_runs/{identifier}")
            if run["state"]["type"] == "CANCELLING":
                continue
            del self._asked[identifier]
            if run["state"]["type"] == "CRASHED":
                self.api.set_state("flow_runs", identifier, _cancelled(), force=True)
                said.append(f"{run['name']}: Cancelled")
        return said

    def _lost_tasks(self, suspects: dict[str, str]) -> list[str]:
        """Task runs that run for ever in a flow run that has ended."""
        ended = {"state": {"type": {"any_": ["CRASHED", "CANCELLED", "FAILED", "COMPLETED"]}}}
        body = {"flow_runs": ended, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        changed = 0
        for task in self.api.every("/task_runs/filter", body):
            suspects[task["id"]] = task["state_id"]
            if self._suspects.get(task["id"]) == task["state_id"]:
                self.api.set_state("task_runs", task["id"], _crashed(LOST_TASK), force=True)
                changed += 1
        return [f"{changed} tasks of runs that have ended: Crashed"] if changed else []

    def _waiting(self) -> list[str]:
        """Runs that are due, in a pool that is taken, say by whom. They keep their time, and are taken as ever."""
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
            return []  # it has just been taken
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


def _pid(run: dict[str, Any]) -> int | None:
    pid = str(run.get("infrastructure_pid") or "").rpartition(":")[2]
    return int(pid) if pid.isdigit() else None


def _is_of(pid: int, run: str, since: float) -> bool:
    """Whether the process is the run's, and not another one with its pid."""
    own = environment_of(pid).get("PREFECT__FLOW_RUN_ID")
    if own is not None:
        return own == run and bool(start_ticks(pid))
    with contextlib.suppress(OSError):  # run directly: a process that began after the run did is another one
        return started_at(pid) < since + _SLACK_SECONDS
    return False


def pools_alone(api: Api, pools: Iterable[str], names: Iterable[str] = ()) -> frozenset[str]:
    """Of the pools those that no worker of another machine serves: a run of theirs, where it runs at all, runs here.

    A worker is ours by its name: one of `names`, or one that ends in this machine's.
    """
    mine, host = frozenset(names), f"-{os.uname().nodename}"
    alone = set()
    for pool in pools:
        try:
            workers = list(api.every(f"/work_pools/{pool}/workers/filter", {}))
        except ApiError as error:
            if error.status != 404:
                raise
            workers = []  # no pool yet
        online = [worker["name"] for worker in workers if worker["status"] == "ONLINE"]
        if all(name in mine or name.endswith(host) for name in online):
            alone.add(pool)
    return frozenset(alone)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def _trainer(pid: int) -> bool:
    return "tasks.training" in command_of(pid)


def _has_worker(pid: int) -> bool:
    """Whether a Prefect worker watches the process; of one that is run directly, nobody else hears of a cancellation."""
    return "worker start" in command_of(parent_of(pid))


def main() -> int:
    """Sweep every ten seconds."""
    watch = Watch(Api(os.environ["PREFECT_API_URL"]), frozenset(sys.argv[1:]))
    while True:
        try:
            for line in watch.sweep():
                sys.stderr.write(f"{line}\n")
        except Exception as error:  # the sweep must outlive whatever the server answers
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        time.sleep(10)


if __name__ == "__main__":
    sys.exit(main())
