"""A home operated as its users would: `onward up`, runs started over Prefect's API, faults, retries, `onward down`.

Used by the tests of faults and by `benchmarks/faults.py`, which prints what they measure.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from flows.machine.servers import basic
from tests.support.small import ONWARD, environment, write_config

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Operated:
    """A project directory with a small configuration whose training lasts long enough to be disturbed."""

    def __init__(self, home: Path, budgets: tuple[str, ...] = ("600K",), **over: Any) -> None:
        self.home = home
        self.ports = (free_port(), free_port())
        self.api_url = f"http://127.0.0.1:{self.ports[0]}/api"
        home.mkdir(parents=True, exist_ok=True)
        (home / "configs").mkdir(exist_ok=True)
        self.config = write_config(home, "store", budgets, **over)

    def environment(self) -> dict[str, str]:
        """Of a command of this home."""
        return {**environment(self.home), "PREFECT_HOME": str(self.home / ".onward" / "prefect")}

    def command(self, *arguments: Any, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command of Onward's to its end; fails where it does."""
        answer = subprocess.run(
            [*ONWARD, *map(str, arguments)],
            env=self.environment(),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert answer.returncode == 0, f"{arguments}: {answer.stdout[-2000:]}\n{answer.stderr[-4000:]}"
        return answer

    def up(self) -> str:
        """Start the servers, the worker and the deployments."""
        prefect, mlflow = self.ports
        return self.command("up", self.config, "--prefect-port", prefect, "--mlflow-port", mlflow).stdout

    def down(self) -> str:
        """Stop them."""
        return self.command("down").stdout

    @property
    def credentials(self) -> str:
        """`user:password` of both servers."""
        return "onward:" + (self.home / ".onward" / "password").read_text().strip()

    def api(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """Prefect's REST API, which the UI uses too."""
        data = None if method == "GET" else json.dumps(body or {}).encode()
        headers = {"Content-Type": "application/json", "Authorization": basic(self.credentials)}
        request = urllib.request.Request(self.api_url + path, data, headers, method=method)
        for pause in (0.5, 1, 2, 4, 8, None):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if (
                    error.code != 503 or pause is None
                ):  # SQLite is locked: ask again, as Prefect's client does
                    raise
                time.sleep(pause)

    def start(
        self, store: str, deployment: str = "pretrain/small", executor: str | None = None, **over: Any
    ) -> str:
        """Start a run of the deployment in a store of its own, its corpus stages at `executor`; returns its id."""
        found = self.api(f"/deployments/name/{deployment}", method="GET")
        parameters = json.loads(json.dumps(found["parameters"]))
        parameters["config"]["store"] = str(self.home / store)
        if executor:
            parameters["config"]["corpus"]["execution"] |= {"executor": executor}
        parameters |= over
        created = self.api(f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
        return str(created["id"])

    def state(self, run: str) -> dict[str, Any]:
        """The flow run's state."""
        found: dict[str, Any] = self.api(f"/flow_runs/{run}", method="GET")
        return found["state"] or {}

    def wait(self, run: str, *types: str, seconds: float = 240) -> float:
        """Seconds until the run is in one of the states; fails where it ends in another, or not in time."""
        began = time.monotonic()
        state: dict[str, Any] = {}
        while time.monotonic() - began < seconds:
            with contextlib.suppress(OSError):
                state = self.state(run)
                if state.get("type") in types:
                    return time.monotonic() - began
                if state.get("type") in ENDED:
                    break
            time.sleep(0.25)
        raise AssertionError(
            f"waited for {types}, found {state.get('name')}: {state.get('message')}\n{self.logs(run)}"
        )

    def retry(self, run: str) -> None:
        """What the button `Retry` does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        self.api(f"/flow_runs/{run}/set_state", {"state": state, "force": True})

    def cancel(self, run: str) -> None:
        """What the button `Cancel` does."""
        self.api(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def tasks(self, run: str) -> list[dict[str, Any]]:
        """The flow run's task runs."""
        body = {"flow_runs": {"id": {"any_": [run]}}, "limit": 200, "sort": "EXPECTED_START_TIME_ASC"}
        found: list[dict[str, Any]] = self.api("/task_runs/filter", body)
        return found

    def logs(self, run: str) -> str:
        """The flow run's log, a line each."""
        with contextlib.suppress(OSError):
            rows = self.api("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
            return "\n".join(row["message"] for row in rows)
        return ""

    def services(self) -> dict[str, int]:
        """Process ids of the supervisor and its services, by name."""
        known = json.loads((self.home / ".onward" / "services.json").read_text())
        return {
            "supervisor": int(known["pid"]),
            **{
                name: int(service["pid"]) for name, service in known["services"].items() if service.get("pid")
            },
        }

    def flow_process(self, run: str) -> int:
        """The process that executes the flow run."""
        found = self.api(f"/flow_runs/{run}", method="GET")["infrastructure_pid"]
        return int(str(found).rsplit(":", 1)[-1])

    def processes(self) -> Iterator[tuple[int, str]]:
        """(pid, command line) of every process that belongs to this home."""
        for process in psutil.process_iter(["environ", "cmdline"]):
            own = (process.info["environ"] or {}).get("ONWARD_HOME") == str(self.home)
            line = " ".join(process.info["cmdline"] or ())
            if own and line and process.pid != os.getpid():
                yield process.pid, line[:160]

    def kill_everything(self) -> None:
        """What a power cut does to the processes of this home."""
        while found := list(self.processes()):
            for pid, _ in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def training(self, store: str) -> tuple[int, int]:
        """(last step in the journal, step of the newest checkpoint) of the training under way; zeros without one."""
        step = checkpoint = 0
        for work in (self.home / store / ".work").glob("train-*"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                names = [int(p.name.removeprefix("step-")) for p in (work / "checkpoints").glob("step-*")]
                lines = (work / "journal.jsonl").read_bytes().split(b"\n")[:-1]
                checkpoint = max(checkpoint, *names) if names else checkpoint
                step = max(step, int(json.loads(lines[-1])["step"]))
        return step, checkpoint

    def wait_training(self, store: str, beyond: int = 40, seconds: float = 240) -> tuple[int, int]:
        """Wait until the long training has passed a step and has a checkpoint."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            step, checkpoint = self.training(store)
            if step > beyond and checkpoint > beyond // 2:
                return step, checkpoint
            time.sleep(0.1)
        raise AssertionError(f"no training in {store} after {seconds:.0f} s")

    def left(self, store: str) -> list[str]:
        """Processes that name the store or hold its files: trainers, shard workers, flows."""
        found = []
        root = str(self.home / store)
        for pid, line in self.processes():
            held: list[str] = []
            with contextlib.suppress(OSError):
                held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
            if root in line or any(name.startswith(root) for name in held):
                found.append(f"{pid} {line}")
        return found
