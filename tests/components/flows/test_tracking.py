"""What MLflow has of a run: in SQLite, in PostgreSQL and over a real server, told once, twice, and killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.dag.call import Call
from flows.dag.state import Outcome
from flows.runs.run import RunAttempt
from flows.tracking import tracker as tracking
from flows.tracking.account import left_behind
from flows.tracking.client import connect
from flows.tracking.runs import Point, Runs, gone, owner
from flows.tracking.tracker import Tracked, Tracker, describe_run, public_address
from flows.tracking.values import CURVE, curve_of
from flows.tracking.view import TAG, View
from flows.tracking.view import address as page_of
from storage.store import Store
from tests.support import ROOT
from tests.support.made import REGISTERED, URL, Made
from tests.support.mlflow_checks import check_whole, client_of, histories, runs_of
from tests.support.mlflow_server import MlflowServer, postgresql_address
from tests.support.runs import run_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "server"])
def address(request, tmp_path_factory) -> Iterator[str]:
    home = tmp_path_factory.mktemp(request.param)
    before = Path.cwd()
    os.chdir(home)  # MLflow's default places would be made here
    if request.param == "sqlite":
        yield f"sqlite:///{home / 'a' / 'mlflow.db'}"
    elif request.param == "postgresql":
        with postgresql_address() as found:
            yield found
    else:
        with MlflowServer(home / "server") as server:
            yield server.uri
    os.chdir(before)


def test_all_of_a_run_is_there_once_also_when_it_is_told_again(address, made):
    for flow_run in ("flow-a", "flow-b"):
        tracker = made.tracker(address, flow_run)
        tracker.start()
        made.tell(tracker)
        tracker.close("FINISHED", seconds=240)
        numbers = check_whole(made, address)
        if flow_run == "flow-a":
            first = numbers
    assert numbers == first, "the second flow run added nothing to the stages"
    client = client_of(address)
    children, parents = runs_of(client)
    assert len(parents) == 2
    for parent in parents:
        assert parent.info.status == "FINISHED"
        assert parent.data.params["seed"] == "3" and "prefect.flow_run" in parent.data.tags
        linked = {value for name, value in parent.data.tags.items() if name.startswith("child.")}
        assert linked <= {run.info.run_id for run in children.values()}
        scores = histories(client, parent)
        for source in ("domain", "general"):
            expected = {m.tokens: m.perplexity[source].stats["perplexity"] for m in made.models}
            assert dict(scores[f"perplexity/{source}"]) == pytest.approx(expected)
        assert {step for step, _ in scores["eval/continuation/acc"]} == {0, 8000, 20000}
        assert len(client.get_run(parent.info.run_id).outputs.model_outputs) == 3
    assert not list(made.store.root.glob(".tracking/*.jsonl"))
    assert not Path("mlflow.db").exists() and not Path("mlruns/0").exists(), (
        "an address of MLflow's own choice"
    )


def test_datasets_carry_the_digests_of_the_store(address, made):
    client = client_of(address)
    children, parents = runs_of(client)
    train = next(one for one in made.artifacts.values() if one.stage == "decay")
    inputs = {one.dataset.name: one for one in children[train.key].inputs.dataset_inputs}
    assert set(inputs) == {"corpus/domain", "corpus/general", "packing manifest"}
    (manifest,) = train.manifest.inputs["manifests"]
    packed = made.artifacts[manifest["key"]]
    assert inputs["packing manifest"].dataset.digest == manifest["digest"][:36]
    for source, parts in packed.manifest.inputs["shards"].items():
        where = json.loads(inputs[f"corpus/{source}"].dataset.source)
        assert [one["digest"] for one in where["artifacts"]] == [one["digest"] for one in parts]
        for file in where["files"]:
            digest = subprocess.run(
                ["sha256sum", made.home / "text" / file["name"]], capture_output=True, text=True, check=True
            )
            assert file["sha256"] == digest.stdout.split()[0]
    for key, run in children.items():
        artifact = made.artifacts[key]
        if artifact.stage == "perplexity":
            (one,) = run.inputs.dataset_inputs
            assert one.dataset.digest == artifact.manifest.inputs["holdout"]["digest"][:36]
            assert {tag.value for tag in one.tags} == {"evaluation"}
    named = {one.dataset.name for one in parents[0].inputs.dataset_inputs}
    assert named >= {
        "corpus/domain",
        "packing manifest",
        "benchmark/continuation",
        "holdout/domain",
        "holdout/general",
    }


def test_a_model_in_mlflow_is_a_pointer_to_its_files(address, made, tmp_path):
    import mlflow.artifacts

    client = client_of(address)
    version = client.get_model_version_by_alias(f"{REGISTERED}-small", "tokens-20k")
    logged = client.get_logged_model(version.tags["model_id"])
    path = mlflow.artifacts.download_artifacts(
        artifact_uri=logged.artifact_location, dst_path=str(tmp_path), tracking_uri=address
    )
    files = {str(one.relative_to(path)) for one in Path(path).rglob("*") if one.is_file()}
    assert {"model.json", "MLmodel", "code/onward_model.py", "components/tokenizer/tokenizer.json"} <= files
    assert not [one for one in files if one.endswith(".safetensors")]
    pointer = json.loads((Path(path) / "model.json").read_text())
    led = logged.tags["mlflow.modelVersions"]
    assert [(one["name"], str(one["version"])) for one in json.loads(led)] == [
        (f"{REGISTERED}-small", str(version.version))
    ]
    export = made.models[-1].export
    assert Path(pointer["store"], pointer["path"], "model.safetensors").is_file()
    assert {one["path"]: one["sha256"] for one in pointer["files"]} == {
        entry.path: entry.sha256 for entry in export.manifest.parts["export"].files
    }


def test_a_model_is_measured_by_its_name_in_the_registry_and_its_commands_run_as_they_stand(
    address, made, tmp_path, monkeypatch
):
    from flows.entrypoints import _evaluation
    from flows.runs.evaluate import model_of

    name = f"{REGISTERED}-small@tokens-20k"
    of = {"benchmarks": {}, "benchmark_files": None, "store": str(made.store.root)}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)  # as a database with a password must be named
    wanted = _evaluation(None, model=name, sequence_length=64, device="cpu", seed=0, name="e", **of)
    found = model_of(wanted, made.store, pytest.fail)
    assert found.export.key == made.models[-1].export.key
    version = client_of(address).get_model_version_by_alias(*name.split("@"))
    export, lineage = version.description.split("```sh\n")[1].split("\n```")[0].splitlines()
    for command in (export, lineage):
        answer = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "20K" / "model.safetensors").is_file()


def test_killed_at_any_moment_and_told_again_it_ends_as_if_it_never_was(made, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(made.store.root, store, symlinks=True)
    mine = Made(made.home, Store(store), made.artifacts, made.models, made.report, made.items)
    (tmp_path / "mlflow").mkdir()
    address = f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"
    command = [sys.executable, "-m", "tests.support.made", str(store), address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for number, wait in enumerate((1.0, 2.5, 4.0, 6.0, 0.3)):
        process = subprocess.Popen(
            [*command, f"flow-{number % 3}", "small", "0.05"],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith(b"parent"):
            assert line, "the process ended by itself"
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    tracker = mine.tracker(address, "flow-last")
    tracker.start()
    mine.tell(tracker)
    tracker.close("FINISHED", seconds=240)
    check_whole(mine, address)
    _, parents = runs_of(client_of(address))
    states = {run.data.tags["prefect.flow_run"]: run.info.status for run in parents}
    killed = dict.fromkeys(("flow-0", "flow-1", "flow-2"), "KILLED")
    assert states == {**killed, "flow-last": "FINISHED"}
    assert not list(store.glob(".tracking/*.jsonl"))


def test_checkpoints_of_the_way_are_a_line_of_their_own_that_never_steps_back(database, made):
    """As a run tells them: the first budget, then what was kept before it."""
    tracker = made.tracker(database, "flow-7", "kept")
    builder: Any = SimpleNamespace(listeners=[], store=made.store)
    attempt = RunAttempt.of(run_with([40960]), builder, tracker, None)
    base, between, budget = made.models
    attempt.outcome = Outcome(models=[base, budget], between=[between])
    tracker.start()
    attempt.publish_scores(complete=False)
    tracker.close("FINISHED", seconds=120)
    client = client_of(database)
    parent = client.get_run(tracker.parent)
    scores = histories(client, parent)
    for prefix, models in (("", (base, budget)), ("trunk/", (between,))):
        for name in ("perplexity", "bits_per_byte"):
            expected = {one.tokens: one.perplexity["domain"].stats[name] for one in models}
            assert dict(scores[f"{prefix}{name}/domain"]) == pytest.approx(expected)
        expected = {one.tokens: one.scores["continuation"].stats["metrics"]["acc"] for one in models}
        assert dict(scores[f"{prefix}eval/continuation/acc"]) == pytest.approx(expected)
    logged = client.search_logged_models([parent.info.experiment_id])
    assert {one.tags["stage_key"] for one in logged} == {one.export.key for one in made.models}


def tracker_of(database: str, store: Path, flow_run: str) -> Tracker:
    note = describe_run("small · 8K · 3f9a2c", URL, Path("/store"), {"budgets": "8K tokens"})
    tags = {"prefect.flow_run": flow_run, "prefect.url": URL}
    tracked = Tracked("other", "3f9a2c", "small · 8K · 3f9a2c", database, None, {"seed": "3"}, tags, note)
    return Tracker(tracked, Store(store), pytest.fail)


def test_a_retried_flow_run_goes_on_in_its_run_and_its_scores_stand_once(database, made):
    parents, told = [], []
    for _ in range(2):
        tracker = made.tracker(database, "flow-1", "retried")
        tracker.call_with_parent(lambda run, experiment: told.append((run, experiment)))
        tracker.start()
        tracker.measured(made.models[:1])
        tracker.ended("failed", "## Failed")
        tracker.close("FAILED", seconds=120)
        parents.append(tracker.parent)
    assert parents[0] == parents[1] and parents[0] is not None
    client = client_of(database)
    run = client.get_run(parents[0])
    assert told == [(run.info.run_id, run.info.experiment_id)] * 2
    assert (run.info.status, run.data.tags["onward.ended"]) == ("FAILED", "failed")
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("## Failed\n\nnote\n\n[All runs of"), "once, and above what the run is"
    assert note.endswith(f"({page_of(run.info.experiment_id)})")
    expected = made.models[0].perplexity["domain"].stats["perplexity"]
    assert dict(histories(client, run)["perplexity/domain"]) == pytest.approx({0: expected})


def test_a_run_that_finds_everything_asks_mlflow_little(database, made, monkeypatch):
    asked: list[str] = []

    class Counting:
        def __init__(self, client: Any) -> None:
            self.client = client

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(self.client, name)

    monkeypatch.setattr(tracking, "connect", lambda uri: Counting(connect(uri)))
    for flow_run in ("flow-first", "flow-second", "flow-found"):  # why one is champion changes once more
        asked.clear()
        tracker = made.tracker(database, flow_run, "found")
        tracker.start()
        made.tell(tracker)
        tracker.close("FINISHED", seconds=240)
    assert len(asked) <= 25, asked
    written = {"create_logged_model", "create_model_version", "set_model_version_tag", "update_model_version"}
    assert not written & set(asked), asked
    check_whole(made, database, "found")


def test_the_saved_view_is_written_once_and_a_persons_stays(database, made):
    client = client_of(database)

    def view_after(flow_run: str, *benchmarks: str) -> dict[str, Any]:
        tracker = made.tracker(database, flow_run, "viewed")
        tracked = replace(tracker.tracked, view=View.of({"domain": "domain"}, benchmarks))
        tracker = Tracker(tracked, made.store, pytest.fail)
        tracker.start()
        tracker.close("FINISHED", seconds=120)
        found: dict[str, Any] = json.loads(client.get_experiment_by_name("viewed").tags[TAG])
        return found

    first = view_after("flow-a", "sciq")
    assert view_after("flow-b", "sciq") == first
    other = view_after("flow-c", "sciq", "piqa")
    assert other["state"] != first["state"]
    saved = {**first, "updatedAt": first["createdAt"] + 1}  # by a person, in MLflow's page
    client.set_experiment_tag(client.get_experiment_by_name("viewed").experiment_id, TAG, json.dumps(saved))
    assert view_after("flow-d", "sciq", "piqa") == saved


def test_another_flow_run_has_a_run_of_its_own_that_says_what_it_is(database, tmp_path):
    parents = set()
    for flow_run in ("flow-2", "flow-3", ""):
        tracker = tracker_of(database, tmp_path, flow_run)
        tracker.start()
        tracker.close("FINISHED", seconds=120)
        parents.add(tracker.parent)
    assert len(parents) == 3
    note = client_of(database).get_run(parents.pop()).data.tags["mlflow.note.content"]
    assert f"[This run in Prefect]({URL})" in note and "| budgets | 8K tokens |" in note


def test_training_stands_in_mlflow_from_when_it_began_and_no_step_is_there_twice(database, tmp_path):
    work = tmp_path / ".work" / "train-00112233aabbccdd"
    (work / "checkpoints" / "step-00000002").mkdir(parents=True)
    rows = [{"step": step, "tokens": 256 * step, "loss": 3.0, "seconds": 0.5} for step in range(1, 6)]
    (work / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    request: Any = SimpleNamespace(stage="train", key="00112233aabbccdd" * 4)
    began = time.time() - 600
    client = client_of(database)
    for last, state in ((2, "KILLED"), (4, "FAILED")):
        (work / "checkpoints" / f"step-{last:08}").mkdir(exist_ok=True)
        (work / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        call = Call(request, None, 1, "8K", began=began)
        tracker = tracker_of(database, tmp_path, "flow-4")
        tracker.start()
        tracker.listen("begin", call, None)
        until, steps = time.monotonic() + 60, []
        while steps != [256 * step for step in range(1, last + 1)] and time.monotonic() < until:
            time.sleep(0.2)
            if known := client.get_experiment_by_name("other"):
                found = client.search_runs([known.experiment_id], "tags.stage = 'train'")
                points = client.get_metric_history(found[0].info.run_id, "train/loss") if found else []
                steps = [point.step for point in points]
        assert steps == [256 * step for step in range(1, last + 1)], "behind a checkpoint it may be other yet"
        call.error = KeyboardInterrupt() if state == "KILLED" else ValueError()
        tracker.listen("failed", call, None)
        tracker.close(state, seconds=120)
        (child,) = client.search_runs([known.experiment_id], "tags.stage = 'train'")
        assert child.info.status == state
        assert child.info.start_time == pytest.approx(began * 1000, abs=2)
        assert URL in child.data.tags["mlflow.note.content"]
        times = [point.timestamp - child.info.start_time for point in points]
        assert times == [500 * step for step in range(1, last + 1)], (
            "when it was measured, not when it was sent"
        )


def test_the_machine_is_told_while_something_trains_and_not_between(database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.5")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "2")
    work = tmp_path / ".work" / "train-00112233aabbccdd"
    work.mkdir(parents=True)
    (work / "energy.json").write_text('{"joules": 12.5}')
    request: Any = SimpleNamespace(stage="train", key="00112233aabbccdd" * 4)
    call = Call(request, None, 1, "8K", began=time.time())
    tracker = tracker_of(database, tmp_path, "flow-6")
    tracker.start()
    tracker.listen("begin", call, None)
    client, until, found = client_of(database), time.monotonic() + 60, {}
    while len(found) < 5 and time.monotonic() < until:
        time.sleep(0.2)
        run = client.get_run(tracker.parent) if tracker.parent else None
        found = {name for name in run.data.metrics if name.startswith("system/")} if run else {}
    call.error = ValueError()
    tracker.listen("failed", call, None)
    tracker.close("FAILED", seconds=120)
    assert found >= {
        "system/cpu_utilization_percentage",
        "system/system_memory_usage_megabytes",
        "system/run_memory_megabytes",
        "system/training_energy_joules",
    }
    points = client.get_metric_history(tracker.parent, "system/run_memory_megabytes")
    assert all(0 <= point.step < 120 and point.value > 10 for point in points)


def test_what_was_left_running_on_another_machine_is_ended_once_it_gives_no_sign(database, tmp_path):
    client = client_of(database)
    experiment = client.create_experiment("elsewhere")
    tags = {"onward.pid": "1", "onward.host": "another", "onward.started": "1"}
    old = client.create_run(experiment, tags={**tags, "onward.alive": str(int(time.time()) - 3600)})
    new = client.create_run(experiment, tags={**tags, "onward.alive": str(int(time.time()) - 60)})
    tracker = tracker_of(database, tmp_path, "flow-5")
    tracker.start()
    tracker.close("FINISHED", seconds=120)
    assert client.get_run(old.info.run_id).info.status == "KILLED"
    assert client.get_run(new.info.run_id).info.status == "RUNNING"


def test_what_a_process_of_this_machine_left_running_is_ended_at_once_whatever_the_host_is_called():
    alive = {"onward.alive": str(int(time.time()))}
    here = {**owner(), **alive, "onward.host": "before"}
    assert not gone(here)
    assert gone({**here, "onward.started": "1"})
    of_old = {name: here[name] for name in ("onward.pid", "onward.started", "onward.alive")}
    assert not gone({**of_old, "onward.host": os.uname().nodename})
    assert gone({**of_old, "onward.host": os.uname().nodename, "onward.started": "1"})


def test_what_the_server_refuses_does_not_keep_the_rest_from_it(database, made, tmp_path):
    warned: list[str] = []
    store = tmp_path / "store"
    shutil.copytree(made.store.root, store, symlinks=True)
    made = Made(made.home, Store(store), made.artifacts, made.models, made.report, made.items)
    tracker = made.tracker(database, "flow-6", "refusing", warned.append)
    tracker.start()
    tracker._note("files", stage="report", key="ff" * 32)  # not in the store: nothing to publish
    tracker.tracked.tags["x"] = "y"
    bad = made.models[0]
    tracker._note("model", stage=bad.export.stage, key=bad.export.key, name="base", tokens=0, alias="latest",
                  scores=[], journals=[])  # fmt: skip
    tracker.measured(made.models[1:2])
    tracker.close("FINISHED", seconds=120)
    assert any("refused" in words and "latest" in words for words in warned), warned
    client = client_of(database)
    run = client.get_run(tracker.parent)
    (account,) = left_behind(store)
    account.leave()
    assert [(event["event"], event["alias"]) for event in account.left] == [("model", "latest")]
    assert run.info.status == "FINISHED" and "perplexity/domain" in run.data.metrics


def test_links_lead_to_the_public_address_and_hold_no_password(monkeypatch):
    monkeypatch.delenv("ONWARD_MLFLOW_URL", raising=False)
    assert public_address("sqlite:////tmp/mlflow.db") is None
    assert public_address("http://me:hunter2@mlflow:5000/") == "http://mlflow:5000"
    monkeypatch.setenv("ONWARD_MLFLOW_URL", "https://mlflow.example/")
    assert public_address("sqlite:////tmp/mlflow.db") == "https://mlflow.example"


def test_many_values_and_params_come_in_few_requests_and_no_step_is_torn(database):
    client = client_of(database)
    experiment = client.create_experiment("many")
    run = client.create_run(experiment).info.run_id
    sent: list[tuple[list[Any], list[Any]]] = []

    def log_batch(run: str, metrics: list[Any], params: list[Any], tags: list[Any]) -> None:
        sent.append((metrics, params))
        client.log_batch(run, metrics, params, tags)

    runs = Runs(SimpleNamespace(log_batch=log_batch), experiment, "attempt")
    steps = range(1, 1251)
    rows = ([Point(f"train/{k}", step + k / 10, 256 * step, 500 * step) for k in range(8)] for step in steps)
    runs.fill(run, {f"p{number}": "x" for number in range(150)}, {"p0": "x"}, rows)
    assert len(sent) == 11  # 10,000 values and 149 params, 1,000 at most to a request
    for metrics, params in sent:
        assert len(metrics) + len(params) <= 1000 and len(params) <= 100
        assert {
            len([one for one in metrics if one.step == step]) for step in {one.step for one in metrics}
        } == {8}
    found = client.get_run(run)
    assert len(found.data.params) == 149
    assert {len(points) for points in histories(client, found).values()} == {1250}


def test_the_flow_run_shows_the_whole_line_of_training(database, made):
    """Trunk and branches by tokens, once, also where another attempt tells of it again; the base's own training is none."""
    parents = set()
    for _ in range(2):
        tracker = made.tracker(database, "flow-curve", "curve")
        tracker.start()
        made.tell(tracker)
        tracker.close("FINISHED", seconds=240)
        parents.add(tracker.parent)
    (parent,) = parents
    client = client_of(database)
    expected: dict[str, list[tuple[int, float]]] = {"train": [], "decay": []}
    for artifact in sorted(made.artifacts.values(), key=lambda one: one.stats.get("tokens_seen", 0)):
        if artifact.stage in ("train", "decay") and artifact.manifest.config["kind"] != "pretrain":
            rows = pq.read_table(artifact.part("journal").only()).to_pylist()
            assert len(rows) <= 200
            expected[artifact.stage] += [(row["tokens"], row["loss"]) for row in rows]
    for prefix, points in expected.items():
        history = client.get_metric_history(parent, f"{prefix}/loss")
        assert points and [(one.step, one.value) for one in history] == points
        assert len(client.get_metric_history(parent, f"{prefix}/lr")) == len(points)
    names = {name for name in client.get_run(parent).data.metrics if name.startswith(("train/", "decay/"))}
    assert names == {f"{prefix}/{column}" for prefix in expected for column in CURVE}


def test_of_a_long_segment_the_flow_run_shows_two_hundred_steps() -> None:
    rows = [
        {"step": n, "tokens": 64 * n, "loss": 3.0, "seconds": 1.0, "spike": False} for n in range(1, 5001)
    ]
    segment = {"kind": "trunk", "first_step": 0, "last_step": 5000}
    found = list(curve_of(segment, rows, 0, lambda name: -1))
    assert [points[0].step // 64 for points in found] == list(range(25, 5001, 25))
    assert [point.name for point in found[0]] == ["train/loss"] and found[0][0].time == 25_000
    began = list(curve_of(segment, rows[:1000], 0, lambda name: -1, until=510))
    again = list(curve_of(segment, rows, 0, lambda name: began[-1][0].step))
    assert [*began, *again] == found
    odd = list(
        curve_of({"kind": "decay", "first_step": 10, "last_step": 611}, rows, 0, lambda name: -1, until=611)
    )
    assert odd[-1][0].step == 64 * 611 and odd[-1][0].name == "decay/loss"
    held = [row | ({"heldout/web": 2.5} if row["step"] == 777 else {}) for row in rows]
    more = list(curve_of(segment, [{"step": 0, "tokens": 0, "heldout/web": 4.0}, *held], 0, lambda name: -1))
    assert [(point.name, point.step) for point in more[0]] == [("train/heldout/web", 0)]
    [measured] = [points for points in more if points[0].step == 64 * 777]
    assert {point.name: point.value for point in measured} == {"train/loss": 3.0, "train/heldout/web": 2.5}
    assert not list(curve_of({"kind": "pretrain", "first_step": 0, "last_step": 9}, rows, 0, lambda name: -1))
