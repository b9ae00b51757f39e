"""`onward compare`: runs that differ in configuration, on one page, with the fields in which they differ."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.compare import compare
from flows.config import parse_config
from flows.differences import differences
from storage.errors import ConfigError, OnwardError
from storage.runs import RunRecord, write_record
from storage.store import Store
from tasks.report_scores import change_of
from tests.flows.test_config import minimal
from tests.tasks.test_report import World, made

ROOT = Path(__file__).resolve().parents[2]


def run_of(world: World, name: str, outcome: Any, **over: Any) -> RunRecord:
    """A run that came to `outcome`: its report in the store, and its record."""
    report, _ = made(world, outcome)
    config = parse_config(minimal(**over)).model_dump(mode="json")
    record = RunRecord(
        name, name.rpartition("-")[0], config, ((report.stage, report.key),), state="completed"
    )
    write_record(Store(world.root / "store"), record)
    return record


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    run_of(world, "small-aaaaaa", world.outcome(), training__learning_rate=1e-3)
    run_of(
        world,
        "small-bbbbbb",
        world.outcome(last=5),
        training__learning_rate=2e-3,
        training__execution={"threads": 2},
    )
    return world


def store_of(world: World) -> Store:
    return Store(world.root / "store")


def test_exactly_the_fields_that_differ_are_named(world: World) -> None:
    found = compare(store_of(world), ["small-aaaaaa", "small-bbbbbb"]).to_json()["differences"]
    assert found["identity"] == [{"field": "training.learning_rate", "values": {"A": 0.001, "B": 0.002}}]
    assert found["execution"] == [{"field": "training.execution.threads", "values": {"A": None, "B": 2}}]
    assert found["unknown"] == []


def test_fields_inside_of_lists_and_of_other_lengths_are_named() -> None:
    one = minimal()
    other = minimal(training__token_budgets=["400K"], name="other")
    other["corpus"]["sources"][0]["weight"] = 3
    configs = {label: parse_config(raw).model_dump(mode="json") for label, raw in (("A", one), ("B", other))}
    found = differences(configs)
    assert [field.path for field in found.identity] == ["corpus.sources[0].weight", "training.token_budgets"]
    assert found.identity[1].values == {"A": [400_000, 1_000_000], "B": [400_000]}
    assert [field.path for field in found.execution] == ["name"]


def test_a_configuration_of_before_with_other_keys_is_compared_all_the_same() -> None:
    config = parse_config(minimal()).model_dump(mode="json")
    found = differences({"A": config, "B": {**config, "seed": 1, "gone": True}})
    assert found.identity == found.execution == ()
    assert {field.path: field.values["B"] for field in found.unknown} == {"gone": True, "seed": 1}


def test_models_of_runs_are_tested_against_each_other_on_the_same_questions(world: World) -> None:
    found = compare(store_of(world), ["aaaaaa", "bbbbbb"]).to_json()
    assert [model["name"] for model in found["models"]] == [
        "base",
        "A · 10K",
        "A · 20K",
        "B · 10K",
        "B · 20K",
    ]
    sciq = next(row for row in found["benchmarks"] if row["benchmark"] == "sciq")
    change = change_of(sciq, "A · 20K", "B · 20K")
    assert change is not None and change["value"] == pytest.approx(-11 / 20) and change["verdict"] == "worse"
    assert change["mcnemar"] == {"gained": 0, "lost": 11, "p": 2 / 2**11}
    equal = change_of(sciq, "A · 10K", "B · 10K")
    assert equal is not None and (equal["value"], equal["verdict"]) == (0.0, "no clear change")
    assert found["findings"][0].startswith("B · 20K against A · 20K: perplexity on edu 0.0 [")
    assert "the mean of the domain benchmarks −55.0 [" in found["findings"][0]


def test_other_questions_by_the_same_name_are_not_compared(world: World, tmp_path: Path) -> None:
    outcome = world.outcome()
    for model in outcome.models:
        model.scores["sciq"] = world.evaluation(
            "sciq", [1.0, 0.0] * 12
        )  # not the twenty that were asked before
    run_of(world, "small-cccccc", outcome, seed=7)
    found = compare(store_of(world), ["aaaaaa", "cccccc"]).to_json()
    sciq = next(row for row in found["benchmarks"] if row["benchmark"] == "sciq")
    assert change_of(sciq, "A · 20K", "B · 20K") is None
    mine = next(row for row in found["benchmarks"] if row["benchmark"] == "mine")
    assert change_of(mine, "A · 20K", "B · 20K") is not None


def test_the_page_is_written_with_its_figures(world: World, tmp_path: Path) -> None:
    compared = compare(store_of(world), ["aaaaaa", "bbbbbb"])
    compared.write(tmp_path / "page")
    assert {path.name for path in (tmp_path / "page").iterdir()} == {
        "compare.md",
        "compare.html",
        "compare.json",
        "figures",
    }
    text = (tmp_path / "page/compare.md").read_text()
    assert "| training.learning_rate | 0.001 | 0.002 |" in text and "## What it cost" in text
    assert (tmp_path / "page/figures/efficiency.svg").is_file() and "](figures/" in text
    assert "](figures/" not in compared.to_markdown()
    with pytest.raises(OnwardError, match="not empty"):
        compared.write(tmp_path / "page")


def test_unknown_runs_and_runs_without_a_report_are_errors(world: World) -> None:
    store = store_of(world)
    with pytest.raises(ConfigError, match="'nowhere' is no run .*small-aaaaaa, small-bbbbbb"):
        compare(store, ["aaaaaa", "nowhere"])
    with pytest.raises(ConfigError, match="'small' means several runs"):
        compare(store, ["small", "aaaaaa"])
    with pytest.raises(ConfigError, match="two runs or more"):
        compare(store, ["aaaaaa", "small-aaaaaa"])
    write_record(store, RunRecord("small-dddddd", "small", {}, state="failed"))
    with pytest.raises(OnwardError, match=r"small-dddddd has no report .*failed"):
        compare(store, ["aaaaaa", "dddddd"])


def test_the_command_prints_one_answer(world: World, tmp_path: Path) -> None:
    def onward(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", "compare", *arguments]
        command += ["--store", str(world.root / "store")]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
        )

    page = tmp_path / "page"
    done = onward("aaaaaa", "bbbbbb", "--json", "--to", str(page))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][1]["run"] == "small-bbbbbb" and (page / "compare.html").is_file()
    text = onward("aaaaaa", "bbbbbb")
    assert text.stdout.startswith("# A and B, compared") and text.returncode == 0
    wrong = onward("aaaaaa", "nowhere")
    assert wrong.returncode == 2 and "is no run" in wrong.stderr and wrong.stdout == ""
