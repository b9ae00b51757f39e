"""`onward up` and `onward down`: Prefect server, MLflow server, workers and deployments of one home, on 127.0.0.1.

`<home>/.onward/services.json` says which processes there are, by pid and start time. One supervisor
(flows/services/supervisor.py) keeps them running; where it was killed, they run on, and the next `up` adopts them or `down`
stops them. Light to import: prefect and mlflow are only ever imported by child processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flows.services.environment import gpus, service_environment, worker_command
from flows.services.places import home, mlflow_database, state_directory
from flows.services.processes import alive, boot_id, command_of, start_ticks, stop_group
from flows.services.rest import Api, ApiError
from storage.atomic import write_bytes
from storage.errors import ConfigError, OnwardError
from storage.lock import Lock

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
START_SECONDS = 240.0
STOP_SECONDS = 300.0
_ROOT = Path(__file__).resolve().parents[2]

Say = Callable[[str], None]


@dataclass
class Service:
    """One process that is kept running. `deaths` counts its ends since the supervisor began, `code` is the last one's."""

    pid: int = 0
    started: str = ""
    since: float = 0.0
    deaths: int = 0
    code: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return alive(self.pid, self.started)


@dataclass
class Record:
    """services.json. `story` is what `down` tells; `pid` and `started` are the supervisor's."""

    prefect_port: int
    mlflow_port: int
    pid: int = 0
    started: str = ""
    boot: str = field(default_factory=boot_id)
    services: dict[str, Service] = field(default_factory=dict)
    stopping: bool = False
    story: list[str] = field(default_factory=list)

    @property
    def supervised(self) -> bool:
        """Whether the supervisor is there."""
        return self.boot == boot_id() and alive(self.pid, self.started)

    @property
    def running(self) -> dict[str, Service]:
        """The services whose process is there."""
        if self.boot != boot_id():
            return {}
        return {name: service for name, service in self.services.items() if service.alive}

    def stop_left(self) -> None:
        """End what a service that was killed left behind: processes of its group, which has the service's pid.

        That pid is given to no other process as long as one of the group is there.
        """
        if self.boot == boot_id() and not self.supervised:
            for service in self.services.values():
                if service.pid and not start_ticks(service.pid):
                    stop_group(service.pid, 10)

    @property
    def prefect(self) -> str:
        """Address of the Prefect UI."""
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        """Address of MLflow."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def api(self) -> Api:
        """Prefect's API."""
        return Api(f"{self.prefect}/api")

    @property
    def environment(self) -> dict[str, str]:
        """Of the services and what they start."""
        return service_environment(self.prefect_port, self.mlflow_port)

    def write(self) -> None:
        """Replace services.json."""
        write_bytes(record_path(), (json.dumps(asdict(self), indent=1) + "\n").encode())


def record_path() -> Path:
    """Where services.json lies."""
    return state_directory() / "services.json"


def logs() -> Path:
    """Where the services' logs lie."""
    return state_directory() / "logs"


def read_record() -> Record | None:
    """services.json, or None where there is none (or it is not to be read)."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        raw = json.loads(record_path().read_bytes())
        raw["services"] = {name: Service(**service) for name, service in raw["services"].items()}
        return Record(**raw)
    return None


def pools() -> list[str]:
    """The work pools that this machine serves: `gpu` where there is one, and what `ONWARD_POOL` names."""
    asked = os.environ.get("ONWARD_POOL")
    return list(dict.fromkeys(["cpu", *(["gpu"] if gpus() else []), *([asked] if asked else [])]))


def worker_name(pool: str) -> str:
    """The worker's name in Prefect: the same after a restart, so that no dead ones pile up."""
    return f"onward-{pool}-{os.uname().nodename}"


def command(name: str, record: Record) -> list[str]:
    """The command line of a service."""
    if name == "prefect":
        port = str(record.prefect_port)
        return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    if name == "mlflow":
        files = state_directory() / "mlflow" / "files"
        return [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(record.mlflow_port), "--workers", "1", "--backend-store-uri", mlflow_database()),
            *("--artifacts-destination", str(files)),
        ]
    pool = name.removeprefix("worker-")
    return worker_command(pool, worker_name(pool))


def up(configs: Sequence[Path], prefect_port: int | None, mlflow_port: int | None, say: Say) -> Record:
    """Start what does not run, deploy, and return when all of it answers.

    Raises ConfigError where a port is taken, OnwardError where something does not start; what this call started is
    stopped then.
    """
    configs = list(configs) or sorted((home() / "configs").glob("*.y*ml"))
    for config in configs:
        if not config.is_file():
            raise ConfigError(f"there is no configuration {config}")
    with _turn(say):
        record = read_record()
        found = dict(record.running) if record else {}
        began = record is None or not record.supervised
        if record is not None and found:
            _say_found(record, found, (prefect_port, mlflow_port), say)
        if record is not None:
            record.stop_left()
        if record is None or not found:
            record = Record(prefect_port or PREFECT_PORT, mlflow_port or MLFLOW_PORT)
        if began:
            _check_ports(record, found)
            process = _start_supervisor(record)
        try:
            if began:
                _wait_taken_over(process)
            _wait(partial(_answers, f"{record.prefect}/api/health"), "prefect", say)
            _wait(partial(_answers, f"{record.mlflow}/health"), "mlflow", say)
            deployed = _deploy(record, configs, say)
            served = [name for name in (read_record() or record).services if name.startswith("worker-")]
            for worker in served:
                _wait(partial(_online, record, worker.removeprefix("worker-")), worker, say)
            if {f"worker-{pool}" for pool in pools()} - set(served):
                say(
                    "! the work pools to serve have changed since: onward down, then onward up, to serve them"
                )
        except BaseException:
            if began and not found:  # what was taken over, and its runs, is not this call's to stop
                stop_supervisor(process, say=lambda line: None)
                record_path().unlink(missing_ok=True)
            raise
        record = read_record() or record
        _say_up(record, deployed, say)
        return record


def down(say: Say) -> None:
    """Stop everything: workers and their runs first, Prefect last, once it has written what it holds."""
    from flows.services.supervisor import flow_processes, stop_all

    with _turn(say):
        record = read_record()
        if record is not None:
            record.stop_left()
        runs = bool(record and flow_processes(record.api.url))
        if record is None or not (record.supervised or record.running or runs):
            record_path().unlink(missing_ok=True)
            say("nothing runs")
            return
        if record.supervised:
            stop_supervisor(record.pid, say)
        left = read_record()
        if left is not None and (left.running or flow_processes(left.api.url)):
            stop_all(left, say)  # the supervisor was killed: its work is done here
            left.stop_left()
        record_path().unlink(missing_ok=True)


def stop_supervisor(process: subprocess.Popen[bytes] | int, say: Say) -> None:
    """Ask the supervisor to stop its services and itself, and tell what it tells. Kills it where that does not end."""
    pid = process if isinstance(process, int) else process.pid
    known = read_record()
    ticks = known.started if known and known.pid == pid else ""
    told = 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until:
        gone = not alive(pid, ticks) if isinstance(process, int) else process.poll() is not None
        record = read_record()
        for line in record.story[told:] if record else ():
            say(line)
            told += 1
        if gone:
            return
        time.sleep(0.2)
    say(f"the supervisor (process {pid}) did not end within {STOP_SECONDS:.0f} s and is killed")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)


@contextlib.contextmanager
def _turn(say: Say) -> Iterator[None]:
    """One `up` or `down` at a time in a home."""
    state_directory().mkdir(parents=True, exist_ok=True)
    logs().mkdir(exist_ok=True)
    with Lock(
        state_directory() / "turn.lock",
        waiting=lambda path: say("another onward up or down is at work; waiting"),
    ):
        yield


def _start_supervisor(record: Record) -> subprocess.Popen[bytes]:
    log = logs() / "supervisor.log"
    rotate(log)
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "flows.services.supervisor",
                str(record.prefect_port),
                str(record.mlflow_port),
            ],
            cwd=_ROOT,
            env=record.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # it outlives this command, and a Ctrl-C is not its own
        )


def _wait_taken_over(process: subprocess.Popen[bytes]) -> None:
    """Until services.json is the new supervisor's."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        record = read_record()
        if record is not None and record.pid == process.pid:
            return
        time.sleep(0.1)
    raise OnwardError(f"the supervisor did not start:\n{last_words(logs() / 'supervisor.log')}")


def rotate(log: Path, most: int = 4_000_000) -> None:
    """Keep one log before this one, and neither of them too large."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > most:
            log.replace(log.with_suffix(".log.1"))


def _check_ports(record: Record, found: dict[str, Service]) -> None:
    for name, title, port in (
        ("prefect", "Prefect server", record.prefect_port),
        ("mlflow", "MLflow server", record.mlflow_port),
    ):
        if name in found:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except (OSError, OverflowError) as error:
                raise ConfigError(
                    f"port {port} for the {title} cannot be had: {_holder(port) or error}. "
                    f"End that, or choose another port: onward up --{name}-port {port + 1}"
                ) from error


def _holder(port: int) -> str:
    """Who listens there, where this user may know."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid:
                    return f"process {connection.pid} ({command_of(connection.pid)[:80]}) listens on it"
                return "another program listens on it"
    return ""


def _wait(ready: Callable[[], bool], name: str, say: Say) -> None:
    """Until a service is ready. Raises OnwardError with its last words where it died, or is not in time."""
    began, told = time.monotonic(), False
    before = read_record()
    deaths = before.services[name].deaths if before and name in before.services else 0
    while not ready():
        record = read_record()
        service = record.services.get(name) if record else None
        if service is not None and service.deaths > deaths:
            raise OnwardError(
                f"{name} did not start (exit code {service.code}):\n{last_words(logs() / f'{name}.log')}"
            )
        if time.monotonic() - began > 5 and not (record and record.supervised):
            raise OnwardError(f"the supervisor ended:\n{last_words(logs() / 'supervisor.log')}")
        if time.monotonic() - began > START_SECONDS:
            raise OnwardError(
                f"{name} is not ready after {START_SECONDS:.0f} s:\n{last_words(logs() / f'{name}.log')}"
            )
        if not told and time.monotonic() - began > 15:
            say(f"waiting for {name} …")
            told = True
        time.sleep(0.2)


def last_words(log: Path, lines: int = 12) -> str:
    """The end of a log, and where the rest is."""
    text = ""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        text = file.read().decode(errors="replace")
    shown = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join([*(f"  {line}" for line in shown), f"(the whole log: {log})"])


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _online(record: Record, pool: str) -> bool:
    """Whether this home's worker of the pool has told the server of itself since it was started."""
    now = read_record()
    service = now.services.get(f"worker-{pool}") if now else None
    if service is None or not service.alive:
        return False
    with contextlib.suppress(ApiError):
        for worker in workers_online(record.api, pool):
            if (
                worker["name"] == worker_name(pool)
                and _seconds(worker["last_heartbeat_time"]) >= service.since
            ):
                return True
    return False


def workers_online(api: Api, pool: str) -> list[dict[str, Any]]:
    """The workers of a pool that Prefect has heard of lately."""
    return [w for w in api.every(f"/work_pools/{pool}/workers/filter", {}) if w["status"] == "ONLINE"]


def _seconds(moment: str | None) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp() if moment else 0.0


def _deploy(record: Record, configs: Sequence[Path], say: Say) -> list[str]:
    """Run flows/services/deploy.py against the servers; what it deployed. It is idempotent."""
    answer = subprocess.run(
        [sys.executable, "-m", "flows.services.deploy", *map(str, (config.resolve() for config in configs))],
        env={**record.environment, "PYTHONPATH": os.pathsep.join([str(_ROOT), *_python_path()])},
        cwd=home(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    (logs() / "deploy.log").write_text(answer.stdout + answer.stderr)
    if answer.returncode != 0:
        raise OnwardError(f"the deployments could not be made:\n{last_words(logs() / 'deploy.log')}")
    for line in answer.stderr.splitlines():
        if line.startswith("passed over"):
            say(f"! {line}")
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _say_found(
    record: Record, found: dict[str, Service], wanted: tuple[int | None, int | None], say: Say
) -> None:
    names = ", ".join(sorted(found))
    if record.supervised:
        say(f"runs already: {names}")
    else:
        say(f"their supervisor is gone, taken over: {names}")
    for option, asked, port in zip(
        ("--prefect-port", "--mlflow-port"), wanted, (record.prefect_port, record.mlflow_port), strict=True
    ):
        if asked is not None and asked != port:
            say(f"! {option} {asked} is not used: it runs on {port}; onward down first, to move it")


def _say_up(record: Record, deployed: Sequence[str], say: Say) -> None:
    say(f"Prefect      {record.prefect}")
    say(f"MLflow       {record.mlflow}")
    say(f"workers      {', '.join(pools())}")
    for number, line in enumerate(deployed or ["none: there is no configuration in configs/"]):
        say(f"{'' if number else 'deployed':<12} {line}")
    say(f"data         {state_directory()} (logs/, prefect/, mlflow/)")
    say(
        f"next         open {record.prefect}, Deployments, Run; or onward status · onward doctor · onward down"
    )
