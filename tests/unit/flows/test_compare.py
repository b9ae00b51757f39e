"""`onward compare`: runs that differ in configuration, on one page, with the fields in which they differ."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.config import parse_config
from flows.inspect.compare import compare
from flows.inspect.differences import differences
from storage.errors import ConfigError, OnwardError
from storage.runs import RunRecord, write_record
from storage.store import Store
from tests.support.pages.compared import run_of, two_runs_in
from tests.support.pages.report_world import World
from tests.support.runs import minimal


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two runs that differ in the learning rate and in threads: to be copied."""
    return two_runs_in(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def world(two_runs: World, tmp_path: Path) -> World:
    """A copy of the two runs, to which a test adds its own."""
    shutil.copytree(two_runs.root, tmp_path, symlinks=True, dirs_exist_ok=True)
    world = World(tmp_path)
    world.count = two_runs.count
    return world


def change_of(row: dict[str, Any], before: str, after: str) -> dict[str, Any] | None:
    """The change from one model to another in a row of compare.json."""
    return next((one for one in row["changes"] if (one["from"], one["to"]) == (before, after)), None)


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


@pytest.mark.parametrize(
    ("kind", "over"),
    [
        ("asked", {"max_length": 128}),
        ("asked", {"shots": 2}),
        ("asked", {"harness": "0.5.0"}),
        ("read", {"max_length": 128}),
        ("read", {"stride": 16}),
    ],
)
def test_what_was_measured_in_another_way_stands_apart(world: World, kind: str, over: dict[str, Any]) -> None:
    run_of(world, "small-cccccc", world.outcome(last=5, **{kind: over}))
    compared = compare(store_of(world), ["aaaaaa", "cccccc"])
    found = compared.to_json()
    names = [model["name"] for model in found["models"]]
    assert names == ["A · base", "A · 10K", "A · 20K", "B · base", "B · 10K", "B · 20K"]
    row = next(row for row in found["benchmarks" if kind == "asked" else "perplexity"])
    assert set(row["models"]) == set(names), "both runs' base is shown as it was measured there"
    assert [(change["from"], change["to"]) for change in row["changes"]] == [
        (f"{run} · base", f"{run} · {budget}") for budget in ("20K", "10K") for run in "AB"
    ]
    mine = next(row for row in found["benchmarks"] if row["benchmark"] == "mine")
    assert change_of(mine, "A · 20K", "B · 20K") is not None
    domain = next(row for row in found["groups"] if row["group"] == "domain")
    assert (change_of(domain, "A · 20K", "B · 20K") is None) == (kind == "asked")
    assert ("64 or 128 tokens" in compared.to_markdown()) == ("max_length" in over)


def test_one_model_that_was_measured_differently_is_still_said_to_be_one(world: World) -> None:
    outcome = world.outcome()
    run_of(world, "small-cccccc", outcome)
    for model in outcome.models:
        model.scores["sciq"] = world.evaluation("sciq", [1.0, 0.0] * 10, max_length=128)
    run_of(world, "small-dddddd", outcome, evaluation__limit=20)
    sentence = compare(store_of(world), ["cccccc", "dddddd"]).to_json()["findings"][0]
    assert sentence == "A and B ended in the same model (20K), to the bit; it was measured differently."


def test_what_runs_share_was_paid_once_and_each_trained_base_is_paid(world: World) -> None:
    def trained_base() -> Any:
        stats = {"tokens": 30_000, "tokens_seen": 30_000}
        return world.artifact("train", stats, {"export": {"config.json": {"number": world.count}}})

    outcome = world.outcome()
    outcome.models[0].export = trained_base()
    run_of(world, "small-cccccc", outcome)
    outcome.models[-1].scores["sciq"] = world.evaluation("sciq", [1.0] * 20)  # all else is the first run's
    run_of(world, "small-dddddd", outcome, evaluation__limit=20)
    other = world.outcome()
    other.models[0].export = trained_base()
    run_of(world, "small-eeeeee", other, seed=7)

    def hours(*names: str) -> float:
        cost = compare(store_of(world), names).cost
        keys = [segment.key for segment in cost.segments]
        assert len(set(keys)) == len(keys)
        assert cost.all.device_hours == pytest.approx(sum(one.device_hours for one in cost.segments))
        return cost.all.device_hours

    step = 0.5 * 2 / 3600  # half a second on two threads
    own = 8 + 10 + 2 + 2 + 30
    assert hours("cccccc", "dddddd") == pytest.approx(own * step)
    assert hours("cccccc", "eeeeee") == pytest.approx(2 * own * step)
    models = compare(store_of(world), ["cccccc", "eeeeee"]).cost.models
    assert {one.name: one.sum.tokens for one in models if "base" in one.name} == {
        "A · base": 30_000,
        "B · base": 30_000,
    }


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
    front = (tmp_path / "page/figures/pareto.svg").read_text()
    standing = compared.to_json()["standings"]["B"]["general"][
        "value"
    ]  # of the only source, which no role is known of
    assert (
        f"<title>B: domain +0.000, general {standing:+.3f}</title>" in front
        and "](figures/pareto.svg)" in text
    )
    assert "](figures/" not in compared.to_markdown()
    with pytest.raises(OnwardError, match="not empty"):
        compared.write(tmp_path / "page")


def test_a_gain_is_only_along_one_line_of_training(world: World) -> None:
    page = compare(store_of(world), ["aaaaaa", "bbbbbb"]).to_markdown()
    gains = [line for line in page.splitlines() if line.startswith("|") and "→" in line.split("|")[1]]
    assert {line.split("|")[1].strip() for line in gains} >= {"base → A · 20K", "base → B · 20K"}
    rates = page.split("## Gain for each", 1)[1].split("## How sure")[0]
    assert "A · 20K → B · 20K" not in rates and "A · 20K → B · 20K" in page


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


def test_a_damaged_record_is_not_called_unknown(world: World) -> None:
    path = store_of(world).root / "runs" / "small-bbbbbb.json"
    path.write_bytes(path.read_bytes()[:-20])
    for name in ("small-bbbbbb", "bbbbbb", "small-bb"):
        with pytest.raises(
            OnwardError, match=r"small-bbbbbb\.json cannot be read: run its configuration again"
        ):
            compare(store_of(world), ["small-aaaaaa", name])
    path.rename(path.with_name(".damaged-small-bbbbbb-1.json"))
    with pytest.raises(OnwardError, match="cannot be read"):
        compare(store_of(world), ["small-aaaaaa", "bbbbbb"])
    with pytest.raises(ConfigError, match="is no run"):
        compare(store_of(world), ["small-aaaaaa", "cccccc"])
