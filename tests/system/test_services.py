"""`onward up`, `status`, `down`: the real servers, in a home of their own. One `up` serves most tests, in this order."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.machine.processes import alive
from flows.machine.servers import basic
from tests.support import intruders
from tests.support.operated import Operated, free_port
from tests.support.small import ONWARD

TOY = """
import time
from prefect import flow, task
from flows.machine.environment import outlive_readers

@task
def nap(seconds):
    time.sleep(seconds)

@flow
def sleeper(seconds: float = 600):
    outlive_readers()
    nap(seconds)
"""


class Home(Operated):
    """A home with a flow that only sleeps, in both pools; its second worker serves the pool `gpu`."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "ONWARD_POOL": "gpu", "PREFECT_API_KEY": "stray"}

    def deploy_sleeper(self) -> None:
        (self.home / "toy.py").write_text(TOY)
        flow = self.api("/flows/", {"name": "sleeper"})
        for pool in ("cpu", "gpu"):
            body = {"flow_id": flow["id"], "name": pool, "work_pool_name": pool, "entrypoint": "toy.sleeper"}
            self.api("/deployments/", {**body, "job_variables": {"working_dir": str(self.home)}})

    def sleep(self, pool: str = "cpu", seconds: float = 600) -> str:
        found = self.api(f"/deployments/name/sleeper/{pool}", method="GET")
        made = self.api(f"/deployments/{found['id']}/create_flow_run", {"parameters": {"seconds": seconds}})
        return str(made["id"])

    def sleeping(self, pool: str = "cpu") -> str:
        """A run whose task is at work."""
        run = self.sleep(pool)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if any(task["state_type"] == "RUNNING" for task in self.tasks(run)):
                return run
            time.sleep(0.3)
        raise AssertionError(f"{self.state(run)}: its task does not run\n{self.logs(run)}")

    def flow_process(self, run: str) -> int:
        pid = self.api(f"/flow_runs/{run}", method="GET")["infrastructure_pid"]
        return int(str(pid).rpartition(":")[2])

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / ".onward" / "services.json").read_text())
        return found

    def onward(self, *arguments: Any) -> subprocess.CompletedProcess[str]:
        """A command that may fail."""
        return subprocess.run(
            [*ONWARD, *map(str, arguments)],
            env=self.environment(),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=400,
        )

    def stop(self) -> None:
        """Leave nothing behind, however the test ended."""
        try:
            self.onward("down")
        finally:
            self.kill_everything()


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Home]:
    made = Home(tmp_path_factory.mktemp("operated"))
    try:
        said = made.up()
        (made.home / "said").write_text(said)
        made.deploy_sleeper()
        yield made
    finally:
        made.stop()


def answer(address: str) -> int:
    request = urllib.request.Request(address, headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=10) as found:
        return int(found.status)


def wait_until(what: Any, seconds: float = 180) -> float:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if what():
            return time.monotonic() - began
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:.0f} s")


@pytest.mark.slow
def test_up_starts_everything_from_nothing_and_says_where(home):
    said = (home.home / "said").read_text()
    prefect, mlflow = (f"http://127.0.0.1:{port}" for port in home.ports)
    assert prefect in said and mlflow in said
    assert answer(f"{prefect}/api/health") == 200
    assert answer(f"{prefect}/dashboard") == 200
    assert answer(f"{mlflow}/health") == 200
    names = {row["name"] for row in home.api("/deployments/filter")}
    assert {"small", "nightly-demo"} <= names
    for pool in ("cpu", "gpu"):
        workers = home.api(f"/work_pools/{pool}/workers/filter")
        assert [worker["status"] for worker in workers] == ["ONLINE"]
    written = {path.name for path in (home.home / ".onward").iterdir()}
    assert {"prefect", "mlflow", "logs", "services.json"} <= written


@pytest.mark.slow
def test_servers_listen_on_the_loopback_address_alone(home):
    import psutil

    for name, port in zip(("prefect", "mlflow"), home.ports, strict=True):
        service = psutil.Process(home.services()[name])
        tree = [service, *service.children(recursive=True)]
        found = {
            c.laddr.ip for process in tree for c in process.net_connections("tcp") if c.status == "LISTEN"
        }
        assert found == {"127.0.0.1"}, f"{name} on {port}: {found}"


@pytest.mark.slow
def test_no_page_no_foreign_name_and_nobody_without_the_password_is_let_in(home):
    prefect, mlflow = home.ports
    known = home.credentials
    assert intruders.let_in(prefect, intruders.PREFECT, known) == []
    assert intruders.let_in(mlflow, intruders.MLFLOW, known) == []
    assert intruders.without_password(prefect, intruders.PREFECT, "admin:pass") == []
    assert intruders.without_password(mlflow, intruders.MLFLOW, "admin:password1234") == []
    every = intruders.prefect_routes(prefect)
    assert len(every) > 150
    open_ = [route for route, status, _ in intruders.Asker(prefect).statuses(every, {}) if status != 401]
    assert open_ == [("GET", "/api/health"), ("GET", "/api/ready")]
    assert intruders.websockets_let_in(prefect, known) == []
    ours = {"Authorization": basic(known), "Origin": f"http://127.0.0.1:{mlflow}"}
    search = ("POST", "/ajax-api/2.0/mlflow/runs/search")
    assert [status for _, status, _ in intruders.Asker(mlflow).statuses([search], ours)] == [200]


@pytest.mark.slow
def test_the_owner_is_told_the_password_and_no_file_but_its_own_has_it(home):
    known = home.credentials
    said = (home.home / "said").read_text()
    assert "onward status" in said and known.partition(":")[2] not in said
    found = json.loads(home.command("status", "--json").stdout)
    assert found["credentials"] == {"prefect": known, "mlflow": known}
    assert known not in home.command("status").stdout, "which is no terminal here"
    lines = [line for _, line in home.processes()]
    assert lines and not [line for line in lines if known.partition(":")[2] in line]


@pytest.mark.slow
def test_up_again_finds_what_runs_and_deploys_again(home):
    before = home.services()
    deployments = {row["id"] for row in home.api("/deployments/filter")}
    said = home.command("up", home.config, "--prefect-port", 1).stdout
    assert "runs already: mlflow, prefect, worker-cpu, worker-gpu" in said
    assert f"it runs on {home.ports[0]}" in said, "another port is not taken silently"
    assert home.services() == before
    assert {row["id"] for row in home.api("/deployments/filter")} == deployments


@pytest.mark.slow
def test_a_command_in_this_home_reports_to_these_servers(home):
    code = (
        "import json, os; from flows.machine.environment import prepare; prepare(); "
        "names = ['PREFECT_API_URL', 'MLFLOW_TRACKING_URI', 'ONWARD_MLFLOW_LOCAL', 'PREFECT_API_KEY', "
        "'PREFECT_API_AUTH_STRING']; "
        "print(json.dumps([os.environ.get(name) for name in names]))"
    )

    def prepared(**own: str) -> list[str | None]:
        environment = {**home.environment(), **own}
        found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        values: list[str | None] = json.loads(found.stdout)
        return values

    prefect, mlflow = (f"http://127.0.0.1:{port}" for port in home.ports)
    assert prepared() == [f"{prefect}/api", mlflow, "1", None, home.credentials], (
        "and a stray key does not lock it out"
    )
    elsewhere = prepared(PREFECT_API_URL="http://other/api", MLFLOW_TRACKING_URI="http://other")
    assert elsewhere == ["http://other/api", "http://other", None, "stray", None], "what a person sets stays"


@pytest.mark.slow
def test_a_second_run_in_the_gpu_pool_waits_says_for_whom_and_starts_by_itself(home):
    first = home.sleeping("gpu")
    second = home.sleep("gpu", seconds=1)
    wait_until(lambda: home.state(second)["name"] == "Waiting")
    name = home.api(f"/flow_runs/{first}", method="GET")["name"]
    assert name in home.state(second)["message"]
    said = home.command("status").stdout
    assert "waiting" in said and "nap" in said, "status names who waits, and the stage at work"
    found = json.loads(home.command("status", "--json").stdout)
    assert [run["id"] for run in found["runs"]["waiting"]] == [second]
    assert [run["id"] for run in found["runs"]["running"]] == [first]
    assert {row["name"] for row in found["services"]} >= {"prefect", "mlflow", "worker-cpu", "supervisor"}
    home.cancel(first)
    home.wait(first, "CANCELLED")
    home.wait(second, "COMPLETED", seconds=240)


@pytest.mark.slow
def test_a_worker_and_its_run_killed_end_crashed_and_the_worker_is_started_again(home):
    run = home.sleeping()
    worker, process = home.services()["worker-cpu"], home.flow_process(run)
    os.kill(worker, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    assert home.wait(run, "CRASHED", seconds=120) < 90, "by the sweep: heartbeats say it later"
    assert "Retry this run" in home.state(run)["message"]
    wait_until(lambda: all(task["state_type"] == "CRASHED" for task in home.tasks(run)))
    wait_until(lambda: home.services().get("worker-cpu", worker) != worker)
    assert home.record()["services"]["worker-cpu"]["deaths"] == 1
    home.wait(home.sleep(seconds=0), "COMPLETED", seconds=240)


@pytest.mark.slow
def test_a_run_without_its_worker_goes_on_and_can_be_cancelled(home):
    run = home.sleeping()
    os.kill(home.services()["worker-cpu"], signal.SIGKILL)
    process = home.flow_process(run)
    time.sleep(12)
    assert home.state(run)["type"] == "RUNNING", "its process lives, so it does"
    home.cancel(run)
    wait_until(lambda: home.state(run)["type"] == "CANCELLED", 240)
    wait_until(lambda: not Path(f"/proc/{process}").exists())


@pytest.mark.slow
def test_the_doctor_finds_all_in_place(home):
    found = home.onward("doctor", home.config)
    assert found.returncode == 0, found.stdout
    for line in ("✓ scheduler", "✓ pool cpu", "✓ automations", "✓ mlflow       http", "✓ clock"):
        assert line in found.stdout


@pytest.mark.slow
def test_a_killed_supervisor_is_followed_by_one_that_takes_over_and_down_leaves_nothing(home):
    before = home.services()
    run = home.sleeping()
    os.kill(before["supervisor"], signal.SIGKILL)
    os.kill(before["mlflow"], signal.SIGKILL)
    wait_until(lambda: not alive(before["supervisor"], home.record()["started"]))
    assert "the supervisor is gone" in home.command("status").stdout
    assert "taken over" in home.command("up", home.config).stdout
    after = home.services()
    for name in ("supervisor", "mlflow"):
        assert after.pop(name) != before.pop(name)
    assert after == before, "what ran was not disturbed"
    assert home.state(run)["type"] == "RUNNING"
    os.kill(home.services()["supervisor"], signal.SIGKILL)
    said = home.down()
    for line in ("worker-cpu stopped", "worker-gpu stopped", "mlflow stopped", "prefect stopped"):
        assert line in said
    assert list(home.processes()) == []
    state, message, tasks = _left_in_the_database(home, run)
    assert (state, tasks) == ("CRASHED", ["CRASHED"])
    assert "onward down" in message and "Retry this run" in message
    assert home.down() == "nothing runs\n"
    assert "nothing runs here" in home.command("status").stdout


def _left_in_the_database(home: Home, run: str) -> tuple[str, str, list[str]]:
    """(state, message, states of the tasks) of a run, as the next `up` will show them."""
    database = sqlite3.connect(home.home / ".onward" / "prefect" / "prefect.db")
    try:
        query = "select r.state_type, s.message from flow_run r join flow_run_state s on s.id = r.state_id where r.id = ?"
        state, message = database.execute(query, [run]).fetchone()
        rows = database.execute("select state_type from task_run where flow_run_id = ?", [run]).fetchall()
        return state, message, [row[0] for row in rows]
    finally:
        database.close()


def test_a_port_that_is_taken_is_named_with_the_option_that_helps(tmp_path):
    made = Home(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = made.onward("up", made.config, "--prefect-port", free_port(), "--mlflow-port", port)
    assert found.returncode == 2
    assert f"port {port} for the MLflow server is taken" in found.stderr
    assert f"process {os.getpid()}" in found.stderr and "--mlflow-port" in found.stderr
    assert list(made.processes()) == []


@pytest.mark.slow
def test_a_server_that_does_not_start_is_told_with_its_last_words_and_the_others_are_stopped(tmp_path):
    made = Home(tmp_path)
    (tmp_path / ".onward" / "mlflow").mkdir(parents=True)
    (tmp_path / ".onward" / "mlflow" / "mlflow.db").write_text("no database " * 100)
    try:
        prefect, mlflow = made.ports
        found = made.onward("up", made.config, "--prefect-port", prefect, "--mlflow-port", mlflow)
        assert found.returncode == 1
        assert "mlflow did not start" in found.stderr and "not a database" in found.stderr
        assert str(tmp_path / ".onward" / "logs" / "mlflow.log") in found.stderr
        assert list(made.processes()) == []
    finally:
        made.stop()
