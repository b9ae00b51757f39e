"""The sweep of lost runs, against a real Prefect server and real processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from flows.machine.processes import ProcessId, boot_id, start_ticks
from flows.services import lost_runs as watching
from flows.services.lost_runs import LOST, LostRuns, sweep_until
from flows.services.rest import Api, ApiError
from storage.runs import RunRecord, write_record
from storage.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[Api]:
    """A Prefect server of this module's own, gone with it."""
    from flows.services.server import prefect_server

    home = tmp_path_factory.mktemp("prefect")
    kept = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    for name in kept:
        del os.environ[name]
    os.environ.update(PREFECT_HOME=str(home), PREFECT_SERVER_ANALYTICS_ENABLED="false")
    try:
        with prefect_server(home) as ready:
            address = os.environ["PREFECT_API_URL"]
            ready()
            server = Api(address)
            server.post("/work_pools/", {"name": "free", "type": "process"})
            server.post("/work_pools/", {"name": "one", "type": "process", "concurrency_limit": 1})
            yield server
    finally:
        for name in [name for name in os.environ if name.startswith("PREFECT_")]:
            del os.environ[name]
        os.environ.update(kept)


@pytest.fixture
def watch(api: Api) -> LostRuns:
    return LostRuns(api, frozenset({"free", "one"}))


@pytest.fixture
def process() -> Iterator[Any]:
    """Starts processes that sleep, with an environment; they are gone in the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(deaf: bool = False, **environment: str) -> subprocess.Popen[bytes]:
        ears = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if deaf else ""
        command = [sys.executable, "-c", f"{ears}import time; print(flush=True); time.sleep(600)"]
        child = subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


def make_run(
    api: Api,
    pool: str | None,
    state: str,
    pid: str | None = None,
    parameters: dict[str, Any] | None = None,
    **details: Any,
) -> str:
    """A flow run in a state, as a worker leaves it."""
    flow = api.post("/flows/", {"name": f"sleeper-{uuid4().hex[:6]}"})
    wanted = {"type": state, "name": state.title(), "state_details": details}
    if pool is None:
        body = {"flow_id": flow["id"], "state": wanted, "parameters": parameters or {}}
        run = api.post("/flow_runs/", body)
    else:
        deployment = api.post(
            "/deployments/", {"flow_id": flow["id"], "name": "d", "work_pool_name": pool, "entrypoint": "a.b"}
        )
        run = api.post(f"/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})
        api.set_state("flow_runs", run["id"], wanted, force=True)
    if pid is not None:
        _patch(api, run["id"], {"infrastructure_pid": pid})
    return str(run["id"])


def make_task(api: Api, run: str) -> str:
    """A task run of the flow run that is at work."""
    body = {"flow_run_id": run, "task_key": "t", "dynamic_key": uuid4().hex, "state": {"type": "RUNNING"}}
    return str(api.post("/task_runs/", body)["id"])


def _patch(api: Api, run: str, body: dict[str, Any]) -> None:
    api._call("PATCH", f"/flow_runs/{run}", body)


def state(api: Api, run: str, kind: str = "flow_runs") -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/{kind}/{run}")["state"]
    return found


def end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_a_run_whose_process_is_gone_in_two_sweeps_is_crashed_and_its_tasks_too(api, watch, process):
    run = make_run(api, "free", "RUNNING")
    child = process(PREFECT__FLOW_RUN_ID=run)
    _patch(api, run, {"infrastructure_pid": f"{os.uname().nodename}:{child.pid}"})
    task = make_task(api, run)
    watch.sweep()
    watch.sweep()
    assert state(api, run)["type"] == "RUNNING", "its process lives"
    end(child)
    watch.sweep()
    assert state(api, run)["type"] == "RUNNING", "one sweep may have met it as it ended"
    said = watch.sweep()
    assert (state(api, run)["type"], state(api, run)["message"]) == ("CRASHED", LOST)
    assert state(api, task, "task_runs")["type"] == "CRASHED"
    assert any("is gone" in line for line in said)
    (page,) = pages(api, run)
    assert page["key"] == "how-to-go-on" and page["description"].startswith(
        "Crashed: The process of this run is gone"
    )
    assert "every finished stage" in page["data"] and "the button Retry" in page["data"]


def test_the_page_of_a_lost_run_stands_first_and_says_what_its_store_keeps(api, watch, process, tmp_path):
    child = process()
    parameters = {"config": {"store": str(tmp_path)}}
    run = make_run(api, None, "RUNNING", known(child).to_text(), parameters)
    write_record(Store(tmp_path), RunRecord("small-3f9a2c", "small", {}, (("pack", "a" * 64),), (run,)))
    checkpoint = tmp_path / ".work" / f"train-{'b' * 16}" / "checkpoints" / "step-40"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    for key in ("stages", "run", "how-to-go-on"):  # the last one of an attempt before
        api.post("/artifacts/", {"key": key, "type": "markdown", "data": "x", "flow_run_id": run})
    end(child)
    watch.sweep()
    watch.sweep()
    page, *others = pages(api, run)
    assert page["key"] == "how-to-go-on" and {one["key"] for one in others} == {"stages", "run"}
    assert "1 finished stages" in page["data"] and "train · bbbbbb from step 40 on" in page["data"]
    assert "onward run" in page["data"], "it was started in a terminal"


def known(child: subprocess.Popen[bytes]) -> ProcessId:
    return replace(ProcessId.current(), pid=child.pid, started=start_ticks(child.pid))


def pages(api: Api, run: str) -> list[dict[str, Any]]:
    """The flow run's artifacts, in the order of its page."""
    found = list(api.every("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}}))
    return sorted(found, key=lambda one: str(one["id"]), reverse=True)


def test_a_pid_that_another_process_has_now_does_not_keep_a_run_alive(api, watch, process):
    run = make_run(api, "free", "RUNNING")
    other = process(PREFECT__FLOW_RUN_ID=str(uuid4()))
    _patch(api, run, {"infrastructure_pid": str(other.pid)})
    watch.sweep()
    watch.sweep()
    assert state(api, run)["type"] == "CRASHED"


def test_a_run_from_a_terminal_lives_as_long_as_its_process(api, watch, process):
    child = process()
    run = make_run(api, None, "RUNNING", f"{os.uname().nodename}:{child.pid}")
    watch.sweep()
    watch.sweep()
    assert state(api, run)["type"] == "RUNNING"
    end(child)
    watch.sweep()
    watch.sweep()
    assert state(api, run)["type"] == "CRASHED"


def test_a_run_of_a_host_that_has_another_name_now_is_crashed_once_its_process_is_gone(api, watch, process):
    child = process()
    named = replace(ProcessId.current(), host="before", pid=child.pid, started=start_ticks(child.pid))
    run = make_run(api, None, "RUNNING", named.to_text())
    reused = replace(named, started="1")
    other = make_run(api, None, "RUNNING", reused.to_text())
    rebooted = replace(named, boot="00000000-0000-0000-0000-000000000000")
    before = make_run(api, None, "RUNNING", rebooted.to_text())
    elsewhere = make_run(api, None, "RUNNING", replace(rebooted, machine="0" * 16).to_text())
    watch.sweep()
    watch.sweep()
    assert [state(api, one)["type"] for one in (run, other, before, elsewhere)] == [
        *("RUNNING", "CRASHED", "CRASHED" if named.machine else "RUNNING", "RUNNING")
    ]
    end(child)
    watch.sweep()
    watch.sweep()
    assert [state(api, one)["type"] for one in (run, elsewhere)] == ["CRASHED", "RUNNING"]


def test_a_pid_alone_says_nothing_in_a_pool_that_another_machine_serves_too(api):
    api.post("/work_pools/", {"name": "shared", "type": "process"})
    api.post("/work_pools/shared/workers/heartbeat", {"name": "onward-shared-elsewhere"})
    run = make_run(api, "shared", "RUNNING", "1999999")
    for watch, expected in (
        (LostRuns(api, frozenset({"shared"})), "RUNNING"),
        (LostRuns(api, frozenset({"shared"}), frozenset({"onward-shared-elsewhere"})), "CRASHED"),
    ):
        watch.sweep()
        watch.sweep()
        assert state(api, run)["type"] == expected


def test_nor_in_one_that_another_machine_served_when_the_run_began(api, monkeypatch):
    """Its worker is silent now, and its run may go on there all the same."""
    monkeypatch.setattr(watching, "_HEARTBEAT_SECONDS", 0.0)
    api.post("/work_pools/", {"name": "shared-once", "type": "process"})
    before = make_run(api, "shared-once", "RUNNING", "1999999")
    api.post("/work_pools/shared-once/workers/heartbeat", {"name": "onward-shared-once-elsewhere"})
    with sqlite3.connect(Path(os.environ["PREFECT_HOME"]) / "prefect.db", timeout=30) as database:
        silent = "update worker set status = 'OFFLINE' where name = 'onward-shared-once-elsewhere'"
        assert database.execute(silent).rowcount == 1  # as the server says after a while
    after = make_run(api, "shared-once", "RUNNING", "1999999")
    watch = LostRuns(api, frozenset({"shared-once"}))
    watch.sweep()
    watch.sweep()
    assert state(api, after)["type"] == "CRASHED"
    assert state(api, before)["type"] == "RUNNING"
    api.set_state("flow_runs", before, {"type": "COMPLETED"}, force=True)


def eventually(holds: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_pid_alone_is_the_runs_only_where_the_process_names_the_run(api, watch, process):
    """A worker's process does; one without a run that has the pid now is another, however old it is."""
    child = process()
    run = make_run(api, "free", "RUNNING", str(child.pid))
    watch.sweep()
    watch.sweep()
    assert state(api, run)["type"] == "CRASHED"
    assert child.poll() is None


@pytest.fixture
def impatient(monkeypatch):
    """Nobody waits long."""
    for name in ("_OUTLIVED_SECONDS", "_ORPHAN_SECONDS", "_ORPHAN_GRACE_SECONDS"):
        monkeypatch.setattr(watching, name, 0.3)


@pytest.mark.parametrize("ended", ["CANCELLED", "FAILED", "COMPLETED", "CRASHED"])
def test_the_process_of_a_run_that_was_set_to_an_end_is_ended_and_the_end_stays(
    api, watch, process, monkeypatch, ended
):
    monkeypatch.setattr(watching, "_OUTLIVED_SECONDS", 1.0)
    run = make_run(api, "free", "RUNNING")
    child = process(PREFECT__FLOW_RUN_ID=run)
    other = process(PREFECT__FLOW_RUN_ID=str(uuid4()))
    _patch(api, run, {"infrastructure_pid": str(child.pid)})
    watch.sweep()
    by_hand = {"type": ended, "name": "By hand", "message": "somebody's click"}
    api.set_state("flow_runs", run, by_hand, force=True)
    assert not [line for line in watch.sweep() if "asked to end" in line], "it may be about to leave"
    time.sleep(1.2)
    said = watch.sweep()
    assert any(f"process {child.pid} is asked to end" in line for line in said)
    assert child.wait(10) == -signal.SIGTERM
    if ended != "CRASHED":  # what a flow does when it is ended, and its worker after it
        for _ in range(2):
            crashed = {"type": "CRASHED", "name": "Crashed", "message": "exit code -15"}
            api.set_state("flow_runs", run, crashed, force=True)
            watch.sweep()
    found = state(api, run)
    assert (found["type"], found["name"], found["message"]) == (ended, "By hand", "somebody's click")
    assert other.poll() is None


def test_one_that_does_not_leave_is_killed_with_what_it_started(api, watch, process, impatient):
    run = make_run(api, "free", "RUNNING")
    both = [process(deaf=True, PREFECT__FLOW_RUN_ID=run) for _ in range(2)]
    api.set_state("flow_runs", run, {"type": "CANCELLED"}, force=True)
    time.sleep(0.5)
    watch.sweep()
    time.sleep(0.5)
    assert [child.poll() for child in both] == [None, None]
    assert any("is killed" in line for line in watch.sweep())
    assert [child.wait(10) for child in both] == [-signal.SIGKILL] * 2


def test_a_retry_of_a_run_that_had_ended_is_not_touched(api, watch, process, impatient):
    run = make_run(api, "free", "RUNNING")
    api.set_state("flow_runs", run, {"type": "CRASHED"}, force=True)
    time.sleep(1.5)
    child = process(PREFECT__FLOW_RUN_ID=run)
    watch.sweep()
    assert child.poll() is None, "it began after the end, so it is about to be the next attempt"
    api.set_state("flow_runs", run, {"type": "RUNNING"}, force=True)
    time.sleep(0.5)
    watch.sweep()
    watch.sweep()
    assert child.poll() is None
    api.set_state("flow_runs", run, {"type": "COMPLETED"}, force=True)
    end(child)


def test_a_run_from_a_terminal_is_ended_only_where_its_record_has_the_very_process(
    api, watch, process, impatient, tmp_path
):
    children = {name: process() for name in ("recorded", "reused", "unknown")}
    parameters = {"config": {"store": str(tmp_path)}}
    runs = {}
    for name, child in children.items():
        pid = f"{os.uname().nodename}:{child.pid}"
        run = make_run(api, None, "RUNNING", pid, parameters=parameters)
        runs[name] = run
        ticks = start_ticks(child.pid) if name == "recorded" else "1"
        process_of = {"pid": child.pid, "host": os.uname().nodename, "started": ticks}
        if name != "unknown":
            facts = {"processes": {run: process_of}}
            write_record(Store(tmp_path), RunRecord(f"run-{name}", "run", {}, (), (run,), facts=facts))
        api.set_state("flow_runs", run, {"type": "CANCELLED"}, force=True)
    time.sleep(0.5)
    said = [line for line in watch.sweep() if "asked to end" in line]
    assert len(said) == 1
    assert children["recorded"].wait(10) == -signal.SIGTERM
    watch.sweep()
    assert children["reused"].poll() is None and children["unknown"].poll() is None


def test_a_run_to_be_cancelled_of_which_only_children_are_left_is_cancelled(api, watch, process, impatient):
    run = make_run(api, "free", "CANCELLING", str(_gone()))
    child = process(PREFECT__FLOW_RUN_ID=run)
    time.sleep(0.5)
    assert any(f"process {child.pid} is asked to end" in line for line in watch.sweep())
    assert child.wait(10) == -signal.SIGTERM
    watch.sweep()
    watch.sweep()
    assert state(api, run)["name"] == "Cancelled"


def test_the_sweep_goes_on_whatever_happens_and_tells_each_error_once(api, monkeypatch):
    monkeypatch.setattr(watching, "_FIRST_SECONDS", 0.05)
    monkeypatch.setattr(watching, "_SWEEP_SECONDS", 0.05)

    class Odd(LostRuns):
        """A server that is away, then answers nonsense, then is well."""

        calls = 0

        def sweep(self) -> list[str]:
            self.calls += 1
            if self.calls < 4:
                raise ApiError("away")
            if self.calls < 7:
                raise KeyError("nonsense")
            super().sweep()
            return ["well"]

    watch, stop, said = Odd(api), threading.Event(), list[str]()
    thread = threading.Thread(target=sweep_until, args=(watch, stop, said.append), daemon=True)
    thread.start()
    eventually(lambda: said.count("well") >= 2)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert said[:3] == ["sweep: ApiError: away", "sweep: KeyError: 'nonsense'", "well"]


def test_runs_of_other_machines_and_of_nobody_are_left_alone(api, watch):
    elsewhere = make_run(api, "free", "RUNNING", "another-machine:1")
    nobodys = make_run(api, None, "RUNNING")
    for _ in range(3):
        watch.sweep()
    assert state(api, elsewhere)["type"] == "RUNNING"
    assert state(api, nobodys)["type"] == "RUNNING"
    for run in (elsewhere, nobodys):
        api.set_state("flow_runs", run, {"type": "COMPLETED"}, force=True)


def test_a_run_to_be_cancelled_whose_process_is_gone_is_cancelled(api, watch):
    run = make_run(api, "free", "CANCELLING", f"{os.uname().nodename}:{_gone()}")
    watch.sweep()
    watch.sweep()
    assert state(api, run)["name"] == "Cancelled"


def test_a_retry_that_still_names_the_process_before_is_not_taken_for_lost(api, watch):
    run = make_run(api, "free", "PENDING", str(_gone()))
    for _ in range(3):
        watch.sweep()
    assert state(api, run)["type"] == "PENDING", "its worker may be about to start it"
    api.set_state("flow_runs", run, {"type": "COMPLETED"}, force=True)


def test_a_run_that_ended_in_time_keeps_its_state(api, watch):
    run = make_run(api, "free", "RUNNING", str(_gone()))
    watch.sweep()
    api.set_state("flow_runs", run, {"type": "COMPLETED"}, force=True)
    watch.sweep()
    assert state(api, run)["type"] == "COMPLETED"


def test_tasks_that_run_on_in_a_run_that_has_ended_are_crashed(api, watch):
    run = make_run(api, "free", "RUNNING")
    task = make_task(api, run)
    api.set_state("flow_runs", run, {"type": "FAILED"}, force=True)
    watch.sweep()
    assert state(api, task, "task_runs")["type"] == "RUNNING", "its end may still be on its way"
    watch.sweep()
    assert state(api, task, "task_runs")["type"] == "CRASHED"


def test_a_run_that_is_due_in_a_full_pool_says_who_has_it_and_is_taken_when_it_is_free(api, watch, process):
    first = make_run(api, "one", "RUNNING")
    child = process(PREFECT__FLOW_RUN_ID=first)
    _patch(api, first, {"infrastructure_pid": str(child.pid)})
    due = (datetime.now(UTC) - timedelta(seconds=5)).isoformat()
    second = make_run(api, "one", "SCHEDULED", scheduled_time=due)
    planned = api.get(f"/flow_runs/{second}")["next_scheduled_start_time"]
    watch.sweep()
    name = api.get(f"/flow_runs/{first}")["name"]
    assert state(api, second)["name"] == "Waiting"
    assert state(api, second)["message"].startswith(f"work pool one is taken by {name}")
    assert api.get(f"/flow_runs/{second}")["next_scheduled_start_time"] == planned
    before = state(api, second)["id"]
    watch.sweep()
    assert state(api, second)["id"] == before, "said once"
    assert second not in _offered(api)
    api.set_state("flow_runs", first, {"type": "COMPLETED"}, force=True)
    assert second in _offered(api)


def _offered(api: Api) -> list[str]:
    """What a worker of the pool would be given now."""
    rows = api.post("/work_pools/one/get_scheduled_flow_runs", {})
    return [row["flow_run"]["id"] for row in rows]


def _gone() -> int:
    """The pid of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_server_that_is_away_is_named():
    with pytest.raises(ApiError, match=r"127\.0\.0\.1:1/api does not answer"):
        LostRuns(Api("http://127.0.0.1:1/api", seconds=2)).sweep()


def test_a_process_is_known_by_its_start_and_a_dead_one_has_none(process):
    child = process()
    ticks = start_ticks(child.pid)
    assert ticks.isdigit() and boot_id()
    child.kill()
    deadline = time.monotonic() + 10
    while start_ticks(child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert start_ticks(child.pid) == "", "it waits to be reaped, and counts as gone"
    assert Path(f"/proc/{child.pid}").exists()
