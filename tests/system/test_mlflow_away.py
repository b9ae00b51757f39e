"""`onward run` while MLflow's server is killed in the middle of a training and started again later."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from storage.store import Store
from tests.support.attempts import Attempt
from tests.support.begun import begin
from tests.support.mlflow_server import MlflowServer
from tests.support.small import ONWARD, onward, write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.usefixtures("runs_share_a_server"),
]
AWAY_SECONDS = 4.0
BUDGETS = ("8K", "120K")


def journal_rows(store: Path) -> int:
    """Steps in the journal of the training under way."""
    journals = list((store / ".work").glob("train-*/journal.jsonl"))
    return max((journal.read_bytes().count(b"\n") for journal in journals), default=0)


def trainers(run: Attempt) -> list[psutil.Process]:
    """The processes that train for a run."""
    below = psutil.Process(run.process.pid).children(recursive=True)
    return [one for one in below if "tasks.training" in " ".join(one.cmdline())]


@contextlib.contextmanager
def halted(processes: list[psutil.Process]) -> Iterator[None]:
    """Processes that stand still meanwhile."""
    assert processes
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def values(client: Any) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Every metric of every run, by stage key (or flow run) and name; fails where a step is there twice or goes back."""
    found = {}
    experiments = [one.experiment_id for one in client.search_experiments()]
    for run in client.search_runs(experiments, max_results=1000):
        of = run.data.tags.get("stage_key") or run.data.tags.get("prefect.flow_run", "")
        for name in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, name)
            points = sorted(points, key=lambda point: (point.timestamp, point.step))
            steps = [point.step for point in points]
            assert steps == sorted(set(steps)), (of, name)
            found[of, name] = [(point.step, point.value) for point in points]
    return found


def test_training_goes_on_and_the_server_has_all_of_it_once_it_is_back(tmp_path, reference_run):
    from mlflow import MlflowClient

    begin(reference_run, tmp_path)
    config = write_config(tmp_path, budgets=BUDGETS)
    store = tmp_path / "store"
    with MlflowServer(tmp_path / "server") as server:
        client = MlflowClient(server.uri)
        to_it = ["--set", f"tracking.mlflow_uri={server.uri}", "--set", "tracking.registered_model=small"]
        run = Attempt([*ONWARD, "run", str(config), "--json", *to_it], tmp_path)
        until = time.monotonic() + 1000
        while journal_rows(store) < 50:
            assert run.process.poll() is None and time.monotonic() < until, run.errors[-3000:]
            time.sleep(0.02)
        with halted(trainers(run)):  # or a fast one ends while the server is asked and killed
            steps = journal_rows(store)
            while not (before := sum(map(len, values(client).values()))):
                assert time.monotonic() < until, run.errors[-3000:]
                time.sleep(0.2)
            server.kill()
        time.sleep(AWAY_SECONDS)
        while (after := journal_rows(store)) == steps:  # none, where it has ended meanwhile
            assert run.process.poll() is None and time.monotonic() < until, run.errors[-3000:]
            time.sleep(0.1)
        assert run.process.poll() is None
        server.start()
        assert run.ended(600) == 0, run.errors[-3000:]
        result = json.loads(run.lines[-1])
        if "has not got everything" in run.errors:  # a slow machine: the next run adds it
            late = onward(tmp_path, "run", config, "--json", *to_it)
            assert late.returncode == 0, late.stderr
        found = values(client)
        check(result, found, Store(store), client)
        written = sum(map(len, found.values()))
        longest = max(len(points) for (_, name), points in found.items() if name == "train/loss")
        trained = (after or longest) - steps
        print(
            f"{before} values before the server was killed; {trained} steps trained in the {AWAY_SECONDS:.0f} s without "
            f"it, {written - before} values written since: {written} found, none twice"
        )
        again = onward(tmp_path, "run", config, "--json", *to_it)
        assert again.returncode == 0, again.stderr
        stages = {key: of for key, of in values(client).items() if key in found}
        assert stages == found, "a second run adds nothing but its own"
        named = f"small@champion --store {store} --mlflow {server.uri}".split()
        assert "from outside:" in onward(tmp_path, "lineage", *named).stdout


def check(result: dict[str, Any], found: dict[Any, Any], store: Store, client: Any) -> None:
    """Statuses, training's journals and scores as the store has them."""
    parent = client.get_run(result["mlflow_run"])
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, max_results=1000)
    open_ones = [(run.info.run_name, run.info.status) for run in runs if run.info.status != "FINISHED"]
    assert not open_ones
    for stage in result["stages"]:
        artifact = store.lookup(stage["stage"], stage["key"])
        assert artifact is not None
        if artifact.has("journal"):
            rows = pq.read_table(artifact.part("journal").only()).to_pylist()
            assert found[stage["key"], "train/loss"] == [(row["tokens"], row["loss"]) for row in rows]
    for source in ("domain", "general"):
        expected = {model["tokens"]: model["perplexity"][source] for model in result["models"]}
        history = dict(found[parent.data.tags["prefect.flow_run"], f"perplexity/{source}"])
        assert history == pytest.approx(expected)
    aliases = dict(client.get_registered_model("small").aliases)
    assert set(aliases) == {"base", "champion", *(f"tokens-{budget.lower()}" for budget in BUDGETS)}
