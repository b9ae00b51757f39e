"""The record of a home's processes: `<home>/.onward/services.json` names them by pid and start time.

Anyone may read it; only the supervisor writes it. Light to import.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.machine.environment import gpus, service_environment, worker_command
from flows.machine.processes import alive, boot_id, start_ticks, stop_group
from flows.services.rest import Api
from storage.atomic import write_bytes
from storage.paths import mlflow_database, state_directory
from storage.provenance import host_name


@dataclass
class Service:
    """One process that is kept running. `deaths` counts its ends since the supervisor began; `code` is the last one's."""

    pid: int = 0
    started: str = ""
    since: float = 0.0
    deaths: int = 0
    code: int | None = None

    @property
    def alive(self) -> bool:
        """Whether the process exists."""
        return alive(self.pid, self.started)


@dataclass
class HomeRecord:
    """The content of services.json. `down` repeats the lines of `messages`. `pid` and `started` are the supervisor's."""

    prefect_port: int
    mlflow_port: int
    pid: int = 0
    started: str = ""
    boot: str = field(default_factory=boot_id)
    services: dict[str, Service] = field(default_factory=dict)
    stopping: bool = False
    messages: list[str] = field(default_factory=list)

    @property
    def supervised(self) -> bool:
        """Whether the supervisor exists."""
        return self.boot == boot_id() and alive(self.pid, self.started)

    @property
    def running(self) -> dict[str, Service]:
        """The services whose process exists."""
        if self.boot != boot_id():
            return {}
        return {name: service for name, service in self.services.items() if service.alive}

    def stop_left(self) -> None:
        """End the processes that a killed service left in its group. The group id is the service's pid.

        The kernel gives that pid to no other process as long as the group has a member.
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
        """The environment of the services and their children."""
        return service_environment(self.prefect_port, self.mlflow_port)

    def write(self) -> None:
        """Replace services.json."""
        write_bytes(record_path(), (json.dumps(asdict(self), indent=1) + "\n").encode())


def record_path() -> Path:
    """Path of services.json."""
    return state_directory() / "services.json"


def logs() -> Path:
    """Directory of the services' logs."""
    return state_directory() / "logs"


def read_record() -> HomeRecord | None:
    """The content of services.json; None if it does not exist or cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        raw = json.loads(record_path().read_bytes())
        raw["messages"] = raw.pop("story", None) or raw.get("messages", [])  # as 0.1.0 called them
        raw["services"] = {name: Service(**service) for name, service in raw["services"].items()}
        return HomeRecord(**raw)
    return None


def pools() -> list[str]:
    """The work pools that this machine serves: `cpu`, `gpu` if there is a GPU, and the one that `ONWARD_POOL` names."""
    asked = os.environ.get("ONWARD_POOL")
    return list(dict.fromkeys(["cpu", *(["gpu"] if gpus() else []), *([asked] if asked else [])]))


def worker_name(pool: str) -> str:
    """The worker's name in Prefect. It stays the same after a restart, so that dead workers do not accumulate."""
    return f"onward-{pool}-{host_name()}"


def command(name: str, record: HomeRecord) -> list[str]:
    """The command line of a service."""
    serve = [sys.executable, "-m", "flows.services.serve", name]
    if name == "prefect":
        return [*serve, "--port", str(record.prefect_port)]
    if name == "mlflow":
        files = str(state_directory() / "mlflow" / "files")
        return [*serve, "--port", str(record.mlflow_port), "--database", mlflow_database(), "--files", files]
    pool = name.removeprefix("worker-")
    return worker_command(pool, worker_name(pool))


def workers_online(api: Api, pool: str) -> list[dict[str, Any]]:
    """The workers of a pool with a recent heartbeat in Prefect."""
    return [w for w in api.every(f"/work_pools/{pool}/workers/filter", {}) if w["status"] == "ONLINE"]


def rotate(log: Path, most: int = 4_000_000) -> None:
    """Keep one older log beside this one, and limit the size of both."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > most:
            log.replace(log.with_suffix(".log.1"))
