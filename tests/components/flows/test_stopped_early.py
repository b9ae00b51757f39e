"""A small corpus that is read too often: the run ends before its budgets, at its lowest held-out loss, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.config import RunConfig, load_config
from flows.dag.plan import make_plan
from storage.artifact import Artifact
from storage.store import Store
from tasks.training.state.stopping import stopped_of
from tests.support.begun import begin
from tests.support.small import environment, write_config

pytestmark = pytest.mark.slow
BUDGETS = ("8K", "64K", "128K")


def ran(home: Path, **over: Any) -> tuple[RunConfig, str]:
    """The configuration, and what the run said."""
    rate = {"training__learning_rate": 3e-2, "evaluation__own": [], "evaluation__sample_tokens": 0}
    config = write_config(home, budgets=BUDGETS, **rate, **over)
    command = [sys.executable, "-m", "tests.support.driver", str(config)]
    done = subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return load_config(config), done.stdout


def artifacts_of(home: Path, stage: str, kind: str | None = None) -> list[Artifact]:
    found = [
        one for one in Store(home / "store").artifacts(stage) if one.manifest.config.get("kind", kind) == kind
    ]
    return sorted(found, key=lambda one: int(one.manifest.config.get("first_step", 0)))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, reference_run: Path) -> tuple[Path, RunConfig, str]:
    home = tmp_path_factory.mktemp("stopped")
    begin(reference_run, home)
    rule = {"source": "domain", "patience_tokens": "8K", "every_tokens": "1K"}
    return home, *ran(home, training__stop=rule)


def test_the_trunk_ends_at_its_lowest_loss_and_no_later_budget_is_trained(stopped) -> None:
    home, _, _ = stopped
    trunks = artifacts_of(home, "train", "trunk")
    results = [one.stats["result"] for one in trunks]
    assert [stopped_of(result) is not None for result in results] == [False] * (len(trunks) - 1) + [True]
    assert len(trunks) < len(BUDGETS)
    best, last = stopped_of(results[-1]), results[-1]
    assert best is not None and best["tokens"] + 8000 <= last["tokens_seen"]
    measured = [json.loads(line) for line in (trunks[-1].path / "stop.jsonl").read_text().splitlines()]
    assert min(line["heldout/domain"] for line in measured) == best["loss"]
    [branch] = [
        one
        for one in artifacts_of(home, "decay", "decay")
        if one.manifest.config["first_step"] == best["step"]
    ]
    assert branch.stats["tokens_seen"] > best["tokens"]
    steps = branch.manifest.config["last_step"] - best["step"]
    assert steps / branch.manifest.config["last_step"] == pytest.approx(0.2, abs=0.05)


def test_the_report_says_where_it_ended_and_a_plan_finds_nothing_to_do(stopped, monkeypatch) -> None:
    home, run, _ = stopped
    monkeypatch.setenv("ONWARD_HOME", str(home))
    [report] = artifacts_of(home, "report")
    facts = json.loads((report.path / "report.json").read_text())
    told = next(line for line in facts["findings"] if line.startswith("Training was stopped by rule before"))
    assert "held-out text of domain had been lowest at" in told
    assert {row.state for row in make_plan(run)} == {"cached"}
    [branch] = artifacts_of(home, "decay", "decay")[-1:]
    last = facts["models"][-1]
    assert (
        last["tokens"] == branch.stats["tokens_seen"] < run.training.token_budgets[len(facts["models"]) - 2]
    )
