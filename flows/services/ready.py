"""Checks that services can start and are ready: ports, health, workers online, and the last log lines of a dead service."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from flows.machine.processes import command_of
from flows.machine.servers import basic, credentials, password_file
from flows.services.record import HomeRecord, Service, logs, read_record, worker_name, workers_online
from flows.services.rest import ApiError
from flows.services.serve import reserve
from storage.errors import ConfigError, OnwardError

START_SECONDS = 240.0

Say = Callable[[str], None]


def check_ports(record: HomeRecord, found: dict[str, Service]) -> None:
    """Raises ConfigError if a port that a server needs is taken by a process other than `found`; names that process."""
    for name, title, port in (
        ("prefect", "Prefect server", record.prefect_port),
        ("mlflow", "MLflow server", record.mlflow_port),
    ):
        if name in found:
            continue
        try:
            reserve("127.0.0.1", port).close()
            taken = _listened_on(port)
        except (OSError, OverflowError) as error:
            taken = str(error)
        if taken:
            raise ConfigError(
                f"port {port} for the {title} is taken: {_holder(port) or taken}. "
                f"End that, or choose another port: onward up --{name}-port {port + 1}"
            )


def _listened_on(port: int) -> str:
    """Whether somebody listens, in words. A server of this user's other home lets us bind its port beside it."""
    with socket.socket() as probe:
        probe.settimeout(5)
        return "another program listens on it" if probe.connect_ex(("127.0.0.1", port)) == 0 else ""


def _holder(port: int) -> str:
    """The process that listens there, if this user may know it."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                if connection.pid:
                    return f"process {connection.pid} ({command_of(connection.pid)[:80]}) listens on it"
                return "another program listens on it"
    return ""


def wait_for(ready: Callable[[], bool], name: str, say: Say) -> None:
    """Wait until a service is ready. Raises OnwardError with its last log lines if it died or is too slow."""
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
    """The end of a log, and the path of the whole log."""
    text = ""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        text = file.read().decode(errors="replace")
    shown = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join([*(f"  {line}" for line in shown), f"(the whole log: {log})"])


def answers(address: str) -> bool:
    """Whether a server answers 200 at this address within five seconds."""
    return _status(address) == 200


def unguarded(record: HomeRecord, name: str) -> str | None:
    """Why a running server of the home has to be started again: it asks for no password, or for another one."""
    address = {"prefect": f"{record.prefect}/api/admin/version", "mlflow": f"{record.mlflow}/version"}[name]
    if _status(address) == 200:
        return f"{name} runs without a password, as older versions started it"
    known = credentials()
    if known is not None and _status(address, {"Authorization": basic(known)}) == 401:
        return f"{name} runs with another password than {password_file()}"
    return None


def _status(address: str, headers: Mapping[str, str] | None = None) -> int:
    """The HTTP status of an address; 0 without an answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, headers=dict(headers or {})), timeout=5
        ) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def online(record: HomeRecord, pool: str) -> bool:
    """Whether this home's worker of the pool has sent a heartbeat since it was started."""
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


def _seconds(moment: str | None) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp() if moment else 0.0
