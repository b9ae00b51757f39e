"""Keeps the services of one home running. `onward up` starts it.

Usage: `python -m flows.services.supervisor PREFECT_PORT MLFLOW_PORT`.

Services with a live process are adopted, others are started. A service that ends is started again after a growing
pause. The sweep of lost runs (flows/services/lost_runs.py) runs beside. SIGTERM stops everything in order. A lock
ensures that a home has only one supervisor, and only it writes services.json.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from flows.machine.environment import gpus, server_environment
from flows.machine.processes import (
    KILLED_SECONDS,
    boot_id,
    environment_of,
    every_pid,
    on_hangup,
    parent_of,
    send,
    start_ticks,
    still_there,
    stop_group,
)
from flows.machine.servers import SERVERS
from flows.services.lost_runs import (
    CANCELLED,
    LOST_TASK,
    STOPPED,
    LostRuns,
    here_alone,
    others_heard,
    set_tasks,
    sweep_until,
)
from flows.services.record import HomeRecord, Service, command, logs, pools, read_record, record_path, rotate
from flows.services.rest import Api, ApiError
from flows.services.serve import reserve
from storage.lock import Lock
from storage.paths import state_directory

FLOW_GRACE_SECONDS = 150.0
"""Time that flow runs get to end. A trainer has 120 seconds for its checkpoint."""
_PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_SECONDS = 60.0
_LOG_BYTES = 50_000_000
PUT_BACK = "Rescheduled"
"""Name of the state of a run that was taken but had not begun when its worker was stopped."""


@dataclass
class Supervised:
    """A service, its process if it is our child, and the earliest time of its next start."""

    service: Service
    child: subprocess.Popen[bytes] | None = None
    not_before: float = 0.0
    began: float = -math.inf
    """Its start by the monotonic clock; of one that was taken over, long ago."""
    quick: int = 0
    """Number of consecutive ends soon after the start."""


class Supervisor:
    """Owns services.json from `begin` on."""

    def __init__(self, prefect_port: int, mlflow_port: int) -> None:
        known = read_record()
        self.record = HomeRecord(prefect_port, mlflow_port, os.getpid(), start_ticks(os.getpid()))
        self.kept = {
            name: Supervised(Service())
            for name in ("prefect", "mlflow", *(f"worker-{pool}" for pool in pools()))
        }
        for name, service in (known.running if known else {}).items():
            if name in self.kept:
                self.kept[name] = Supervised(Service(service.pid, service.started, service.since))
                tell(f"{name}: taken over (process {service.pid})")
        self.record.services = {name: kept.service for name, kept in self.kept.items()}
        self.stop = threading.Event()
        self._ports: dict[str, socket.socket] = {}

    def run(self) -> None:
        """Run until asked to stop, or until the home is gone."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.stop.set())
        on_hangup(self.stop.set)
        self.record.write()
        watch = LostRuns(self.record.api, frozenset(pools()))
        sweeping = threading.Thread(target=sweep_until, args=(watch, self.stop, tell), daemon=True)
        sweeping.start()
        while not self.stop.is_set() and record_path().exists():
            changed = [self._tend(name, kept) for name, kept in self.kept.items()]
            if any(changed):
                self.record.write()
            self.stop.wait(0.5)
        self.stop.set()
        self.record.stopping = True
        sweeping.join(30)
        stop_all(self.record, self._say)

    def _say(self, line: str) -> None:
        tell(line)
        self.record.messages.append(line)
        if record_path().parent.is_dir():
            self.record.write()

    def _tend(self, name: str, kept: Supervised) -> bool:
        """Look after one service. Returns True if something changed."""
        if kept.child is not None:
            kept.child.poll()  # reaps the child
        if kept.service.alive:
            _bound(name)
            return False
        if kept.service.pid:
            self._mourn(name, kept)
            return True
        if time.monotonic() < kept.not_before or not self._wanted(name):
            return False
        try:
            self._start(name, kept)
        except OSError as error:
            tell(f"{name}: {error}")
            with (logs() / f"{name}.log").open("a", encoding="utf-8") as log:
                log.write(f"it could not be started: {error}\n")
            self._mourn(name, kept)
        return True

    def _wanted(self, name: str) -> bool:
        """Whether to start a service. A worker starts only if its pool exists, because deploying creates the pools."""
        if not name.startswith("worker-"):
            return True
        with contextlib.suppress(ApiError):
            self.record.api.get(f"/work_pools/{name.removeprefix('worker-')}")
            return True
        self.kept[name].not_before = time.monotonic() + 0.5
        return False

    def _start(self, name: str, kept: Supervised) -> None:
        log = logs() / f"{name}.log"
        rotate(log)
        kept.service.since, kept.began = time.time(), time.monotonic()
        environment = self.record.environment
        if name == "mlflow":
            (state_directory() / "mlflow" / "files").mkdir(parents=True, exist_ok=True)
        if name in SERVERS:
            self._keep_port(name)
            environment = server_environment(name, environment)
        if name == "worker-cpu" and gpus():
            environment["CUDA_VISIBLE_DEVICES"] = ""  # the GPU belongs to the other pool, one run at a time
        with log.open("ab") as output:
            kept.child = subprocess.Popen(
                command(name, self.record),
                cwd=state_directory(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        kept.service.pid = kept.child.pid
        kept.service.started = start_ticks(kept.child.pid)
        tell(f"{name}: started (process {kept.child.pid})")

    def _keep_port(self, name: str) -> None:
        """Keep a server's port, so that no other user can take it while the server is started again."""
        if name not in self._ports:
            port = {"prefect": self.record.prefect_port, "mlflow": self.record.mlflow_port}[name]
            self._ports[name] = reserve("127.0.0.1", port)

    def _mourn(self, name: str, kept: Supervised) -> None:
        """Handle the end of a service: end its process group, and start it again after a pause."""
        service = kept.service
        service.code = kept.child.returncode if kept.child is not None else None
        if service.pid:
            stop_group(service.pid, 5)
        steady = time.monotonic() - kept.began > _STEADY_SECONDS
        kept.quick = 0 if steady else kept.quick + 1
        pause = _PAUSES[min(kept.quick, len(_PAUSES) - 1)]
        kept.not_before = time.monotonic() + pause
        service.deaths += 1
        tell(f"{name}: ended (process {service.pid}, exit code {service.code}); again in {pause:.0f} s")
        service.pid, service.started, kept.child = 0, "", None


def stop_all(record: HomeRecord, say: Callable[[str], None]) -> None:
    """Stop the workers with their runs, then MLflow, then Prefect. Runs are left in correct states."""
    workers = {name: s for name, s in record.running.items() if name.startswith("worker-")}
    frozen = [service.pid for service in workers.values()]
    send(frozen, signal.SIGSTOP)  # takes no new run; its runs are stopped below, with time for a checkpoint
    try:
        stop_flows(record.api, pools(), say)
    finally:
        send(frozen, signal.SIGTERM)
        send(frozen, signal.SIGCONT)
    for name, service in workers.items():
        stop_group(service.pid, 10, asked=True)  # a second SIGTERM would kill it at once
        say(f"{name} stopped")
    if "mlflow" in record.running:
        stop_group(record.services["mlflow"].pid, 20)
        say("mlflow stopped")
    if "prefect" in record.running:
        time.sleep(2)  # it records the ends of tasks a little after they were reported
        stop_group(record.services["prefect"].pid, 30)
        say("prefect stopped")


def flow_processes(api_url: str) -> list[int]:
    """Pids of this machine's flow runs that report to this API address, and of their children."""
    found = []
    for pid in every_pid():
        environment = environment_of(pid)
        own = environment.get("PREFECT_API_URL") == api_url and "PREFECT__FLOW_RUN_ID" in environment
        if own and start_ticks(pid):
            found.append(pid)
    return found


def stop_flows(
    api: Api, served: Sequence[str], say: Callable[[str], None], workers: Sequence[str] = ()
) -> None:
    """End every flow process that a worker of this home (or container) started, and leave its run in a correct state."""
    heard: Mapping[str, float] = {}
    with contextlib.suppress(ApiError):
        heard = others_heard(api, served, workers)
    runs = _runs_here(api, heard, say)
    ending = [run["name"] for run in runs if run["state"]["type"] != "PENDING"]
    if ending or flow_processes(api.url):
        names = ", ".join(ending) or "runs that Prefect does not answer for"
        say(f"stopping {names}: time for a checkpoint, up to {FLOW_GRACE_SECONDS:.0f} s")
    _end_processes(api.url, say)
    for run in runs:
        try:
            say(f"{run['name']}: {_leave_true(api, run['id'])}")
        except ApiError as error:
            say(f"! {run['name']}: its state could not be set ({error}); the next onward up does it")


def _runs_here(api: Api, heard: Mapping[str, float], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The active runs on this machine. `heard` maps each served pool to the last heartbeat of another machine's worker."""
    own = {environment_of(pid)["PREFECT__FLOW_RUN_ID"] for pid in flow_processes(api.url)}
    here = []
    with contextlib.suppress(ApiError):
        unended = {"state": {"type": {"any_": ["RUNNING", "CANCELLING", "PENDING"]}}}
        for run in api.every("/flow_runs/filter", {"flow_runs": unended}):
            if run["id"] in own or (run["state"]["type"] == "PENDING" and here_alone(run, heard)):
                here.append(run)
            elif run["work_pool_name"] is None:
                say(f"! {run['name']} was started elsewhere, and goes on without its page in Prefect")
    return here


def _end_processes(api_url: str, say: Callable[[str], None]) -> None:
    asked: set[int] = set()
    until = time.monotonic() + FLOW_GRACE_SECONDS
    while there := flow_processes(api_url):
        roots = {pid for pid in there if parent_of(pid) not in there}
        if time.monotonic() > until + KILLED_SECONDS:
            say(f"! {still_there(f'process {min(there)}')}")
            return
        if time.monotonic() > until:
            send(there, signal.SIGKILL)
        else:
            send(roots - asked, signal.SIGTERM)  # only once, so that its own shutdown is not disturbed
            asked |= roots
        time.sleep(0.2)


def _leave_true(api: Api, run: str) -> str:
    """Set the correct state of a run that was stopped here. Returns the message about it."""
    now = api.get(f"/flow_runs/{run}")
    kind = now["state"]["type"]
    if kind == "PENDING":  # taken, but not begun
        details = {"scheduled_time": now["expected_start_time"]}
        state: dict[str, Any] = {"type": "SCHEDULED", "name": PUT_BACK, "state_details": details}
        api.set_state("flow_runs", run, state, force=True)
        return f"{PUT_BACK}, and starts with the next onward up"
    if kind == "CANCELLING":
        cancelled = {"type": "CANCELLED", "name": "Cancelled", "message": CANCELLED}
        api.set_state("flow_runs", run, cancelled, force=True)
    elif kind in ("RUNNING", "CRASHED"):
        stopped = {"type": "CRASHED", "name": "Interrupted", "message": STOPPED}
        api.set_state("flow_runs", run, stopped, force=True)
    else:
        return str(now["state"]["name"])
    set_tasks(api, run, LOST_TASK)
    if kind == "CANCELLING":
        return "Cancelled"
    return "Interrupted; retry it after the next onward up, and it goes on"


def _bound(name: str) -> None:
    """Truncate a log that has grown too large, and keep its last part beside it. Services append, so they can continue."""
    log = logs() / f"{name}.log"
    with contextlib.suppress(OSError):
        if log.stat().st_size > _LOG_BYTES:
            with log.open("r+b") as file:
                file.seek(-1_000_000, os.SEEK_END)
                log.with_suffix(".log.1").write_bytes(file.read())
                file.truncate(0)


def tell(line: str) -> None:
    """Print a line of the supervisor's log."""
    sys.stderr.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {line}\n")
    sys.stderr.flush()


def main(arguments: list[str]) -> int:
    """Run the supervisor. Returns exit code 0 after a stop, 3 if another supervisor has this home."""
    lock = Lock(state_directory() / "supervisor.lock")
    if not lock.try_acquire():
        tell("another supervisor has this home")
        return 3
    tell(f"supervisor of {state_directory().parent} (process {os.getpid()}, boot {boot_id()[:8]})")
    try:
        Supervisor(int(arguments[0]), int(arguments[1])).run()
    finally:
        lock.release()
    tell("ended")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
