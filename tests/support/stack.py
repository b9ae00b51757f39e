"""The services of compose.yaml as processes of this machine, around a real PostgreSQL.

Commands, environments and health checks are taken from the parsed file. Only what the containers' world gives is
replaced: names of services by 127.0.0.1, ports by free ones, mount points by directories. What is started here runs
in process groups of its own, and is ended by `Stack.close`, whatever happened.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, composed
from tests.support.operated import free_port

STARTS_WITHIN_SECONDS = 240.0


def postgresql() -> Path:
    """The directory of PostgreSQL's programs; skips where it cannot be had."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if path := shutil.which("initdb"):
        return Path(path).parent
    pytest.skip("no PostgreSQL (Debian: apt-get install postgresql)")


class Database:
    """A PostgreSQL cluster of its own on a free port, as a user that is not root, which it refuses."""

    def __init__(self, programs: Path, password: str) -> None:
        self.programs = programs
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="onward-postgres-", dir="/tmp"))
        self.user = _someone() if os.geteuid() == 0 else None
        (self.directory / "password").write_text(password)
        if self.user is not None:
            for path in (self.directory, self.directory / "password"):
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        self._do(
            "initdb",
            "--pgdata=data",
            "--username=postgres",
            "--auth=scram-sha-256",
            "--pwfile=password",
            "--no-sync",
        )
        self.start()

    def start(self) -> None:
        """Start it (again); returns before it answers."""
        self.process = self._popen(
            "postgres", "-D", "data", "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.directory)
        )

    def crash(self) -> None:
        """Immediate shutdown: connections are cut, nothing is written any more."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def _popen(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        as_user: dict[str, Any] = {}
        if self.user is not None:
            as_user = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self.programs / program), *arguments],
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **as_user,
            )

    def _do(self, program: str, *arguments: str) -> None:
        process = self._popen(program, *arguments)
        assert process.wait(120) == 0, (self.directory / "log").read_text()

    def close(self) -> None:
        """Fast shutdown, then away with it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)
        _end_group(self.process)
        shutil.rmtree(self.directory, ignore_errors=True)


class Stack:
    """The services by name; `home` stands for the volume /onward of workers and deployments."""

    def __init__(self, home: Path) -> None:
        self.programs = postgresql()
        self.home = home
        self.services = composed.services(None, "--profile", "gpu")
        self.database = Database(self.programs, composed.SECRETS["POSTGRES_PASSWORD"])
        self.ports = {"5432": self.database.port, "4200": free_port(), "5000": free_port()}
        self.health_ports = {name: free_port() for name in self.services}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.prefect = f"http://127.0.0.1:{self.ports['4200']}/api"
        self.mlflow = f"http://127.0.0.1:{self.ports['5000']}"

    def here(self, service: str, text: str) -> str:
        """A value of the file as it has to be on this machine."""
        text = re.sub(r"^(--host=)?0\.0\.0\.0$", r"\g<1>127.0.0.1", text)
        text = re.sub(r"(?<=//)(prefect|mlflow)(?=:)", "127.0.0.1", text)
        for port, mine in {**self.ports, "8080": self.health_ports[service]}.items():
            text = re.sub(rf"\b{port}\b", str(mine), text)
        places = {
            "/onward": self.home,
            "/mlflow": self.home.parent / "mlflow",
            "/prefect": self.home.parent / "prefect",
            "/app": ROOT,
            "/docker": ROOT / "docker",
        }
        return re.sub(
            r"^(--\S+=)?(/onward|/mlflow|/prefect|/app|/docker)(?=/|$)",
            lambda found: (found[1] or "") + str(places[found[2]]),
            text,
        )

    def environment(self, service: str) -> dict[str, str]:
        """What the container's process would see: the image's search path and the file's variables, no more."""
        said = self.services[service].get("environment") or {}
        secrets = set(composed.SECRETS.values())
        variables = {
            name: str(value)
            if any(secret in str(value) for secret in secrets)
            else self.here(service, str(value))
            for name, value in said.items()
        }
        for name in variables.keys() & {"PGHOST", "PREFECT_SERVER_DATABASE_HOST"}:
            assert variables[name] == "postgres"
            variables[name] = "127.0.0.1"
        path = os.pathsep.join([str(Path(sys.executable).parent), str(self.programs), "/usr/bin", "/bin"])
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8", **variables}

    def command(self, service: str) -> list[str]:
        """Its command line."""
        return [self.here(service, word) for word in self.services[service]["command"]]

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own; its output goes to `<service>.log` beside home."""
        with self.log(service).open("ab") as log:
            process = subprocess.Popen(
                self.command(service),
                env=self.environment(service),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[service] = process
        return process

    def run(self, service: str, timeout: float = 300) -> str:
        """A one-shot service to its end; returns what it said."""
        began = self.log(service).stat().st_size if self.log(service).exists() else 0
        code = self.start(service).wait(timeout)
        said = self.log(service).read_bytes()[began:].decode()
        assert code == 0, f"{service} ended with {code}:\n{said[-4000:]}"
        return said

    def log(self, service: str) -> Path:
        """Where its output goes."""
        return self.home.parent / f"{service}.log"

    def healthy(self, service: str) -> bool:
        """Its health check, run once as the engine would."""
        kind, *command = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        answer = subprocess.run(
            [self.here(service, word) for word in command]
            + (["--port", str(self.database.port)] if service == "postgres" else []),
            env=self.environment(service),
            capture_output=True,
            timeout=30,
        )
        return answer.returncode == 0

    def wait(self, service: str) -> float:
        """Seconds until its health check passes; fails where it ends or takes too long."""
        began = time.monotonic()
        while time.monotonic() - began < STARTS_WITHIN_SECONDS:
            process = self.processes.get(service)
            ended = process is not None and process.poll() is not None
            assert not ended, f"{service} ended:\n{self.tail(service)}"
            if self.healthy(service):
                return time.monotonic() - began
            time.sleep(0.5)
        raise AssertionError(f"{service} is not healthy:\n{self.tail(service)}")

    def tail(self, service: str) -> str:
        """The end of what it said."""
        return self.log(service).read_text()[-4000:] if self.log(service).exists() else ""

    def needs(self, service: str) -> dict[str, str]:
        """What it waits for, and for which condition."""
        depends = self.services[service].get("depends_on") or {}
        return {name: said["condition"] for name, said in depends.items()}

    def up(self, service: str) -> None:
        """Start a service after all that it waits for, as `compose up` does."""
        for name, condition in self.needs(service).items():
            if name == "postgres":
                self.wait(name)
            elif name not in self.processes:
                self.up(name)
            elif condition == "service_healthy":
                self.wait(name)
        if self.services[service]["restart"] == "on-failure":
            self.run(service)
        else:
            self.start(service)
            self.wait(service)

    def close(self) -> None:
        """End everything, the last started first."""
        for process in reversed(self.processes.values()):
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            _end_group(process)
        self.database.close()


def ask(
    url: str,
    body: Any = None,
    *,
    user: str | None = None,
    password: str = "",
    method: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """(status, answer) of a request, JSON where it is; with basic authentication where a user is given."""
    sent = {"Content-Type": "application/json", **(headers or {})}
    if user is not None:
        sent["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, sent, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, content = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    with contextlib.suppress(ValueError):
        return status, json.loads(content or b"null")
    return status, content.decode(errors="replace")


def _someone() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    pytest.skip("no user but root, as which PostgreSQL does not run")


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
