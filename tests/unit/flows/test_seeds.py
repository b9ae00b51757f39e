"""What several seeds say together: the spread over seeds, beside the error over questions."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from flows.config import parse_config
from flows.dag.requests import Requests
from flows.runs.seeds import override_of, seeds_of, summarise
from storage.store import Store
from tasks.pages.plain import read_as
from tasks.pages.report.facts import Results, change_of
from tasks.pages.report.seeds import seeds_blocks, seeds_facts
from tests.support.pages.report_world import World, made
from tests.support.runs import minimal


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, dict[int, Any]]:
    world = World(tmp_path_factory.mktemp("world"))
    return world, {seed: made(world, world.outcome(last=last)) for seed, last in ((5, 16), (6, 14), (7, 18))}


def test_mean_and_deviation_are_over_seeds(reports: tuple[World, dict[int, Any]]) -> None:
    read = {seed: read_as(Results, report) for seed, (_, report) in reports[1].items()}
    facts = seeds_facts(read)
    rows = {row.measure: row for row in facts.measures}
    assert facts.seeds == (5, 6, 7) and set(rows) == {"perplexity on edu", "sciq", "mine"}
    last = rows["sciq"].models["20K"]
    assert last.values == pytest.approx([80.0, 70.0, 90.0])
    assert (last.mean, last.deviation) == (pytest.approx(80.0), pytest.approx(10.0))
    assert rows["sciq"].models["base"].deviation == 0.0
    change = next(one for one in rows["sciq"].changes if (one.before, one.after) == ("base", "20K"))
    assert change.mean == pytest.approx(70.0) and change.deviation == pytest.approx(10.0)
    each = [found.stderr for one in read.values() if (found := change_of(one.benchmarks[0], "base", "20K"))]
    assert change.questions == pytest.approx(100 * statistics.fmean(each))


def test_the_page_says_deviation_and_error_apart(reports: tuple[World, dict[int, Any]]) -> None:
    world, found = reports
    store = Store(world.root / "store")
    run = parse_config(minimal(store=str(store.root), seed=5))
    paths = {seed: str(artifact.path.relative_to(store.root)) for seed, (artifact, _) in found.items()}
    page, facts = summarise(run, "abcdef", paths)
    text = (page / "seeds.md").read_text()
    assert "| sciq | 10.00 ± 0.00 | 20.00 ± 0.00 | 80.00 ± 10.00 |" in text
    assert "+70.00 ± 10.00<br>over questions ± " in text and "seed 5 | seed 6 | seed 7" in text
    assert seeds_blocks(facts, "small") and (page / "seeds.html").is_file()
    assert not store.unreadable()


def test_one_seed_has_no_deviation(reports: tuple[World, dict[int, Any]]) -> None:
    facts = seeds_facts({5: read_as(Results, reports[1][5][1])})
    assert facts.measures[0].models["base"].deviation is None


def test_seeds_count_from_the_configurations_own() -> None:
    run = parse_config(minimal(seed=5))
    assert seeds_of(run, 3) == [5, 6, 7]
    assert [override_of(run, seed) for seed in (5, 6)] == [[], ["training.seed=6"]]
    assert seeds_of(parse_config(minimal(seed=5, training__seed=11)), 2) == [11, 12]


def test_a_training_seed_leaves_what_is_read_and_asked_alone() -> None:
    plain, other = (parse_config(minimal(seed=5, **over)) for over in ({}, {"training__seed": 6}))
    store = Store(plain.store_path)
    asks = [Requests(run, store, warn=lambda text: None) for run in (plain, other)]
    assert [ask.training_seed for ask in asks] == [5, 6]
    assert [ask.seed for ask in asks] == [5, 5]  # of questions and samples
