"""What MLflow refuses or cannot do, what it missed, and when it happened: nothing is held up, lost, or out of order."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.tracking.account import Account, left_behind
from flows.tracking.client import connect, is_answer
from flows.tracking.tracker import Tracked, Tracker
from storage.artifact import Artifact
from storage.errors import StageFailed
from storage.store import Request, Store
from tests.support import page_stage, segment_stage
from tests.support.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow


def tracker(
    store: Store, address: str, flow_run: str, warn: Callable[[str], None], files: Path | None = None
) -> Tracker:
    tags = {"prefect.flow_run": flow_run}
    return Tracker(
        Tracked("small", "3f9a2c", flow_run, address, files, {"seed": "3"}, tags, "", "registered"),
        store,
        warn,
    )


def published(
    store: Store, address: str, flow_run: str, *models: Any, state: str = "FINISHED", **more: Any
) -> list[str]:
    """A flow run with these models, and a page where there is one in the store; returns its warnings."""
    warned: list[str] = []
    run = tracker(store, address, flow_run, warned.append, more.get("files"))
    run.start()
    for page in store.artifacts("report"):
        run.files(page)
    run.measured(models, [model.name for model in models])
    run.close(state, seconds=120)
    return warned


def page(store: Store) -> Artifact:
    return store.ensure(Request(page_stage, page_stage.PageConfig(), page_stage.PageInputs())).artifact


def runs_of(address: str) -> dict[str, Any]:
    """Parents by their flow run."""
    client = connect(address)
    (experiment,) = [one for one in client.search_experiments() if one.name == "small"]
    runs = client.search_runs([experiment.experiment_id])
    return {run.data.tags["prefect.flow_run"]: run for run in runs if "prefect.flow_run" in run.data.tags}


def pages_of(address: str, run: Any) -> list[str]:
    return [one.path for one in connect(address).list_artifacts(run.info.run_id, "report")]


def accounts(store: Store) -> list[Account]:
    found = list(left_behind(store.root))
    for one in found:
        one.leave()
    return found


# ---- what is an answer ----------------------------------------------------------------------------------------------


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that has this one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"no")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/files"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (403, True),
        (404, True),
        (413, True),
        (401, False),
        (408, False),
        (429, False),
        (500, False),
        (503, False),
    ],
)
def test_an_upload_that_is_refused_is_an_answer(tmp_path, monkeypatch, status, answer):
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "report.md").write_text("a page")
    with answering(status) as address, pytest.raises(Exception) as caught:
        HttpArtifactRepository(address).log_artifact(str(tmp_path / "report.md"))
    assert is_answer(caught.value) is answer, repr(caught.value)


def test_a_server_that_is_not_there_is_no_answer(tmp_path):
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    (tmp_path / "report.md").write_text("a page")
    with answering(200) as address:
        pass
    with pytest.raises(Exception) as caught:
        HttpArtifactRepository(address).log_artifact(str(tmp_path / "report.md"))
    assert not is_answer(caught.value)


# ---- what is refused holds up nothing, and is tried again -----------------------------------------------------------


@pytest.mark.parametrize("kind", ["server", "sqlite"])
def test_files_that_cannot_be_kept_hold_up_nothing_and_are_there_once_they_can(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    page(store)
    with MlflowServer(tmp_path / "server") if kind == "server" else _database(tmp_path / "server") as server:
        blocked = server.home / "files"
        blocked.write_text("a file where MLflow's directory should be")
        files = None if kind == "server" else blocked
        for number in (1, 2):
            warned = published(store, server.uri, f"flow-{number}", files=files)
            assert len(warned) == 1 and "refused something" in warned[0], warned
            runs = runs_of(server.uri)
            assert {run.info.status for run in runs.values()} == {"FINISHED"}
            assert len(runs) == number
            left = accounts(store)
            assert [[event["event"] for event in one.left] for one in left] == [["files"]] * number
        blocked.unlink()
        assert published(store, server.uri, "flow-3", files=files) == []
        assert all(pages_of(server.uri, run) == ["report/report.md"] for run in runs_of(server.uri).values())
        assert len(runs_of(server.uri)) == 3 and accounts(store) == []


@contextmanager
def _database(home: Path) -> Iterator[Any]:
    home.mkdir()
    yield SimpleNamespace(uri=f"sqlite:///{home / 'mlflow.db'}", home=home)


def test_what_is_refused_for_good_is_given_up_after_some_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, address = Store(tmp_path / "store"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    page(store)
    (tmp_path / "files").write_text("in the way")
    first = published(store, address, "flow-1", files=tmp_path / "files")
    assert "the next runs try again" in first[0]
    oldest = accounts(store)[0].path
    for number in (2, 3, 4):
        published(store, address, f"flow-{number}", files=tmp_path / "files")
        assert accounts(store)[0].path == oldest, "in order of age, however often they were told"
    assert len(accounts(store)) == 4
    published(store, address, "flow-5", files=tmp_path / "files")
    assert oldest not in [one.path for one in accounts(store)]
    assert {run.info.status for run in runs_of(address).values()} == {"FINISHED"}


# ---- attempts -------------------------------------------------------------------------------------------------------


def test_how_the_last_attempt_ended_is_how_its_flow_run_ended_though_mlflow_was_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    with MlflowServer(tmp_path / "server") as server:
        assert published(store, server.uri, "flow-1", state="FAILED") == []
        server.kill()
        assert "the next run adds it" in published(store, server.uri, "flow-1", state="KILLED")[0]
        assert "the next run adds it" in published(store, server.uri, "flow-1", state="FINISHED")[0]
        ended = time.time()
        time.sleep(0.1)
        server.start()
        assert runs_of(server.uri)["flow-1"].info.status == "FAILED"
        assert published(store, server.uri, "flow-2", state="FAILED") == []
        runs = runs_of(server.uri)
        assert {name: run.info.status for name, run in runs.items()} == {
            "flow-1": "FINISHED",
            "flow-2": "FAILED",
        }
        assert runs["flow-1"].info.end_time / 1000 <= ended


def test_an_attempt_of_before_takes_nothing_from_one_that_began_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, address = Store(tmp_path / "store"), f"sqlite:///{tmp_path / 'mlflow.db'}"
    files = tmp_path / "files"
    before = tracker(store, address, "flow-1", pytest.fail, files).tracked.head("before")
    time.sleep(0.01)
    published(store, address, "flow-1", state="FINISHED", files=files)
    account = Account.begin(store.root, before)
    account.add("close", state="FAILED")
    account.leave()
    published(store, address, "flow-2", files=files)
    assert runs_of(address)["flow-1"].info.status == "FINISHED" and accounts(store) == []


# ---- when it happened -----------------------------------------------------------------------------------------------


def test_the_line_of_a_model_never_steps_back_though_a_training_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, address = Store(tmp_path / "store"), f"sqlite:///{tmp_path / 'mlflow.db'}"

    def segment(first: int, last: int, killed_at: int = 0) -> Artifact:
        config = segment_stage.SegmentConfig(first=first, last=last, killed_at=killed_at)
        return store.ensure(Request(segment_stage, config, segment_stage.SegmentInputs())).artifact

    began = time.time() * 1000
    with pytest.raises(StageFailed, match="killed"):
        segment(1, 8, killed_at=7)
    trunk = segment(1, 8, killed_at=7)
    branch = segment(9, 12)
    ended = time.time() * 1000
    model: Any = SimpleNamespace(
        name="8K", tokens=1200, export=branch, scores={}, perplexity={}, journals=[trunk, branch]
    )
    assert published(store, address, "flow-1", model, files=tmp_path / "files") == []
    client = connect(address)
    (child,) = client.search_runs(["1"], f"tags.stage_key = '{branch.key}'")
    points = sorted(
        client.get_metric_history(child.info.run_id, "line/loss"), key=lambda one: (one.timestamp, one.step)
    )
    assert [point.step for point in points] == [100 * step for step in range(1, 13)]
    assert began <= points[0].timestamp and points[-1].timestamp <= ended
