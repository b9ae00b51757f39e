"""A real Prefect server for tests: on a free port, in a home of its own, gone with the block, whatever happens in it.

with PrefectServer(home) as server:
    server.deploy(config)
    with server.worker():
        run = server.start("pretrain/small", until="tokenize")
        server.wait(run, "COMPLETED")
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from flows.machine.environment import worker_command
from tests.support import ROOT

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Refused(Exception):
    """The server answered with an error; `status` and `detail` are its own."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail


class PrefectServer:
    """The server, and what a person does with it over the API that the UI uses too."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = _free_port()
        self.ui = f"http://127.0.0.1:{self.port}"
        self.api_url = f"{self.ui}/api"
        self.database = home / ".onward" / "prefect" / "prefect.db"

    def __enter__(self) -> PrefectServer:
        (self.home / ".onward" / "prefect").mkdir(parents=True, exist_ok=True)
        command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = self.popen([sys.executable, "-m", *command], "server.log")
        try:
            self._wait_healthy()
        except BaseException:
            stop(self._process)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._process)

    def kill(self) -> None:
        """What a crash of the server does; `with` on this server again starts it on the same port and database."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def environment(self) -> dict[str, str]:
        """Of a process that works with this server, in this home."""
        foreign = ("PREFECT_", "MLFLOW_", "ONWARD_")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(foreign)},
            "ONWARD_HOME": str(self.home),
            "PREFECT_HOME": str(self.home / ".onward" / "prefect"),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_API_URL": self.api_url,
            "PREFECT_UI_URL": self.ui,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PYTHONPATH": str(ROOT),
            "PYTHONSAFEPATH": "1",
            "DO_NOT_TRACK": "true",
            "HF_HUB_OFFLINE": "1",
        }

    def popen(self, command: list[str], log: str, **over: str) -> subprocess.Popen[bytes]:
        """A process in a group of its own, in this home; `stop` ends it."""
        with (self.home / log).open("ab") as output:
            return subprocess.Popen(
                command,
                env={**self.environment(), **over},
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def python(self, *arguments: str, **over: str) -> subprocess.CompletedProcess[str]:
        """`python -m …` in this home, to its end."""
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            env={**self.environment(), **over},
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def deploy(self, *configs: Path, **over: str) -> list[str]:
        """`python -m flows.services.deploy`; the lines that it prints."""
        answer = self.python("flows.services.deploy", *map(str, configs), **over)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.splitlines()

    @contextlib.contextmanager
    def worker(self, pool: str = "cpu", **over: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process worker on the pool, while the block runs."""
        process = self.popen(worker_command(pool, f"{pool} of a test"), "worker.log", **over)
        try:
            yield process
        finally:
            stop(process)

    def api(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """Prefect's REST API; raises Refused. A database that is busy for a moment is asked again."""
        for pause in (0.2, 0.5, 1, 2, 4):
            try:
                return self._call(path, body, method)
            except Refused as refused:
                if refused.status != 503:
                    raise
            time.sleep(pause)
        return self._call(path, body, method)

    def _call(self, path: str, body: Any, method: str) -> Any:
        data = None if method == "GET" else json.dumps({} if body is None else body).encode()
        request = urllib.request.Request(
            self.api_url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode(errors="replace")) from error

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by its name, `flow/name`."""
        found: dict[str, Any] = self.api(f"/deployments/name/{name}", method="GET")
        return found

    def start(self, deployment: str, **parameters: Any) -> str:
        """What the form's button does; returns the flow run's id. Raises Refused."""
        deployed = self.deployment(deployment)["id"]
        created = self.api(f"/deployments/{deployed}/create_flow_run", {"parameters": parameters})
        return str(created["id"])

    def wait(self, run: str, *types: str, seconds: float = 240) -> dict[str, Any]:
        """The flow run, once it is in one of the states; fails where it ends in another, or not in time."""
        until = time.monotonic() + seconds
        found: dict[str, Any] = {}
        while time.monotonic() < until:
            found = self.api(f"/flow_runs/{run}", method="GET")
            if found["state_type"] in types:
                return found
            if found["state_type"] in ENDED:
                break
            time.sleep(0.3)
        state = found.get("state") or {}
        raise AssertionError(
            f"waited for {types}, found {state.get('name')}: {state.get('message')}\n{self.logs(run)}"
        )

    def logs(self, run: str) -> str:
        """The flow run's log."""
        rows = self.api("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
        return "\n".join(row["message"] for row in rows)

    def _wait_healthy(self) -> None:
        for _ in range(4000):
            assert self._process.poll() is None, (self.home / "server.log").read_text()[-3000:]
            with contextlib.suppress(OSError, Refused):
                if self.api("/health", method="GET"):
                    return
            time.sleep(0.1)
        raise AssertionError("the server did not answer within minutes")


def task_states(database: Path, flow_run: str) -> dict[str, int]:
    """How many of a flow run's tasks are in a state of each name, as Prefect's database has them."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        rows = connection.execute(
            "select state_name, count(*) from task_run where flow_run_id = ? group by 1", [flow_run]
        ).fetchall()
    return dict(rows)


def flow_run_state(database: Path, flow_run: str) -> str:
    """The name of a flow run's state, as Prefect's database has it."""
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
        [(name,)] = connection.execute("select state_name from flow_run where id = ?", [flow_run]).fetchall()
    return str(name)


def kill_own_server(run: int, seconds: float = 60) -> int:
    """Kill the Prefect server that a run (by its pid) started for itself. Returns the server's pid."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for child in psutil.Process(run).children():
            if "flows.services.server" in child.cmdline():
                child.kill()
                return child.pid
        time.sleep(0.05)
    raise AssertionError(f"process {run} has no Prefect server")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group: first politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
