"""Every command of compose.yaml, started: servers with passwords, deployments, workers, a run, and a stop in its middle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import ROOT, composed, intruders
from tests.support.small import write_config
from tests.support.stack import Stack, ask

pytestmark = pytest.mark.slow
PASSWORD = composed.SECRETS["PREFECT_PASSWORD"]
MLFLOW_PASSWORD = composed.SECRETS["MLFLOW_ADMIN_PASSWORD"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Iterator[Stack]:
    """Everything up, in the file's own order."""
    home = tmp_path_factory.mktemp("composed") / "onward"
    (home / "configs").mkdir(parents=True)
    write_config(home, budgets=("8K",)).rename(home / "configs" / "small.yaml")
    stack = Stack(home)
    try:
        for service in ("worker-cpu", "worker-gpu"):
            stack.up(service)
        yield stack
    finally:
        stack.close()


def prefect(stack: Stack, path: str, body: Any = None, method: str | None = None) -> Any:
    """An answer of Prefect's API, which the UI uses too."""
    status, answer = ask(stack.prefect + path, body, user="admin", password=PASSWORD, method=method)
    assert status in (200, 201), (path, status, answer)
    return answer


def mlflow(stack: Stack, path: str, body: Any) -> Any:
    """An answer of MLflow's API."""
    status, answer = ask(f"{stack.mlflow}/api/2.0/mlflow{path}", body, user="admin", password=MLFLOW_PASSWORD)
    assert status == 200, (path, status, answer)
    return answer


def start(stack: Stack, **config: Any) -> str:
    """Start the deployment of the small configuration; the flow run's id."""
    found = prefect(stack, "/deployments/name/pretrain/small")
    parameters = found["parameters"]
    parameters["config"] |= config
    created = prefect(stack, f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})
    return str(created["id"])


def wait_for(stack: Stack, run: str, *types: str, seconds: float = 300) -> dict[str, Any]:
    """The run's state once it is of one of these types."""
    until = time.monotonic() + seconds
    state: dict[str, Any] = {}
    while time.monotonic() < until:
        state = prefect(stack, f"/flow_runs/{run}")["state"] or {}
        if state.get("type") in types:
            return state
        assert state.get("type") not in ("FAILED", "CRASHED", "COMPLETED", "CANCELLED"), (
            state,
            logs(stack, run),
        )
        time.sleep(0.5)
    raise AssertionError(f"{state}\n{logs(stack, run)}\n{stack.tail('worker-cpu')}")


def logs(stack: Stack, run: str) -> str:
    rows = prefect(stack, "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200})
    return "\n".join(row["message"] for row in rows)


def test_prefect_answers_to_the_password_and_to_nothing_else(stack):
    path = f"{stack.prefect}/flows/filter"
    assert ask(path, {}, user="admin", password=PASSWORD)[0] == 200
    for wrong in ({}, {"user": "admin", "password": "admin"}, {"user": "x", "password": PASSWORD}):
        assert ask(path, {}, **wrong)[0] == 401
    assert ask(f"{stack.prefect}/health")[0] == 200, "a health check needs none, and tells nothing"


def test_mlflow_answers_to_the_password_under_the_names_that_it_knows(stack):
    path, body = f"{stack.mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 5}
    port = stack.ports["5000"]
    right = {"user": "admin", "password": MLFLOW_PASSWORD}
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"mlflow:{port}"):
        assert ask(path, body, headers={"Host": host}, **right)[0] == 200
        assert ask(path, body, headers={"Host": host})[0] == 401
        assert ask(path, body, headers={"Host": host}, user="admin", password="password1234")[0] == 401
    status, answer = ask(path, body, headers={"Host": f"evil.example.org:{port}"}, **right)
    assert status == 403 and "answers to" in answer


def test_no_page_no_foreign_name_and_nobody_without_a_password_is_let_in(stack):
    prefect, mlflow = (int(stack.ports[port]) for port in ("4200", "5000"))
    assert intruders.let_in(prefect, intruders.PREFECT, f"admin:{PASSWORD}") == []
    assert intruders.let_in(mlflow, intruders.MLFLOW, f"admin:{MLFLOW_PASSWORD}") == []
    assert intruders.without_password(prefect, intruders.PREFECT, "onward:x") == []
    assert intruders.websockets_let_in(prefect, f"admin:{PASSWORD}") == []


def test_each_server_has_a_database_of_its_own(stack):
    def psql(user: str, secret: str, database: str, query: str) -> subprocess.CompletedProcess[str]:
        environment = stack.environment("databases") | {
            "PGUSER": user,
            "PGPASSWORD": composed.SECRETS[secret],
        }
        command = ["psql", "-X", "-At", "-d", database, "-c", query]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    tables = "select count(*) from information_schema.tables where table_schema = 'public'"
    assert int(psql("prefect", "PREFECT_DATABASE_PASSWORD", "prefect", tables).stdout) > 20
    assert int(psql("mlflow", "MLFLOW_DATABASE_PASSWORD", "mlflow", tables).stdout) > 20
    across = psql("mlflow", "MLFLOW_DATABASE_PASSWORD", "prefect", "select 1")
    assert across.returncode != 0 and "permission denied" in across.stderr
    wrong = psql("prefect", "MLFLOW_DATABASE_PASSWORD", "prefect", "select 1")
    assert wrong.returncode != 0 and "password authentication failed" in wrong.stderr
    assert not list(stack.home.parent.rglob("*.db")), "nothing fell back to a SQLite file"


def test_the_one_shots_run_again_change_nothing(stack):
    def deployed() -> Any:
        rows = prefect(stack, "/deployments/filter", {})
        pools = prefect(stack, "/work_pools/filter", {})
        automations = prefect(stack, "/automations/filter", {})
        changing = {
            "updated",
            "last_polled",
            "status",
            "created",
            "last_run",
            "updated_by",
            "concurrency_options",
        }
        return json.dumps(
            [
                [_without(row, changing) for row in sorted(said, key=lambda row: row["name"])]
                for said in (rows, pools, automations)
            ],
            sort_keys=True,
        )

    before = deployed()
    assert '"small"' in before
    assert stack.run("databases").count("is ready") == 2
    said = stack.run("deploy")
    assert "pretrain/small (kept)" in said
    assert deployed() == before


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(item, names) for name, item in value.items() if name not in names}
    if isinstance(value, list):
        return [_without(item, names) for item in value]
    return value


def test_workers_are_online_in_their_pools(stack):
    for pool in ("cpu", "gpu"):
        workers = prefect(stack, f"/work_pools/{pool}/workers/filter", {})
        assert [(worker["name"], worker["status"]) for worker in workers] == [(f"worker-{pool}", "ONLINE")]
        assert stack.healthy(f"worker-{pool}")
    gpu = prefect(stack, "/work_pools/gpu")
    assert gpu["concurrency_limit"] == 1


@pytest.mark.parametrize("name", ["../x", "..", "/etc", "a/b", "a\0b"])
def test_a_run_whose_name_is_a_path_is_refused_with_the_field_named(stack, name):
    found = prefect(stack, "/deployments/name/pretrain/small")
    parameters = {**found["parameters"], "config": {**found["parameters"]["config"], "name": name}}
    url = f"{stack.prefect}/deployments/{found['id']}/create_flow_run"
    status, answer = ask(url, {"parameters": parameters}, user="admin", password=PASSWORD)
    assert status in (409, 422) and "name" in str(answer)


def test_everything_listens_on_loopback_where_it_is_told_to(stack):
    """The containers' 0.0.0.0 is the only address that the test replaces; nothing else listens anywhere."""
    seen = set()
    for process in stack.processes.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(process.pid)
            for one in (top, *top.children(recursive=True)):
                for connection in one.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        seen.add(connection.laddr.ip)
    assert seen == {"127.0.0.1"}


def test_a_run_ends_completed_and_its_scores_are_in_mlflow(stack):
    run = start(stack)
    assert wait_for(stack, run, "COMPLETED")["name"] == "Completed"
    experiment = mlflow_experiment(stack)
    found = mlflow(
        stack,
        "/runs/search",
        {"experiment_ids": [experiment["experiment_id"]], "filter": f"tags.`prefect.flow_run` = '{run}'"},
    )["runs"]
    assert len(found) == 1 and found[0]["info"]["status"] == "FINISHED"
    metrics = {metric["key"]: metric["value"] for metric in found[0]["data"]["metrics"]}
    assert metrics["perplexity/domain"] > 1 and metrics["perplexity/general"] > 1
    assert any(name.startswith("eval/continuation/") for name in metrics)
    assert experiment["artifact_location"].startswith("mlflow-artifacts:"), "files go through the server"
    assert list((stack.home.parent / "mlflow" / "files").rglob("report.html"))
    assert not (stack.home / ".onward" / "mlflow").exists(), "no database of its own was made"


def mlflow_experiment(stack: Stack) -> Any:
    query = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=small"
    status, answer = ask(stack.mlflow + query, user="admin", password=MLFLOW_PASSWORD)
    assert status == 200, answer
    return answer["experiment"]


def test_a_worker_that_is_stopped_leaves_a_checkpoint_and_a_true_state_and_a_retry_goes_on(stack):
    run = start(stack, store=str(stack.home / "long"), training=_long_training(stack))
    work = _training_begun(stack.home / "long", stack, run)
    grace = stack.services["worker-cpu"]["stop_grace_period"]
    assert grace in ("5m", "5m0s")
    worker = stack.processes["worker-cpu"]
    began = time.monotonic()
    os.kill(worker.pid, signal.SIGTERM)  # what `compose stop` sends, to the first process alone
    assert worker.wait(300) == 0
    assert time.monotonic() - began < 150, "half of the time that compose gives it"
    assert _of_run(run) == [], "nothing that it started is left for the container's SIGKILL"
    state = prefect(stack, f"/flow_runs/{run}")["state"]
    assert state["type"] == "CRASHED" and "Retry this run" in state["message"]
    assert _newest(work) > 0
    stack.start("worker-cpu")
    stack.wait("worker-cpu")
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    prefect(stack, f"/flow_runs/{run}/set_state", {"state": again, "force": True})
    wait_for(stack, run, "RUNNING")
    _training_begun(stack.home / "long", stack, run, beyond=_newest(work))
    cancelling = {"type": "CANCELLING", "name": "Cancelling"}
    prefect(stack, f"/flow_runs/{run}/set_state", {"state": cancelling})
    assert wait_for(stack, run, "CANCELLED", seconds=240)
    until = time.monotonic() + 120
    while left := _of_run(run):
        assert time.monotonic() < until, left
        time.sleep(0.2)


def _long_training(stack: Stack) -> dict[str, Any]:
    training = prefect(stack, "/deployments/name/pretrain/small")["parameters"]["config"]["training"]
    return {**training, "token_budgets": [900_000]}


def _newest(work: Path) -> int:
    steps = [int(path.name.removeprefix("step-")) for path in (work / "checkpoints").glob("step-*")]
    return max(steps, default=0)


def _training_begun(store: Path, stack: Stack, run: str, beyond: int = 0) -> Path:
    """The work directory of the long training, once it has a checkpoint after step `beyond`."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        for work in store.glob(".work/train-*"):
            spec = work / "journal.jsonl"
            if spec.exists() and _newest(work) > max(beyond, 50):
                return work
        state = prefect(stack, f"/flow_runs/{run}")["state"]
        assert state["type"] in ("SCHEDULED", "PENDING", "RUNNING"), (state, logs(stack, run))
        time.sleep(0.2)
    raise AssertionError(logs(stack, run))


def _of_run(run: str) -> list[str]:
    """Command lines of processes that belong to a flow run, the trainer among them."""
    return [
        " ".join(process.info["cmdline"])[:120]
        for process in psutil.process_iter(["environ", "cmdline"])
        if process.info["cmdline"] and (process.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == run
    ]


def test_a_script_of_prefects_finds_our_package_storage_and_not_the_module_beside_it(stack, tmp_path):
    """Prefect's worker runs scripts by their path, which lie beside its own `storage.py`."""
    (prefect_worker,) = psutil.Process(stack.processes["worker-cpu"].pid).children()
    (tmp_path / "storage.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "script.py").write_text("import storage.store; print(storage.__file__)")
    found = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        env=prefect_worker.environ(),
        cwd=stack.home,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == str(ROOT / "storage" / "__init__.py"), found.stderr


def test_a_worker_that_dies_ends_its_container_which_is_started_again(stack):
    first = stack.processes["worker-gpu"]
    (prefect_worker,) = psutil.Process(first.pid).children()
    prefect_worker.kill()
    assert first.wait(60) != 0, "`restart: unless-stopped` starts it anew"
    stack.start("worker-gpu")
    stack.wait("worker-gpu")


def test_no_password_was_written_down_anywhere(stack):
    """After all of the above: databases dumped as text, and every file of the home, logs included."""
    for name in ("prefect", "mlflow"):
        secret = composed.SECRETS[f"{name.upper()}_DATABASE_PASSWORD"]
        environment = stack.environment("databases") | {"PGUSER": name, "PGPASSWORD": secret}
        dump = subprocess.run(
            ["pg_dump", "--dbname", name], env=environment, capture_output=True, text=True, timeout=120
        )
        assert dump.returncode == 0 and "CREATE TABLE" in dump.stdout, dump.stderr
        assert not [key for key, value in composed.SECRETS.items() if value in dump.stdout]
    values = {key: value.encode() for key, value in composed.SECRETS.items()}
    files = [path for path in stack.home.parent.rglob("*") if path.is_file()]
    assert any(path.name == "worker-cpu.log" for path in files)
    held = [(path, key) for path in files for key, value in values.items() if value in path.read_bytes()]
    assert held == []
