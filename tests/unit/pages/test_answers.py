"""Bits per byte of right answers: computed by hand, compared, and gone by where accuracy is at chance."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.inspect.compare import compare
from storage.artifact import Artifact
from storage.store import Store
from tasks.pages.plain import read_as
from tasks.pages.report.answers import bits_of
from tasks.pages.report.facts import Results
from tasks.pages.report.gather import findings, means_of_answers
from tests.support.pages.compared import run_of
from tests.support.pages.report_world import World, made

COUNT = 60


def evaluation(world: World, name: str, nats: np.ndarray, sizes: list[int] | None) -> Artifact:
    """Sixty questions of four choices, a quarter of them right; `nats` of each right answer."""
    scores = {
        "benchmark": name,
        "main": "acc",
        "metrics": {"acc": 0.25},
        "stderr": {"acc": 0.05},
        "chance": 0.25,
        "questions": COUNT,
        "available": COUNT,
        "limit": None,
        "split": "test",
        "shots": 0,
        "max_length": 64,
        "harness": "0.4.13",
    }
    rows = {
        "subject": pa.nulls(COUNT, pa.string()),
        "doc": list(range(COUNT)),
        "acc": [float(k % 4 == 0) for k in range(COUNT)],
        "loglikelihoods": [[-float(value), -90.0, -90.0, -90.0] for value in nats],
        "target": [0] * COUNT,
    }
    files: dict[str, Any] = {
        "scores": {"scores.json": scores},
        "questions": {"questions.parquet": pa.table(rows)},
    }
    if sizes is not None:
        files["answers"] = {"answers.parquet": pa.table({"bytes": pa.array(sizes, pa.int32())})}
    return world.artifact("evaluate", {}, files)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Results, str]:
    """A report in which two benchmarks stand at chance, and the right answers of one are foreseen better."""
    world = World(tmp_path_factory.mktemp("answers"))
    outcome = foreseen(world, "mine")
    artifact, facts = made(world, outcome)
    return facts, read_as(Results, facts), (artifact.path / "report.md").read_text()


def foreseen(world: World, *alike: str, faster: float = 1.0) -> Any:
    """Three models of which each foresees the answers of sciq better than the one before, and those of others alike."""
    outcome = world.outcome()
    random = np.random.default_rng(0)
    start = random.uniform(4, 8, COUNT)
    for place, model in enumerate(outcome.models):
        better = start - 0.5 * faster * place + random.normal(0, 0.1, COUNT) * bool(place)
        same = start + random.normal(0, 0.5, COUNT) * bool(place)
        model.scores = {
            "sciq": evaluation(world, "sciq", better, [4] * COUNT),
            **{name: evaluation(world, name, same, [4] * COUNT) for name in alike},
        }
    return outcome


def test_they_are_bits_of_the_right_answer_for_each_of_its_bytes(tmp_path: Path) -> None:
    world = World(tmp_path)
    table = pa.table(
        {"loglikelihoods": [[-1.0, -2.0], [-3.0, -4.0], [-5.0]], "target": pa.array([1, 0, None])}
    )
    parts = {"answers": {"answers.parquet": pa.table({"bytes": [2, 3, 5]})}}
    answers = world.artifact("evaluate", {}, parts).part("answers")
    found = bits_of(table, answers)
    assert found is not None
    assert found.tolist() == pytest.approx([2 / math.log(2) / 2, 3 / math.log(2) / 3, 5 / math.log(2) / 5])
    assert bits_of(table.slice(1), answers) is None  # of other questions
    assert bits_of(table.drop_columns(["loglikelihoods"]), answers) is None


def test_what_accuracy_cannot_see_they_do(told: tuple[dict[str, Any], Results, str]) -> None:
    facts, results, text = told
    sciq, mine = facts["answers"]
    assert (sciq["benchmark"], sciq["group"]) == ("sciq", "domain")
    [change] = [one for one in sciq["changes"] if (one["from"], one["to"]) == ("base", "20K")]
    assert change["verdict"] == "improved" and change["high"] < 0 and "mcnemar" not in change
    [other] = [one for one in mine["changes"] if (one["from"], one["to"]) == ("base", "20K")]
    assert other["verdict"] == "no clear change"
    assert all(model["at_chance"] for row in facts["benchmarks"] for model in row["models"].values())
    first = findings(results)[0 if not results.perplexity else 1]
    assert "right answers of the domain benchmarks went from" in first and ": improved." in first
    assert "The accuracy of 1 of 1 is at chance in both." in first
    assert "## How well right answers are foreseen" in text and "▼ improved" in text
    [step] = [one for one in findings(results) if one.startswith("Going on from 10K to 20K: ")]
    assert "right answers of the domain benchmarks −0.1" in step and "bits per byte, improved" in step


def test_one_of_several_benchmarks_is_not_told_as_all_of_them(
    told: tuple[dict[str, Any], Results, str],
) -> None:
    _, results, _ = told
    sciq = next(row for row in results.answers if row.benchmark == "sciq")
    assert [row.benchmark for row in means_of_answers(results)] == ["sciq", "mine"]
    twice = replace(results, answers=(*results.answers, replace(sciq, benchmark="arc_easy")))
    assert [row.benchmark for row in means_of_answers(twice)] == ["mine"]


def test_compared_runs_have_them(tmp_path: Path) -> None:
    world = World(tmp_path)
    run_of(world, "small-aaaaaa", foreseen(world))
    run_of(world, "small-bbbbbb", foreseen(world, faster=2.0), training__learning_rate=2e-3)
    found = compare(Store(tmp_path / "store"), ["aaaaaa", "bbbbbb"])
    [row] = found.to_json()["answers"]
    assert set(row["models"]) == {"base", *(f"{run} · {name}" for run in "AB" for name in ("10K", "20K"))}
    [change] = [one for one in row["changes"] if (one["from"], one["to"]) == ("A · 20K", "B · 20K")]
    assert change["verdict"] == "improved"
    assert "How well right answers are foreseen" in found.to_markdown()


def test_evaluations_of_before_have_none(tmp_path: Path) -> None:
    world = World(tmp_path)
    _, facts = made(world, world.outcome())
    assert "answers" not in facts


def test_a_model_without_them_stands_beside_the_others(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    values = np.linspace(4, 8, COUNT)
    for place, model in enumerate(outcome.models):
        model.scores = {
            "sciq": evaluation(world, "sciq", values - place, None if place == 0 else [4] * COUNT)
        }
    _, facts = made(world, outcome)
    [row] = facts["answers"]
    assert list(row["models"]) == ["10K", "20K"]
    assert [(one["from"], one["to"]) for one in row["changes"]] == [("10K", "20K")]
