"""Stopping and going on, as a person does it in the Prefect UI: a real server, a real worker, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.begun import begin
from tests.support.servers import PrefectServer
from tests.support.small import write_config

pytestmark = pytest.mark.slow

MLFLOW = "http://mlflow.example"


class Site:
    """A home with a server, a worker and a deployment whose training lasts long enough to be disturbed."""

    def __init__(self, server: PrefectServer, config: Path) -> None:
        self.server = server
        self.config = json.loads(config.read_text())

    def start(self, store: str, **parameters: Any) -> str:
        """A run in a store of its own."""
        config = self.server.deployment("pretrain/small")["parameters"]["config"]
        return self.server.start(
            "pretrain/small", config={**config, "store": str(self.server.home / store)}, **parameters
        )

    def set_state(self, run: str, kind: str, name: str, force: bool) -> None:
        body = {"state": {"type": kind, "name": name}, "force": force}
        self.server.api(f"/flow_runs/{run}/set_state", body)

    def retry(self, run: str) -> None:
        """The button `Retry`; returns when the run is taken up again."""
        self.set_state(run, "SCHEDULED", "AwaitingRetry", force=True)
        self.server.wait(run, "RUNNING")

    def tasks(self, run: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while page := self.server.api(
            "/task_runs/filter",
            {"flow_runs": {"id": {"any_": [run]}}, "sort": "ID_DESC", "limit": 200, "offset": len(found)},
        ):
            found += page
        return found

    def states(self, run: str, at_least: int = 1) -> Counter[str]:
        """Names of the states of the run's tasks, once Prefect has heard of so many."""
        until = time.monotonic() + 20
        while len(tasks := self.tasks(run)) < at_least and time.monotonic() < until:
            time.sleep(0.2)
        return Counter(task["state_name"] for task in tasks)

    def artifacts(self, run: str) -> dict[str, Any]:
        body = {"artifacts": {"flow_run_id": {"any_": [run]}}, "limit": 200}
        found = self.server.api("/artifacts/filter", body)
        assert len({artifact["key"] for artifact in found}) == len(found), "each is there once"
        return {artifact["key"]: artifact for artifact in found}

    def table(self, run: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.artifacts(run)["stages"]["data"])
        return rows

    def training(self, store: str) -> tuple[int, int]:
        """(last step, step of the newest checkpoint) of the long training; zeros without one."""
        step = checkpoint = 0
        for work in (self.server.home / store / ".work").glob("train-*"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                names = [
                    int(path.name.removeprefix("step-")) for path in (work / "checkpoints").glob("step-*")
                ]
                lines = (work / "journal.jsonl").read_bytes().split(b"\n")[:-1]
                step, checkpoint = int(json.loads(lines[-1])["step"]), max(names, default=0)
        return step, checkpoint

    def wait_training(self, store: str, beyond: int) -> None:
        """Until training has passed a step."""
        until = time.monotonic() + 600
        while self.training(store)[0] <= beyond or not self.training(store)[1]:
            assert time.monotonic() < until, f"no training beyond step {beyond}"
            time.sleep(0.02)

    @contextlib.contextmanager
    def held(self, store: str) -> Iterator[psutil.Process]:
        """The trainer stands still during the block: what is looked at meanwhile is no race against its end."""
        (trainer,) = (
            process
            for process in psutil.process_iter(["cmdline"])
            if "tasks.training" in (line := process.info["cmdline"] or ())
            and any(str(self.server.home / store) in word for word in line)
        )
        trainer.suspend()
        try:
            yield trainer
        finally:
            trainer.resume()

    def left(self, store: str) -> list[str]:
        """Processes that name the store or hold its files."""
        root, found = str(self.server.home / store), []
        for entry in Path("/proc").glob("[0-9]*"):
            held: list[str] = []
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                held = [os.readlink(file) for file in (entry / "fd").iterdir()]
                if root in line or any(name.startswith(root) for name in held):
                    found.append(f"{entry.name} {line}")
        return found

    def flow_process(self, run: str) -> int:
        """The process that executes the run: it was given the run's id, and started neither trainer nor supervisor."""
        for process in psutil.process_iter(["environ", "cmdline"]):
            own = (process.info["environ"] or {}).get("PREFECT__FLOW_RUN_ID") == run
            if own and "prefect.engine" in (process.info["cmdline"] or ()):
                return process.pid
        raise AssertionError("no process executes the run")


@pytest.fixture(scope="module")
def site(tmp_path_factory, reference_run):
    home = tmp_path_factory.mktemp("site")
    begin(reference_run, home, "long")
    with PrefectServer(home) as server:
        config = write_config(home, budgets=("200K",))
        server.deploy(config)
        with server.worker(ONWARD_MLFLOW_URL=MLFLOW):
            yield Site(server, config)


def test_a_dry_run_says_what_would_be_done_and_makes_nothing(site):
    run = site.start("dry", dry_run=True)
    state = site.server.wait(run, "COMPLETED")["state"]
    assert state["name"] == "Planned"
    rows = json.loads(site.artifacts(run)["plan"]["data"])
    first = rows[0]
    assert (first["stage"], first["state"], first["why"]) == (
        "ingest",
        "to build",
        "never made in this store",
    )
    train = next(row for row in rows if row["stage"] == "train")
    assert "micro-batch" in train["foreseen"]
    assert not list((site.server.home / "dry").glob("[!.]*"))
    assert site.tasks(run) == []


def test_a_failure_says_what_is_kept_and_a_retry_repeats_only_the_failed_stage(site):
    (site.server.home / "broken").mkdir()
    in_the_way = site.server.home / "broken" / "decontaminate"
    in_the_way.write_text("no directory")
    run = site.start("broken", until="decontaminate", slices=2)
    message = site.server.wait(run, "FAILED")["state"]["message"]
    in_the_way.unlink()
    assert message.startswith("decontaminate · slice 1 · ") and "Error" in message
    for word in (
        "\nKept: ",
        "\nRepeats: ",
        "put right. Then: the button Retry on this run's page in Prefect",
    ):
        assert word in message
    assert "Traceback" not in message + site.server.logs(run)
    assert [row["state"] for row in site.table(run)] == ["failed", "built", "built", "built"]
    site.retry(run)
    found = site.server.wait(run, "COMPLETED")
    assert found["run_count"] == 2
    assert site.states(run) == {"Completed": 3 + 5, "Cached": 3, "Failed": 1}
    assert [row["state"] for row in site.table(run)].count("cached") == 3


def test_cancelled_killed_and_retried_a_run_goes_on_each_time(site):
    run = site.start("long")
    site.wait_training("long", beyond=40)
    with site.held("long") as trainer:

        def shown() -> bool:
            trainer.resume()  # a few steps: a rate is of what was done between two looks
            time.sleep(0.05)
            trainer.suspend()
            time.sleep(1)
            bar = site.artifacts(run).get("small-train-round-1-200k", {}).get("description", "")
            return "tokens/s" in bar and "last checkpoint" in bar

        eventually(shown)
        assert site.table(run)[0]["state"] == "running"
        site.set_state(run, "CANCELLING", "Cancelling", force=False)
        eventually(lambda: asked_to_end(trainer.pid))
        began = time.monotonic()
    while site.left("long"):
        time.sleep(0.1)
    assert time.monotonic() - began < 28, "gone within the worker's half a minute, not killed at its end"
    site.server.wait(run, "CANCELLED")
    step, checkpoint = site.training("long")
    assert step == checkpoint > 40, "it left a checkpoint of its last step"
    assert f"at step {checkpoint:,}" in site.server.logs(run)
    assert site.table(run)[0]["state"] == "stopped"
    states = site.states(run)
    assert "Running" not in states, "the task that was stopped is not left Running"
    finished = states["Completed"]

    site.retry(run)
    site.wait_training("long", beyond=checkpoint + 20)
    assert f"goes on from step {checkpoint:,}" in site.server.logs(run)
    assert site.states(run)["Cached"] >= finished

    os.kill(site.flow_process(run), signal.SIGKILL)
    site.server.wait(run, "CRASHED", seconds=240)
    eventually(lambda: site.left("long") == [])  # the trainer leaves when its run is gone
    assert site.states(run)["Running"] == 1, "nobody could tell of the killed task yet"

    site.retry(run)
    found = site.server.wait(run, "COMPLETED", seconds=600)
    assert found["run_count"] == 3
    states = site.states(run)
    assert set(states) == {"Completed", "Cached", "Crashed"} and states["Crashed"] == 2
    rows = site.table(run)
    assert {row["state"] for row in rows} == {"cached", "built"}
    train = next(row for row in rows if row["of"] == "round 1 · 200K" and row["stage"] == "train")
    assert train["why"].startswith("begun before")
    assert site.artifacts(run)["small-train-round-1-200k"]["data"] == 100
    made = Counter(task["name"] for task in site.tasks(run) if task["state_name"] == "Completed")
    assert set(made.values()) == {1}, "nothing that was finished was made again"

    _one_mlflow_run_with_links_both_ways(site, run)


def asked_to_end(pid: int) -> bool:
    """Whether SIGTERM waits for a process that stands still."""
    pending = re.findall(r"^S\w+Pnd:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in pending)


def eventually(holds: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"not within {seconds:.0f} s"
        time.sleep(0.2)


def _one_mlflow_run_with_links_both_ways(site: Site, run: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{site.server.home / '.onward' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small").experiment_id
    (parent,) = client.search_runs([experiment], f"tags.`prefect.flow_run` = '{run}'")
    assert parent.info.status == "FINISHED"
    address = f"{site.server.ui}/runs/flow-run/{run}"
    assert f"]({address})" in parent.data.tags["mlflow.note.content"]
    link = site.artifacts(run)["mlflow"]["data"]
    assert f"({MLFLOW}/#/experiments/{experiment}/runs/{parent.info.run_id}?" in link
    (train,) = client.search_runs(
        [experiment], "tags.stage = 'train' and metrics.`train/loss` > 0", max_results=5
    )[:1]
    assert address in train.data.tags["mlflow.note.content"]
    for child in client.search_runs([experiment], "tags.stage = 'train'"):
        steps = [point.step for point in client.get_metric_history(child.info.run_id, "train/loss")]
        assert steps == sorted(set(steps)) and steps


def test_a_server_that_is_killed_and_started_again_changes_nothing(site):
    run = site.start("restarted", until="tokenize")
    site.server.wait(run, "RUNNING")
    until = time.monotonic() + 120
    while not list((site.server.home / "restarted").glob("dedup/*/manifest.json")):
        assert time.monotonic() < until
        time.sleep(0.05)
    site.server.kill()
    time.sleep(6)
    site.server.__enter__()
    site.server.wait(run, "COMPLETED")
    rows = site.table(run)
    assert {row["state"] for row in rows} == {"built"}
    tasks = site.tasks(run)
    assert Counter(task["state_name"] for task in tasks) == {"Completed": len(rows)}
    assert {task["name"] for task in tasks} == {_label(row) for row in rows}
    told = site.server.logs(run)
    assert "tokenize × " in told.rpartition("made in")[2], "what was told while nobody listened is there"


def _label(row: dict[str, Any]) -> str:
    return " · ".join(word for word in (row["stage"], row["of"], row["key"][:6]) if word)
