"""Deployments: made once, renewed without undoing what a person did in the UI; and they run, through a real worker."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.services import automations, deployments, supervisor
from flows.services.rest import Api
from storage.atomic import make_writable
from storage.manifest import Manifest, part_of, read_manifest
from tests.support.servers import PrefectServer, Refused
from tests.support.small import write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A server of this module's own with the deployments of a small configuration, and nothing else."""
    home = tmp_path_factory.mktemp("home")
    config = write_config(home, budgets=("8K",))
    with PrefectServer(home) as server:
        yield server, config, server.deploy(config)


def schedules(server: Any, name: str) -> list[dict[str, Any]]:
    return server.deployment(name)["schedules"]


def test_everything_is_made_once(deployed):
    server, config, lines = deployed
    assert [line.split(" (")[0] for line in lines[:5]] == [
        "pretrain/small",
        "pretrain/corpus-only",
        "evaluate/model",
        "tune/trials",
        "pretrain/nightly-demo",
    ]
    assert all("(made" in line for line in lines)
    before = {d["name"]: d["id"] for d in server.api("/deployments/filter")}
    again = server.deploy(config)
    assert all("(kept" in line for line in again), again
    assert {d["name"]: d["id"] for d in server.api("/deployments/filter")} == before
    assert len(server.api("/automations/filter")) == 3
    pools = {pool["name"]: pool["concurrency_limit"] for pool in server.api("/work_pools/filter")}
    assert pools == {"cpu": None, "gpu": 1}


def test_a_deployment_holds_the_whole_configuration_with_absolute_paths(deployed):
    server, _, _ = deployed
    whole, corpus = server.deployment("pretrain/small"), server.deployment("pretrain/corpus-only")
    config = whole["parameters"]["config"]
    assert config["store"] == str(server.home / "store")
    assert config["corpus"]["sources"][0]["files"] == [str(server.home / "text/domain-*.jsonl")]
    assert config["training"]["token_budgets"] == ["8K"]
    assert whole["entrypoint"] == "flows.entrypoints.pretrain"
    assert (corpus["parameters"]["until"], corpus["work_pool_name"]) == ("tokenize", "cpu")


def test_the_nightly_run_makes_everything_again_and_waits_for_its_turn(deployed):
    server, _, _ = deployed
    night = server.deployment("pretrain/nightly-demo")
    assert night["parameters"]["force"] == ["all"]
    assert night["parameters"]["config"]["store"] == str(server.home / "stores/nightly-demo")
    schedule = night["schedules"][0]["schedule"]
    assert (schedule["cron"], schedule["timezone"]) == ("0 3 * * *", deployments.timezone())
    queue = server.api("/work_pools/cpu/queues/nightly", method="GET")
    assert queue["concurrency_limit"] == 1


def test_what_a_person_changed_stays(deployed):
    server, config, _ = deployed
    night = server.deployment("pretrain/nightly-demo")
    paused = night["schedules"][0]["id"]
    server.api(f"/deployments/{night['id']}/schedules/{paused}", {"active": False}, "PATCH")
    whole = server.deployment("pretrain/small")
    server.api(
        f"/deployments/{whole['id']}/schedules",
        [{"schedule": {"cron": "30 1 * * 6", "timezone": "Europe/Berlin"}, "active": True}],
    )
    edited = whole["parameters"]
    edited["config"]["seed"] = 77
    server.api(f"/deployments/{whole['id']}", {"parameters": edited, "paused": True}, "PATCH")
    server.api("/work_pools/gpu", {"concurrency_limit": 2}, "PATCH")
    crash = next(a for a in server.api("/automations/filter") if a["name"] == automations.CRASHED)
    names = ("name", "description", "tags", "trigger", "actions", "actions_on_trigger", "actions_on_resolve")
    older = {name: crash[name] for name in names} | {"enabled": False}
    older["trigger"]["expect"].remove("prefect.flow-run.Interrupted")
    server.api(f"/automations/{crash['id']}", older, "PUT")

    server.deploy(config)
    taught = server.api(f"/automations/{crash['id']}", method="GET")["trigger"]["expect"]
    assert "prefect.flow-run.Interrupted" in taught, "else an interrupted run would become Crashed"
    assert [s["active"] for s in schedules(server, "pretrain/nightly-demo")] == [False]
    after = server.deployment("pretrain/small")
    assert [s["schedule"]["cron"] for s in after["schedules"]] == ["30 1 * * 6"]
    assert (after["parameters"]["config"]["seed"], after["paused"]) == (77, True)
    assert server.api("/work_pools/gpu", method="GET")["concurrency_limit"] == 2
    assert not server.api(f"/automations/{crash['id']}", method="GET")["enabled"]

    raw = json.loads(config.read_text())
    config.write_text(json.dumps({**raw, "seed": 5}))
    lines = server.deploy(config)
    assert "pretrain/small (parameters renewed: its file has changed)" in lines
    renewed = server.deployment("pretrain/small")
    assert renewed["parameters"]["config"]["seed"] == 5
    assert [s["schedule"]["cron"] for s in renewed["schedules"]] == ["30 1 * * 6"]
    server.api(f"/deployments/{whole['id']}", {"paused": False}, "PATCH")
    server.api(f"/automations/{crash['id']}", {"enabled": True}, "PATCH")
    config.write_text(json.dumps(raw))
    server.deploy(config)


def test_other_files_and_descriptions_edited_in_the_ui_change_nothing(deployed):
    """`corpus-only` and `evaluate/model` are of one file, and stay so when others are deployed, before it or without it."""
    server, config, _ = deployed
    raw = json.loads(config.read_text())
    other = server.home / "another.yaml"
    other.write_text(json.dumps({**raw, "name": "another", "seed": 9}))
    names = ("pretrain/corpus-only", "evaluate/model", "pretrain/nightly-demo")
    for name in names:
        known = server.deployment(name)["id"]
        server.api(f"/deployments/{known}", {"description": "in my own words"}, "PATCH")
    before = {name: server.deployment(name) for name in names}
    assert before["evaluate/model"]["version"].partition("+")[2].rpartition("@")[0] == config.name
    for files in ((other, config), (other,)):
        lines = server.deploy(*files)
        for name in names:
            assert f"{name} (kept)" in lines
            after = server.deployment(name)
            for what in ("parameters", "description", "version"):
                assert after[what] == before[name][what], (name, what)

    config.write_text(json.dumps({**raw, "seed": 5}))
    assert "evaluate/model (parameters renewed: its file has changed)" in server.deploy(other)
    renewed = server.deployment("evaluate/model")
    assert (renewed["parameters"]["seed"], renewed["description"]) == (5, "in my own words")

    config.rename(config.with_suffix(".away"))
    server.deploy(other)
    assert server.deployment("evaluate/model")["parameters"]["seed"] == 9, "its file is gone: the first one's"
    config.with_suffix(".away").rename(config)
    config.write_text(json.dumps(raw))
    other.unlink()
    server.api(f"/deployments/{server.deployment('pretrain/another')['id']}", method="DELETE")
    server.deploy(config)
    assert server.deployment("pretrain/corpus-only")["parameters"]["config"]["seed"] == raw.get("seed", 0)


def test_a_deployment_in_another_pool_than_is_meant_says_so_and_stays(deployed):
    server, config, _ = deployed
    lines = server.deploy(config, ONWARD_POOL="gpu")
    told = next(line for line in lines if line.startswith("pretrain/small"))
    assert "stays in the pool cpu, where gpu is meant" in told
    assert server.deployment("pretrain/small")["work_pool_name"] == "cpu"
    assert "pretrain/corpus-only (kept)" in lines, "is meant for the pool cpu, whatever else"


def test_the_length_of_an_evaluation_is_a_number_with_bounds(deployed):
    server, _, _ = deployed
    with pytest.raises(Refused, match="less than the minimum of 2"):
        server.start("evaluate/model", model="x", sequence_length=1)
    run = server.start("evaluate/model", model="x", sequence_length=64)
    found = server.api(f"/flow_runs/{run}", method="GET")
    assert found["parameters"]["sequence_length"] == 64
    server.api(f"/flow_runs/{run}", method="DELETE")


def test_parameters_that_no_longer_fit_the_form_are_as_in_the_file_again(deployed):
    server, config, _ = deployed
    made = server.deployment("pretrain/corpus-only")
    old = {"parameter_openapi_schema": {"type": "object", "properties": {}}, "parameters": {"until": "gone"}}
    server.api(f"/deployments/{made['id']}", old, "PATCH")
    told = next(line for line in server.deploy(config) if line.startswith("pretrain/corpus-only"))
    assert "no longer fitted" in told and "'gone' is not one of" in told
    assert server.deployment("pretrain/corpus-only")["parameters"] == made["parameters"]


def test_a_configuration_that_cannot_be_read_is_passed_over_and_absent_files_are_not_asked_for(deployed):
    server, config, _ = deployed
    broken, absent = server.home / "broken.yaml", server.home / "absent.yaml"
    broken.write_text("name: broken\nseeed: 1\n")
    raw = json.loads(config.read_text())
    raw["name"] = "absent"
    raw["corpus"]["sources"][0]["files"] = ["nowhere/*.parquet"]
    absent.write_text(json.dumps(raw))
    answer = server.python("flows.services.deploy", str(config), str(broken), str(absent))
    assert answer.returncode == 0
    assert "pretrain/absent (made)" in answer.stdout and "broken" not in answer.stdout
    assert "passed over" in answer.stderr and "seeed" in answer.stderr
    server.api(f"/deployments/{server.deployment('pretrain/absent')['id']}", method="DELETE")


def test_the_server_refuses_a_wrong_value_before_anything_runs(deployed):
    server, _, _ = deployed
    config = server.deployment("pretrain/small")["parameters"]["config"]
    config["training"]["token_budgets"] = ["8K", "400X"]

    def asked_for() -> list[str]:
        """Runs that no schedule made: the server makes those when it likes."""
        made = server.api("/flow_runs/filter", {"deployments": {"name": {"any_": ["small"]}}})
        return sorted(run["id"] for run in made if not run["auto_scheduled"])

    before = asked_for()
    with pytest.raises(Refused) as caught:
        server.start("pretrain/small", config=config)
    assert caught.value.status in (409, 422)
    assert "config.training.token_budgets[1]" in caught.value.detail and "400X" in caught.value.detail
    with pytest.raises(Refused, match="'later' is not one of"):
        server.start("pretrain/small", until="later")
    with pytest.raises(Refused, match="'slice' was unexpected"):
        server.start("pretrain/small", slice=1)
    right = server.deployment("pretrain/small")["parameters"]["config"]
    for wrong, said in (
        ({"seeed": 1}, "'config'.*'seeed' was unexpected"),
        ({"corpus": None}, "'config.corpus'.*None is not of type 'object'"),
        ({"training": {**right["training"], "lr": 1}}, "'config.training'.*'lr' was unexpected"),
        ({"training": {**right["training"], "learning_rate": "fast"}}, "'config.training.learning_rate'"),
    ):
        with pytest.raises(Refused, match=said):
            server.start("pretrain/small", config={**right, **wrong})
    assert asked_for() == before


def test_a_schedule_made_in_the_ui_gives_runs(deployed):
    server, _, _ = deployed
    made = server.deployment("pretrain/corpus-only")["id"]
    (schedule,) = server.api(
        f"/deployments/{made}/schedules", [{"schedule": {"interval": 86400.0}, "active": True}]
    )
    body = {
        "deployments": {"id": {"any_": [made]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    assert eventually(lambda: server.api("/flow_runs/filter", body), seconds=240)
    server.api(f"/deployments/{made}/schedules/{schedule['id']}", method="DELETE")


def test_nights_that_were_missed_are_dropped_but_not_a_run_that_a_person_asked_for(deployed):
    server, config, _ = deployed
    night = server.deployment("pretrain/nightly-demo")["id"]
    (schedule,) = server.api(
        f"/deployments/{night}/schedules", [{"schedule": {"interval": 86400.0}, "active": True}]
    )
    body = {
        "deployments": {"id": {"any_": [night]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    made = eventually(
        lambda: server.api("/flow_runs/filter", body)[1:] and server.api("/flow_runs/filter", body), 240
    )
    missed, taken = (run["id"] for run in made[:2])
    asked = server.api(f"/deployments/{night}/create_flow_run")["id"]
    server.api(
        f"/flow_runs/{taken}/set_state", {"state": {"type": "PENDING", "name": "Pending"}, "force": True}
    )
    # As if the machine had been off so long.
    two_days = "update flow_run set expected_start_time = datetime('now', '-2 days') where id in (?, ?, ?)"
    with sqlite3.connect(server.home / ".onward/prefect/prefect.db", timeout=30) as database:
        assert database.execute(two_days, (missed, asked, taken)).rowcount == 3
    assert "starts with the next" in supervisor._leave_true(Api(server.api_url), taken)  # as `down` does
    with sqlite3.connect(server.home / ".onward/prefect/prefect.db", timeout=30) as database:
        database.execute(two_days, (missed, asked, taken))
    server.deploy(config)
    put_back = server.api(f"/flow_runs/{taken}", method="GET")
    assert (put_back["state_type"], put_back["state_name"]) == ("SCHEDULED", supervisor.PUT_BACK)
    server.api(f"/flow_runs/{taken}", method="DELETE")
    assert server.api(f"/flow_runs/{asked}", method="GET")["state_type"] == "SCHEDULED"
    with pytest.raises(Refused, match="404"):
        server.api(f"/flow_runs/{missed}", method="GET")
    server.api(f"/flow_runs/{asked}", method="DELETE")
    server.api(f"/deployments/{night}/schedules/{schedule['id']}", method="DELETE")


@pytest.fixture(scope="module")
def killed(deployed):
    """A run whose processes, its worker among them, were killed while it was at work; and when that was."""
    server, _, _ = deployed
    config = server.deployment("pretrain/small")["parameters"]["config"]
    config |= {"store": str(server.home / "killed")}
    config["training"] |= {"token_budgets": ["4M"]}
    with server.worker() as worker:
        run = server.start("pretrain/small", config=config)
        server.wait(run, "RUNNING")
        assert eventually(lambda: heartbeats(server, run))
        process = int(server.api(f"/flow_runs/{run}", method="GET")["infrastructure_pid"].rpartition(":")[2])
        began = datetime.now(UTC)
        os.kill(worker.pid, signal.SIGKILL)
        os.kill(process, signal.SIGKILL)
    return run, began


@pytest.fixture(scope="module")
def ran(deployed, killed):
    """One whole run through a real worker, after another was killed."""
    server, config, _ = deployed
    with server.worker():
        run = server.start("pretrain/small")
        yield server, server.wait(run, "COMPLETED"), config


def test_a_run_through_a_worker_ends_completed_under_its_name(ran):
    server, run, _ = ran
    assert run["name"].startswith("small · 8K · ")
    tasks = server.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert {task["state_type"] for task in tasks} == {"COMPLETED"}
    assert (server.home / "store" / "report").is_dir()


def test_what_no_schema_can_say_is_refused_at_the_start(ran):
    server, run, _ = ran
    config = run["parameters"]["config"]
    nowhere = copy.deepcopy(config)
    nowhere["corpus"]["sources"][0]["files"] = [f"{server.home}/nowhere/*.jsonl"]
    config["packing"]["sequence_length"] = 256
    config["training"]["batch_tokens"] = 256
    runs = [server.start("pretrain/small", config=one) for one in (config, nowhere)]
    for run, said in zip(runs, ("packing.sequence_length", "corpus.sources: domain: no file"), strict=True):
        message = server.wait(run, "FAILED")["state"]["message"]
        assert message.startswith(said) and "Traceback" not in message, message
        assert message.splitlines()[1] == "Nothing was begun."
        assert not server.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})


def test_everything_made_again_gives_the_same_bytes_and_a_difference_fails(ran):
    server, _, _ = ran
    again = server.start("pretrain/small", force=["all"])
    server.wait(again, "COMPLETED")
    assert not list(server.home.glob("store/*/.damaged-*"))

    places = (server.home / "store" / "dedup").glob("[!.]*")
    manifests = {place: read_manifest(place) for place in places}
    (first,) = (place for place, manifest in manifests.items() if manifest.inputs["earlier"] is None)
    _with_other_bytes(first, manifests[first])
    again = server.start("pretrain/small", force=["all"], until="dedup", slices=1)
    message = server.wait(again, "FAILED")["state"]["message"]
    assert "gave other bytes" in message and f"dedup/{first.name}" in message
    assert len(list((server.home / "store" / "dedup").glob(".damaged-*"))) == 1


def _with_other_bytes(place: Path, manifest: Manifest) -> None:
    """The artifact as if it had been made with other documents: a whole manifest, of other bytes."""
    make_writable(place)
    first, *others = manifest.parts["documents"].files
    raw = (place / first.path).read_bytes() + b"other"
    (place / first.path).write_bytes(raw)
    entry = replace(first, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())
    parts = {**manifest.parts, "documents": part_of([entry, *others])}
    (place / "manifest.json").write_bytes(replace(manifest, parts=parts).to_bytes())


def test_a_model_is_measured_by_its_key(ran):
    server, _, _ = ran
    key = next((server.home / "store" / "decay").iterdir()).name
    measured = {"model": f"decay/{key[:8]}", "run": "small", "sequence_length": 64}
    found = server.wait(server.start("evaluate/model", **measured), "COMPLETED")
    assert found["name"].startswith(f"evaluation · decay/{key[:8]} · ")
    tasks = server.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [found["id"]]}}})
    assert {task["state_name"] for task in tasks} == {"Cached"}  # the run measured it on the same


def test_a_run_whose_processes_are_all_killed_is_crashed_within_two_minutes(ran, killed):
    """By the silence of its heartbeats, while other tests used the server."""
    (server, _, _), (run, began) = ran, killed
    crashed = server.wait(run, "CRASHED", seconds=150)
    seconds = (datetime.fromisoformat(crashed["state"]["timestamp"]) - began).total_seconds()
    assert seconds < 120, seconds
    assert "Retry goes on from there" in crashed["state"]["message"]


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that keeps what is posted to it."""
    posted: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}/hook", posted
    web.shutdown()
    web.server_close()


def test_notifications_are_off_until_switched_on_and_then_arrive(ran, hook):
    server, _, _ = ran
    address, posted = hook
    block = server.api(f"/block_types/slug/webhook/block_documents/name/{automations.WEBHOOK}", method="GET")
    server.api(
        f"/block_documents/{block['id']}", {"data": {"url": address}, "merge_existing_data": True}, "PATCH"
    )
    named = {a["name"]: a for a in server.api("/automations/filter")}
    wanted = [named[automations.TELL_FAILED], named[automations.TELL_COMPLETED]]
    assert not any(automation["enabled"] for automation in wanted)
    for automation in wanted:
        server.api(f"/automations/{automation['id']}", {"enabled": True}, "PATCH")
    failing = server.start("evaluate/model", model="decay/00", run="small")
    server.wait(failing, "FAILED")
    done = server.start("pretrain/small", until="tokenize")
    server.wait(done, "COMPLETED")
    assert eventually(
        lambda: {p["flow_run"]: p["state"] for p in posted} == {failing: "Failed", done: "Completed"},
        seconds=180,
    )
    failed = next(p for p in posted if p["flow_run"] == failing)
    assert "Nothing was begun" in failed["text"] and failed["url"].startswith(server.ui)
    for automation in wanted:
        server.api(f"/automations/{automation['id']}", {"enabled": False}, "PATCH")


def heartbeats(server: Any, run: str) -> list[Any]:
    since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    body = {
        "filter": {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "occurred": {"since": since},
            "resource": {"id": [f"prefect.flow-run.{run}"]},
        }
    }
    found: list[Any] = server.api("/events/filter", body)["events"]
    return found


def eventually(holds: Any, seconds: float = 180) -> Any:
    """What `holds` gives once it is true; fails where that does not happen in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := holds():
            return found
        time.sleep(0.5)
    raise AssertionError(f"not within {seconds:.0f} s")


def test_paths_of_a_deployment_do_not_change_which_run_it_is(tmp_path, monkeypatch):
    from flows.config import load_config, parse_config
    from flows.runs.names import run_id

    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    run = load_config(write_config(tmp_path))
    absolute = deployments.plain(run, Path(tmp_path))
    assert absolute["corpus"]["sources"][0]["files"] == [str(tmp_path / "text/domain-*.jsonl")]
    assert run_id(parse_config(absolute)) == run_id(run)
