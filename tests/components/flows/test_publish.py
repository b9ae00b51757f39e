"""What a run leaves in Prefect, on a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime
from typing import Any

import pytest
from mlflow import MlflowClient
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings

from flows.runs.run import _tracked
from flows.ui.console import Console
from flows.ui.publish import flow_run_url
from storage.store import Store
from tests.support.runs import run_with

pytestmark = pytest.mark.slow


def published(server: Any, *arguments: str) -> tuple[dict[str, Any], str]:
    """(the flow run, what the process wrote on standard error) of `publishing.py`."""
    answer = subprocess.run(
        [sys.executable, "-m", "tests.support.publishing", *arguments],
        env=server.environment(),
        cwd=server.home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, Any] = server.api(f"/flow_runs/{answer.stdout.split()[-1]}", method="GET")
    return found, answer.stderr


@pytest.fixture(scope="module")
def run(prefect_server):
    return prefect_server, *published(prefect_server)


def test_each_page_is_there_once_as_it_was_last(run):
    server, found, _ = run
    pages = server.api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [found["id"]]}}})
    shown = {page["key"]: (page["data"], page["description"]) for page in pages}
    assert len(pages) == 2
    assert json.loads(shown["stages"][0]) == [{"stage": "ingest", "attempt": 2}]
    assert shown["bar"] == (100, "attempt 2")


def test_the_log_holds_the_story_and_no_secret(run):
    server, found, told = run
    until = time.monotonic() + 20
    while "a warning" not in (log := server.logs(found["id"])) and time.monotonic() < until:
        time.sleep(0.2)
    assert "a line with http://host in it" in log
    assert "hunter2" not in log + told


def test_no_task_of_a_run_that_ends_is_left_running(run):
    server, found, _ = run
    tasks = server.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [found["id"]]}}})
    assert {task["name"]: task["state_name"] for task in tasks} == {
        "ingest": "Cached",
        "dedup · slice 1": "Cached",
    }


def test_a_task_of_which_prefect_never_heard_is_told_with_its_times(run):
    server, found, _ = run
    tasks = server.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [found["id"]]}}})
    (told,) = [task for task in tasks if task["name"] == "dedup · slice 1"]
    assert told["total_run_time"] == 7
    ended, began = (datetime.fromisoformat(told[name]) for name in ("end_time", "start_time"))
    assert (ended - began).total_seconds() == 7
    assert (datetime.fromisoformat(found["start_time"]) - ended).total_seconds() > 3000


def test_a_run_of_a_terminal_says_which_process_it_is(run):
    _, found, _ = run
    host, _, pid = found["infrastructure_pid"].rpartition(":")
    assert host and pid.isdigit()


def test_a_failure_is_the_message_of_the_state_word_for_word(run):
    server, _, _ = run
    found, told = published(server, "fails")
    assert (found["state_type"], found["state"]["message"]) == (
        "FAILED",
        "ingest failed: no text\nKept: nothing.\nTo go on: try again",
    )
    assert "Traceback" not in server.logs(found["id"]) + told


@pytest.mark.parametrize(
    ("how", "state", "cause"),
    [
        ("failed", ("FAILED", "Failed"), "no <text> in a_file*"),
        ("interrupted", ("CRASHED", "Interrupted"), "The run was stopped by Ctrl-C."),
        ("cancelled", ("CANCELLED", "Cancelled"), "The run was cancelled in Prefect."),
    ],
)
def test_a_run_that_ended_early_says_so_by_name_and_its_first_page_says_how_it_goes_on(
    prefect_server, tmp_path, how, state, cause
):
    answer = subprocess.run(
        [sys.executable, "-m", "tests.support.ending", how, str(tmp_path)],
        env=prefect_server.environment(),
        cwd=prefect_server.home,
        capture_output=True,
        text=True,
        timeout=300,
    )
    run = answer.stdout.strip()
    found = prefect_server.api(f"/flow_runs/{run}", method="GET")
    assert (found["state_type"], found["state_name"]) == state, answer.stderr
    message = found["state"]["message"]
    assert message.startswith(f"{cause}\nNothing was begun.\nTo go on: ")
    names = [one["name"] for one in prefect_server.api(f"/flow_run_states/?flow_run_id={run}", method="GET")]
    assert "Crashed" not in names, "not for a moment: it would call the webhook of runs that failed"
    listed = {"artifacts": {"flow_run_id": {"any_": [run]}}}  # without an order, as Prefect's pages ask
    first, *others = prefect_server.api("/artifacts/filter", listed)
    assert {one["key"] for one in others} == {f"page-{number}" for number in range(5)}, answer.stderr
    assert first["description"] == f"{state[1]}: {cause}"
    assert (
        first["data"].startswith(f"## {state[1]}\n\n")
        and "**What helps**\n\nTo go on:\n\n```\n" in first["data"]
    )
    if how == "failed":
        assert "no \\<text\\> in a\\_file\\*" in first["data"]


@pytest.mark.parametrize("own", [None, "http://me:hunter2@prefect:4200"])
def test_a_flow_runs_address_holds_no_password(monkeypatch, own):
    monkeypatch.delenv("ONWARD_OWN_SERVER", raising=False)
    set_to = {PREFECT_API_URL: "http://me:hunter2@prefect:4200/api"} | ({PREFECT_UI_URL: own} if own else {})
    with temporary_settings(set_to, restore_defaults={PREFECT_UI_URL, PREFECT_API_URL}):
        assert flow_run_url("a1") == "http://prefect:4200/runs/flow-run/a1"


def test_no_password_of_prefects_address_is_told_to_mlflow(monkeypatch, tmp_path):
    monkeypatch.delenv("ONWARD_OWN_SERVER", raising=False)
    monkeypatch.chdir(tmp_path)
    config = run_with([40960])
    tracking = config.tracking.model_copy(update={"mlflow_uri": f"sqlite:///{tmp_path / 'mlflow.db'}"})
    config = config.model_copy(update={"tracking": tracking})
    store = Store(tmp_path / "store")
    address = {PREFECT_API_URL: "http://me:hunter2@prefect:4200/api"}
    with (
        temporary_settings(address, restore_defaults={PREFECT_UI_URL}),
        _tracked(config, store, "a1", Console(quiet=True)) as tracker,
    ):
        (account,) = store.root.glob(".tracking/*.jsonl")
        text = account.read_text()
    assert "http://prefect:4200/runs/flow-run/a1" in text and "hunter2" not in text
    run = MlflowClient(config.tracking.mlflow_uri).get_run(tracker.parent)
    assert run.data.tags["prefect.url"] == "http://prefect:4200/runs/flow-run/a1"
    assert "hunter2" not in str(run.to_dictionary())
