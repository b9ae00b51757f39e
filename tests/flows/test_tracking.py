"""What MLflow has of a run: a real database of its own, and what a trainer leaves in its work directory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.stage import Call
from flows.tracking import Tracked, Tracker, describe_run, public_address

pytestmark = pytest.mark.slow

URL = "http://127.0.0.1:4200/runs/flow-run/a1"


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


def tracker_of(database: str, work: Path, flow_run: str) -> Tracker:
    note = describe_run("small · 8K · 3f9a2c", URL, Path("/store"), {"budgets": "8K tokens"})
    tags = {"prefect.flow_run": flow_run, "prefect.url": URL}
    tracked = Tracked("small", "3f9a2c", "small · 8K · 3f9a2c", database, None, {"seed": "3"}, tags, note)
    return Tracker(tracked, lambda stage, key: work / f"{stage}-{key[:16]}", pytest.fail)


def client_of(database: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(database)


def test_a_retried_flow_run_goes_on_in_its_run_and_its_scores_stand_once(database, tmp_path):
    parents, told = [], []
    for _ in range(2):
        tracker = tracker_of(database, tmp_path, "flow-1")
        tracker.call_with_parent(lambda run, experiment: told.append((run, experiment)))
        tracker.start()
        tracker.score(None, 8000, {"perplexity/domain": 12.5})
        tracker.close("FAILED", seconds=120)
        parents.append(tracker.parent)
    assert parents[0] == parents[1] and parents[0] is not None
    client = client_of(database)
    run = client.get_run(parents[0])
    assert told == [(run.info.run_id, run.info.experiment_id)] * 2
    assert run.info.status == "FAILED"
    assert f"[This run in Prefect]({URL})" in run.data.tags["mlflow.note.content"]
    assert "| budgets | 8K tokens |" in run.data.tags["mlflow.note.content"]
    assert [(p.step, p.value) for p in client.get_metric_history(run.info.run_id, "perplexity/domain")] == [
        (8000, 12.5)
    ]


def test_another_flow_run_has_a_run_of_its_own(database, tmp_path):
    parents = set()
    for flow_run in ("flow-2", "flow-3", ""):
        tracker = tracker_of(database, tmp_path, flow_run)
        tracker.start()
        tracker.close("FINISHED", seconds=120)
        parents.add(tracker.parent)
    assert len(parents) == 3


def test_training_stands_in_mlflow_from_when_it_began(database, tmp_path):
    work = tmp_path / "train-00112233aabbccdd"
    (work / "checkpoints" / "step-00000002").mkdir(parents=True)
    rows = [{"step": step, "tokens": 256 * step, "loss": 3.0} for step in (1, 2, 3)]
    (work / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request: Any = SimpleNamespace(stage="train", key="00112233aabbccdd" * 4)
    began = time.time() - 600
    call = Call(request, None, 1, "8K", began=began)
    tracker = tracker_of(database, tmp_path, "flow-4")
    tracker.start()
    tracker.listen("begin", call, None)
    client = client_of(database)
    until = time.monotonic() + 60
    found: list[Any] = []
    while not found and time.monotonic() < until:
        time.sleep(0.2)
        if known := client.get_experiment_by_name("small"):
            found = client.search_runs(
                [known.experiment_id], "tags.stage = 'train' and metrics.`train/loss` > 0"
            )
    tracker.close("KILLED", seconds=120)
    (child,) = found
    assert child.info.start_time == pytest.approx(began * 1000, abs=2)
    assert URL in child.data.tags["mlflow.note.content"]
    steps = [p.step for p in client.get_metric_history(child.info.run_id, "train/loss")]
    assert steps == [256, 512], "what is behind the newest checkpoint may still be computed again"


def test_links_lead_to_the_public_address_and_hold_no_password(monkeypatch):
    monkeypatch.delenv("ONWARD_MLFLOW_URL", raising=False)
    assert public_address("sqlite:////tmp/mlflow.db") is None
    assert public_address("http://me:hunter2@mlflow:5000/") == "http://mlflow:5000"
    monkeypatch.setenv("ONWARD_MLFLOW_URL", "https://mlflow.example/")
    assert public_address("sqlite:////tmp/mlflow.db") == "https://mlflow.example"
