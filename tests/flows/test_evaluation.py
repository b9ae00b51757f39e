"""A given model is measured as a run measures its own: the same stages, the same keys, so the same scores."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from servers import ROOT
from small import environment, write_config

from flows.config import TrackingConfig, load_config
from flows.evaluation import Evaluation, held_out_of, measures_of, model_of
from flows.pretrain import Model, Outcome, measure, scores_of
from storage.artifact import Artifact
from storage.errors import ConfigError, HubUnreachable
from storage.runs import RunRecord, write_record
from storage.store import Request, Store
from tasks.evaluation.catalog import EvaluationConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A store with a whole small run in it: (home, store, configuration)."""
    home = tmp_path_factory.mktemp("ran")
    path = write_config(home, budgets=("8K",))
    driver = ROOT / "tests" / "integration" / "driver.py"
    subprocess.run(
        [sys.executable, str(driver), str(path)], env=environment(home), cwd=home, check=True, timeout=600
    )
    store = Store(home / "store")
    made = tuple((artifact.stage, artifact.key) for artifact in store.artifacts())
    write_record(store, RunRecord("small-abcdef", "small", json.loads(path.read_text()), made))
    return home, store, load_config(path)


@pytest.fixture(autouse=True)
def at_home(ran, monkeypatch):
    monkeypatch.setenv("ONWARD_HOME", str(ran[0]))


def wanted(config: Any, /, **over: Any) -> Evaluation:
    given: dict[str, Any] = {
        "model": "",
        "benchmarks": config.evaluation,
        "run": "small",
        "sequence_length": config.packing.sequence_length,
        "seed": config.seed,
        "device": "cpu",
        "benchmark_files": None,
        "store": "store",
        "name": "evaluation",
        "tracking": TrackingConfig(),
    }
    return Evaluation(**{**given, **over})


def builder(store: Store, states: list[tuple[str, str]]) -> Callable[..., Artifact]:
    """Makes stages by the store alone; `states` keeps (stage, what was done)."""

    def build(request: Request, **named: object) -> Artifact:
        outcome = store.ensure(request)
        states.append((request.stage, outcome.state))
        return outcome.artifact

    return build


def measured(store: Store, asked: Evaluation) -> tuple[Model, list[tuple[str, str]]]:
    states: list[tuple[str, str]] = []
    build = builder(store, states)
    holdouts = held_out_of(store, asked.run) if asked.run else {}
    model, outcome = model_of(asked, store, build), Outcome()
    measure(measures_of(asked, holdouts, lambda text: None), build, outcome, model, holdouts)
    return model, states


def test_what_the_run_has_measured_is_found(ran):
    _, store, run = ran
    trained = next(artifact for artifact in store.artifacts() if artifact.stage == "decay")
    model, states = measured(store, wanted(run, model=trained.key[:10]))
    assert {state for _, state in states} == {"cached"}
    assert {"perplexity/domain", "perplexity/general", "eval/continuation/acc"} <= set(scores_of(model))
    assert model.tokens == trained.stats["tokens_seen"] > 7000


def test_a_directory_is_imported_and_gives_the_same_scores(ran):
    home, store, run = ran
    trained = next(artifact for artifact in store.artifacts() if artifact.stage == "decay")
    shutil.copytree(trained.path / "export", home / "given", copy_function=shutil.copyfile)
    known, _ = measured(store, wanted(run, model=f"decay/{trained.key[:6]}"))
    given, states = measured(store, wanted(run, model="given"))
    assert ("base", "built") in states
    assert scores_of(given) == pytest.approx(scores_of(known))


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"run": "other"}, "has no run 'other' (there are: small-abcdef)"),
        ({"run": None}, "nothing to measure"),
        ({"model": "decay/000000"}, "no artifact"),
        ({"model": "nowhere/at-all"}, "nowhere/at-all"),
        ({"sequence_length": 4096}, "sequence_length 4,096 is longer than the 128 positions"),
        ({"benchmarks": EvaluationConfig(domain=("mmlux",))}, "mmlux is not supported"),
        (
            {"benchmarks": EvaluationConfig(domain=("sciq",)), "benchmark_files": "nowhere"},
            "sciq has no file",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(ran, over, words):
    _, store, run = ran
    key = next(artifact.key for artifact in store.artifacts() if artifact.stage == "decay")
    with pytest.raises((ConfigError, HubUnreachable)) as caught:
        measured(store, wanted(run, **{"model": f"decay/{key[:8]}", **over}))
    assert words in str(caught.value)


def test_a_trunk_is_no_model(ran):
    _, store, run = ran
    trunk = next(a for a in store.artifacts() if a.stage == "train" and not a.has("export"))
    with pytest.raises(ConfigError, match="holds no model"):
        measured(store, wanted(run, model=f"train/{trunk.key[:8]}"))


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/b", "", "x" * 61])
def test_a_name_that_leads_elsewhere_is_refused(ran, name):
    with pytest.raises(ValidationError, match="name"):
        wanted(ran[2], name=name)


def test_its_id_is_of_what_is_measured_alone(ran):
    _, _, run = ran
    one = wanted(run, model="given")
    elsewhere = wanted(run, model="given", store="/elsewhere", device="auto", name="other")
    assert one.id == elsewhere.id
    assert one.id != wanted(run, model="given", sequence_length=32).id
    assert one.title.startswith("evaluation · given · ")
    assert Path(wanted(run, model="/a/b/model").title.split(" · ")[1]).name == "model"
