from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.artifact import Artifact, Input
from storage.store import Store
from storage.testing import artifact_of, draft_in
from tasks.evaluation import evaluate, perplexity
from tasks.evaluation.catalog import EvaluationConfig
from tasks.pages.blocks import Cell, Heading, Table, Text
from tasks.pages.plain import read_as
from tasks.pages.report import report
from tasks.pages.report.cost import published
from tasks.pages.report.facts import Curve, Results
from tasks.pages.report.figures import loss_caption
from tasks.pages.report.gather import findings, never_reached, stopped_early
from tasks.pages.report.inputs import JournalSegment
from tasks.pages.report.results import forgetting, gain
from tasks.pages.report.results import perplexity as perplexity_of
from tests.support.evaluation.cases import Case
from tests.support.pages.report_world import SECTION, World, made


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Case:
    return Case(tmp_path_factory.mktemp("case"), shared_data)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Artifact, dict[str, Any]]:
    """The usual report, for tests that only read it."""
    world = World(tmp_path_factory.mktemp("plain"))
    return world, *made(world, world.outcome())


Plain = tuple[World, Artifact, dict[str, Any]]


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    world = World(tmp_path)
    request = report.report_request(SECTION, world.outcome())
    artifact = artifact_of(report, *request, tmp_path / "store")
    draft = draft_in(tmp_path)
    report.run(*request, draft)
    names = {str(path.relative_to(artifact.path)) for path in artifact.part("report").paths}
    assert names == {"report.md", "report.html", "report.json"} | {
        f"figures/{name}.{kind}" for name in ("loss", "efficiency", "changes") for kind in ("svg", "png")
    }
    for name in names:
        assert (draft.path / name).read_bytes() == (artifact.path / name).read_bytes(), name


def changes(row: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(change["from"], change["to"]): change for change in row["changes"]}


def test_changes_are_against_the_base_and_the_budget_before(plain: Plain) -> None:
    _, artifact, facts = plain
    [edu] = facts["perplexity"]
    pairs = [("base", "10K"), ("base", "20K"), ("10K", "20K")]
    assert list(changes(edu)) == pairs
    little, much, last = changes(edu).values()
    assert [one["verdict"] for one in (little, much, last)] == ["no clear change", "improved", "improved"]
    assert (
        much["value"] == pytest.approx(2.718281828**-1 - 1) and much["low"] < much["value"] < much["high"] < 0
    )
    sciq = changes(facts["benchmarks"][0])
    assert [sciq[pair]["value"] for pair in pairs] == pytest.approx([0.1, 0.7, 0.6])
    assert [sciq[pair]["verdict"] for pair in pairs] == ["no clear change", "improved", "improved"]
    assert sciq["base", "20K"]["mcnemar"] == {"gained": 14, "lost": 0, "p": 2 / 2**14}
    assert (
        sciq["base", "10K"]["seen"] >= 7 / 20
    )  # two benchmarks: McNemar's test needs seven that change alike
    assert [row["benchmark"] for row in facts["benchmarks"]] == ["sciq", "mine"]
    text = (artifact.path / "report.md").read_text()
    assert (
        "| edu<br>bits per byte | 20.09<br>1.5000 | 20.11<br>" in text
        and "≈ no clear change (seen\xa0from\xa0" in text
    )
    assert "−63.2 [" in text and "+70.0 [" in text and "not over training seeds" in text


def test_a_score_whose_interval_holds_chance_is_at_chance(plain: Plain) -> None:
    _, _, facts = plain
    sciq, mine = facts["benchmarks"]
    assert [sciq["models"][name]["at_chance"] for name in ("base", "10K", "20K")] == [True, True, False]
    assert sciq["chance"] == 0.25 and sciq["rule"] == "guess"
    assert (mine["chance"], mine["rule"]) == (
        0.25,
        "guess",
    )  # its answer always stands in one place, which is no label


@pytest.mark.parametrize(
    ("low", "at_chance", "share"), [(0.0, False, ""), (0.01, False, "−"), (0.01, True, "")]
)
def test_what_was_forgotten_is_a_share_only_of_what_was_clear_of_chance(
    plain: Plain, low: float, at_chance: bool, share: str
) -> None:
    facts = copy.deepcopy(plain[2])
    (row,) = (row for row in facts["benchmarks"] if row["group"] == "general")
    row |= {"chance": 0.0, "rule": None}  # as of lambada_openai, where nothing is guessed
    row["models"]["base"] |= {"score": 0.02, "low": low, "high": 0.05, "at_chance": at_chance}
    for change in row["changes"]:
        change["value"] = -0.01
    _, _, table, _ = forgetting(read_as(Results, facts))
    assert isinstance(table, Table)
    assert {cell.below[:1] for _, *cells in table.rows for cell in cells if isinstance(cell, Cell)} == {share}


def test_tests_are_corrected_for_the_number_of_benchmarks(plain: Plain) -> None:
    _, _, facts = plain
    sciq, mine = (changes(row)["base", "20K"] for row in facts["benchmarks"])
    tested = max(sciq["p"], sciq["mcnemar"]["p"])
    assert sciq["adjusted"] == pytest.approx(2 * tested) and mine["p"] == mine["adjusted"] == 1.0
    [edu] = facts["perplexity"]
    assert changes(edu)["base", "20K"]["adjusted"] == changes(edu)["base", "20K"]["p"]  # a family of its own


def test_a_mean_of_few_changed_questions_is_no_verdict_either(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome(last=7)  # five of twenty gained, and none elsewhere
    _, facts = made(world, outcome)
    sciq, domain = (changes(facts[kind][0])["base", "20K"] for kind in ("benchmarks", "groups"))
    assert domain["p"] < 0.05 and domain["flips"] == sciq["mcnemar"]["p"] == 0.0625
    assert domain["verdict"] == sciq["verdict"] == "no clear change"


def test_two_forms_of_the_same_questions_do_not_count_as_two_samples(tmp_path: Path) -> None:
    world, facts = World(tmp_path), {}
    for second in ("mmlu_continuation", "piqa"):
        outcome = world.outcome()
        for place, model in enumerate(outcome.models):
            right = [1.0] * (4, 9, 10)[place] + [0.0] * 16
            model.scores = {name: world.evaluation(name, right[:20]) for name in ("mmlu", second)}
        section = EvaluationConfig(domain=("mmlu", second))
        artifact = artifact_of(report, *report.report_request(section, outcome), tmp_path / "store")
        facts[second] = json.loads((artifact.path / "report.json").read_text())
    joined, apart = (
        changes(facts[name]["groups"][0])["base", "10K"] for name in ("mmlu_continuation", "piqa")
    )
    alone = changes(facts["piqa"]["benchmarks"][0])["base", "10K"]
    assert joined["count"] == alone["count"] == 20 and apart["count"] == 40
    assert joined["stderr"] == pytest.approx(alone["stderr"]) == pytest.approx(2**0.5 * apart["stderr"])
    assert joined["flips"] == alone["mcnemar"]["p"] == 0.0625 and apart["flips"] == 2 / 2**10
    assert (joined["verdict"], apart["verdict"]) == ("no clear change", "improved")


def test_the_findings_say_what_the_numbers_say(plain: Plain) -> None:
    _, artifact, facts = plain
    assert facts["findings"][0].startswith("Perplexity on edu fell from 20.09 to 7.389 (−63.2 [−")
    assert facts["findings"][1].startswith(
        "The mean of the domain benchmarks went from 10.0 to 80.0 (+70.0 ["
    )
    # of twenty questions of two groups, seven that change alike are the fewest that a test sees
    seen = "(0.0 [0.0, 0.0] points): no clear change (a change of 35.0 points would have been seen)."
    assert facts["findings"][2].endswith(seen)
    assert facts["findings"][3].startswith("Going on from 10K to 20K: domain +60.0 [")
    assert list(artifact.stats["findings"]) == facts["findings"]


def test_contamination_stands_beside_each_score(plain: Plain) -> None:
    _, artifact, _ = plain
    text = (artifact.path / "report.md").read_text()
    assert (
        "| sciq<br>acc | 4 of 900 | 25.0 |" in text and "| mine<br>acc | –<br>not\xa0looked\xa0for |" in text
    )


def test_what_was_counted_afterwards_is_marked_as_still_in_the_corpus(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    hits = {"questions": 20, "indexed": 18, "unchecked": 2, "questions_found": 3, "documents_found": 5}
    counted = world.artifact("contamination", {}, {"hits": {"hits.json": {"mine": hits}}})
    outcome.counted = {"mine": counted}
    artifact, facts = made(world, outcome)
    rows = {row["benchmark"]: row for row in facts["contamination"]}
    assert rows["mine"]["afterwards"] and rows["mine"]["questions_found"] == 3
    assert not rows["sciq"].get("afterwards") and rows["sciq"]["questions_found"] == 4
    text = (artifact.path / "report.md").read_text()
    assert "| mine<br>acc | 3 of 18<br>kept |" in text and "| 5<br>still in it |" in text


def test_scores_of_benchmarks_that_were_never_looked_for_say_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    outcome.slices = ()
    text = (made(world, outcome)[0].path / "report.md").read_text()
    assert "| sciq<br>acc | –<br>not\xa0looked\xa0for |" in text
    assert "None of these benchmarks was looked for in the corpus" in text


def test_samples_stand_side_by_side(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    for model in outcome.models:
        row = {"prompt": "Plants need", "decoding": "greedy", "continuation": f" what\n{model.name} | says"}
        model.samples = world.artifact("samples", {}, {"samples": {"samples.json": [row]}})
    artifact, facts = made(world, outcome)
    assert facts["samples"][0]["models"]["20K"] == " what\n20K | says"
    text = (artifact.path / "report.md").read_text()
    assert "| Plants need<br>greedy | … what base \\| says … | … what 10K \\| says … |" in text


def test_documents_are_followed_through_the_stages_and_add_up(plain: Plain) -> None:
    _, artifact, facts = plain
    [source] = facts["data"]["sources"]
    dedup = source["stages"][1]
    assert (
        source["slices"] == 2
        and dedup["documents_in"] == 200
        and dedup["dropped_by_reason"] == {"near_duplicate": 20}
    )
    assert facts["data"]["problems"] == [] and artifact.stats["conserved"]
    assert facts["contamination"][0]["questions_found"] == 4


def test_a_document_that_vanished_is_reported(tmp_path: Path) -> None:
    world = World(tmp_path)
    artifact, facts = made(world, world.outcome(lost=1))
    assert any(
        problem.startswith("filter, slice 2 (edu): 90 documents in, but 84 out")
        for problem in facts["data"]["problems"]
    )
    assert not artifact.stats["conserved"] and "Does not add up" in (artifact.path / "report.md").read_text()
    assert artifact.manifest.provenance["warnings"]


def test_repeated_text_is_a_warning(tmp_path: Path) -> None:
    world = World(tmp_path)
    once, again = (made(world, world.outcome(epochs=epochs))[0] for epochs in (0.75, 2.5))
    assert "Text is repeated" not in (once.path / "report.md").read_text()
    assert "edu 2.50 ×" in (again.path / "report.md").read_text()


def test_tokens_seen_and_computed_are_told_apart(plain: Plain) -> None:
    _, _, facts = plain
    assert [(model["seen"], model["computed"]) for model in facts["models"]] == [
        (0, 0),
        (10_000, 10_000),
        (20_000, 20_000),
    ]
    assert facts["computed"] == 22_000  # the first branch's tokens were computed again by the trunk


def test_a_base_alone_has_a_report_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    alone = SimpleNamespace(models=outcome.models[:1], merged=(), slices=(), packed=[], counted={})
    artifact, facts = made(world, alone)
    assert "nothing to compare" in facts["findings"][0]
    assert not (artifact.path / "figures").exists()


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.rows: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.sources += [value for name, value in attrs if name in ("src", "href") and value]
        if tag == "tr":
            self.rows.append(0)
        if tag in ("td", "th"):
            self.rows[-1] += int(given.get("colspan") or 1)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_beside_it(plain: Plain) -> None:
    _, artifact, _ = plain
    text = (artifact.path / "report.html").read_text()
    page = Page()
    page.feed(text.removeprefix("<!doctype html>\n"))
    assert page.open == [] and text.count("<figure>") == 3
    assert all(source.startswith("#") for source in page.sources)  # glyphs and marks inside the figures
    assert "<title>mine, 10K: +0.0 [0.0, 0.0], no clear change</title>" in text  # under the pointer
    for table in text.split("<table>")[1:]:
        inner = Page()
        inner.feed(table.split("</table>")[0])
        assert len(set(inner.rows)) == 1, "every row of a table is as wide as its head"
    assert "http" not in text.replace("http://www.w3.org", "")


def test_what_the_measuring_stages_leave_is_what_the_report_reads(case: Case, tmp_path: Path) -> None:
    export = case.base.part("export")
    inputs = evaluate.harness_inputs(export, "openbookqa", case.benchmark_files("openbookqa", 12))
    scored = artifact_of(
        evaluate, evaluate.evaluate_config("openbookqa", None, 0, 128, "cpu"), inputs, case.store
    )
    texts = [text[:400] for text in case.texts[:3]]
    held = perplexity.PerplexityInputs(export, case.holdout(texts).part("holdout"))
    measured = artifact_of(
        perplexity, perplexity.PerplexityConfig(max_length=64, device="cpu"), held, case.store
    )
    model = SimpleNamespace(
        samples=None,
        name="base",
        tokens=0,
        export=case.base,
        journals=[],
        scores={"openbookqa": scored},
        perplexity={"edu": measured},
    )
    trained = SimpleNamespace(
        **{
            **vars(model),
            "name": "30K",
            "tokens": 30_000,
            "export": case.trained,
            "journals": [case.trained],
        },
    )
    outcome = SimpleNamespace(models=[model, trained], merged=(), slices=(), packed=[], counted={})
    request = report.report_request(EvaluationConfig(domain=("openbookqa",)), outcome)
    facts = json.loads((artifact_of(report, *request, case.store).path / "report.json").read_text())
    [change] = facts["perplexity"][0]["changes"]
    assert (change["value"], change["stderr"], change["count"]) == (0.0, 0.0, 3)
    assert change["verdict"] == "too few documents"
    assert facts["benchmarks"][0]["models"]["base"]["score"] == scored.stats["metrics"]["acc_norm"]


def test_what_it_cost_is_added_where_the_page_is_published(plain: Plain, tmp_path: Path) -> None:
    world, artifact, _ = plain
    store = Store(world.root / "store")
    page = published(artifact, store.lookup, tmp_path / "runs" / "one")
    cost = json.loads((page / "cost.json").read_text())
    trunk, first, more, second = 8 * 0.5, 2 * 0.5, 10 * 0.5, 2 * 0.5
    hours = {model["name"]: model["device_hours"] for model in cost["models"]}
    assert hours == pytest.approx(
        {"10K": 2 * (trunk + first) / 3600, "20K": 2 * (trunk + more + second) / 3600}
    )
    assert cost["models"][0]["tokens_per_second"] == pytest.approx(10_000 / (trunk + first))
    assert cost["all"]["unit"] == "CPU-hours" and cost["all"]["energy_joules"] is None
    text = (page / "report.md").read_text()
    assert "## What it cost" in text and "2 × test machine" in text and "2,000 |" in text
    points = 60 / (
        2 * (more + second)
    )  # from 10K to 20K: its trunk was there, its branch was not; per second of a CPU
    assert f"| 10K → 20K | 0.00333 | +{points:.2f} [" in text
    assert (page / text.split("](")[1].split(")")[0]).resolve() == artifact.path / "figures" / "loss.svg"
    html = (page / "report.html").read_text()
    assert "<h2>What it cost</h2>" in html
    before = (artifact.path / "report.html").read_text()
    assert "What it cost" not in before and "<!-- cost -->" in before


def test_without_a_clock_the_page_says_no_cost(tmp_path: Path) -> None:
    world = World(tmp_path)
    alone = SimpleNamespace(models=world.outcome().models[:1], merged=(), slices=(), packed=[], counted={})
    artifact, _ = made(world, alone)
    page = published(artifact, Store(world.root / "store").lookup, tmp_path / "page")
    assert "What it cost" not in (page / "report.md").read_text()


# ---- what the numbers do not say ------------------------------------------------------------------------------------


def results(facts: dict[str, Any]) -> Results:
    return read_as(Results, facts)


def told(facts: dict[str, Any], source: str = "edu") -> dict[str, Any]:
    """The change of perplexity from the base to the last model."""
    return next(
        one for row in facts["perplexity"] if row["source"] == source
        for one in row["changes"] if (one["from"], one["to"]) == ("base", "20K")
    )  # fmt: skip


def test_too_few_documents_are_told_in_place_of_a_verdict(plain: Plain) -> None:
    facts = copy.deepcopy(plain[2])
    told(facts).update(verdict="too few documents", count=4, seen=None)
    [sentence] = [one for one in findings(results(facts)) if "20.09" in one]
    assert sentence.endswith(" %): too few documents for a verdict (4).")
    told(facts).update(count=1, low=None, high=None)
    facts["perplexity"][0]["documents"] = 1
    [sentence] = [one for one in findings(results(facts)) if "20.09" in one]
    assert sentence.endswith(
        "(−63.2 %): too few documents for a verdict (1, and of one no interval can be given)."
    )
    _, table, note = perplexity_of(results(facts))
    assert isinstance(table, Table) and isinstance(note, Text)
    assert "too few documents (1)" in {cell.below for row in table.rows for cell in row}
    assert "corpus.holdout_fraction" in note.text and "of one document no interval" in note.text.lower()
    assert not any("0.0" in cell.below for row in table.rows for cell in row if "too few" in cell.below)


def test_what_is_clear_is_told_first(plain: Plain) -> None:
    facts = copy.deepcopy(plain[2])
    for row in facts["groups"]:
        for change in row["changes"]:
            change["verdict"] = "no clear change"
    last = findings(results(facts))[-1]
    assert (
        last.startswith("Going on from 10K to 20K: perplexity on edu −63.")
        and ", improved; domain +60" in last
    )
    told(facts)["verdict"] = "no clear change"
    facts["groups"][1]["changes"][1]["verdict"] = "worse"
    said = findings(results(facts))
    assert [one.split(" went")[0] for one in said[:3]] == [
        "The mean of the general benchmarks", "Perplexity on edu", "The mean of the domain benchmarks",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "unit", "digits"),
    [
        (60_000, "10K", "+11.67"),
        (100_000, "100K", "+70.00"),
        (999_999, "100K", "+7.00"),
        (7_000_000, "million", "+10.00"),
    ],
)
def test_a_rate_is_of_no_more_tokens_than_were_trained(
    plain: Plain, seen: int, unit: str, digits: str
) -> None:
    facts = copy.deepcopy(plain[2])
    facts["models"] = [facts["models"][0], facts["models"][2] | {"seen": seen}]
    facts["pairs"] = [["base", "20K"]]
    head, table, _ = gain(results(facts))
    assert isinstance(head, Heading) and head.text == f"Gain for each {unit} tokens"
    assert isinstance(table, Table) and f"points per {unit}" in table.head[2]
    [row] = table.rows
    assert row[2].text.startswith(f"{digits} [")


def curve(kind: str, rates: list[float], peak: float | None = 1e-3) -> Curve:
    steps = list(range(1, len(rates) + 1))
    loss = [3.0] * len(rates)
    return Curve(name="1K", kind=kind, series="", tokens=steps, loss=loss, step=steps, rate=rates, peak=peak)


def test_a_rate_that_was_never_reached_is_named_and_no_constant_rate_is_drawn() -> None:
    rising, reached = curve("trunk", [1e-6, 2e-6, 6e-6]), curve("trunk", [5e-4, 1e-3, 1e-3])
    falling = curve("branch", [4e-6, 2e-6])
    [sentence] = never_reached([rising, falling])
    assert "never reached the 0.001" in sentence and "6e-06 (0.6 %)" in sentence
    assert "constant rate" not in loss_caption([rising, falling]) and "still rose" in loss_caption(
        [rising, falling]
    )
    assert never_reached([reached, falling]) == never_reached([curve("trunk", [], None)]) == []
    assert "the trunk at constant rate" in loss_caption([reached, falling])
    assert "trunk" not in loss_caption([curve("trunk", [1e-3, 5e-4])]), "one round a budget: no branches"


def test_hellaswag_among_the_general_benchmarks_is_explained(plain: Plain) -> None:
    facts = copy.deepcopy(plain[2])
    assert not any(
        "HellaSwag" in block.text for block in forgetting(results(facts)) if isinstance(block, Text)
    )
    next(row for row in facts["benchmarks"] if row["group"] == "general")["benchmark"] = "hellaswag"
    assert any(
        "HellaSwag is general here" in block.text
        for block in forgetting(results(facts))
        if isinstance(block, Text)
    )


# ---- weights between models -----------------------------------------------------------------------------------------

ROLES = {"edu": "domain", "plain": "replay"}


def with_merges(world: World, trained: tuple[float, float], between: dict[str, tuple[float, float]]) -> Any:
    """An outcome whose last model moved the nats of a text of the domain, and of a general one, by `trained`."""
    outcome = world.outcome()
    for model in outcome.models:
        model.scores = {}

    def perplexities(domain: float, general: float) -> dict[str, Any]:
        tokens = [300.0, 310.0, 290.0] * 4
        return {
            "edu": world.perplexity([one + 100 * domain for one in tokens]),
            "plain": world.perplexity([one + 100 * general for one in tokens]),
        }

    for model, change in zip(outcome.models, [(0.0, 0.0), (-0.1, 0.0), trained], strict=True):
        model.perplexity = perplexities(*change)
    outcome.merged = [
        SimpleNamespace(
            name=f"20K-{name}",
            tokens=20_000,
            samples=None,
            journals=[],
            scores={},
            perplexity=perplexities(*change),
            export=world.artifact(
                "merge",
                {"kind": "interpolate", "value": float(name.removeprefix("alpha-")), "tokens_seen": 20_000},
                {"export": {"config.json": {"name": name}}},
            ),
        )
        for name, change in between.items()
    ]
    return outcome


def merges_in(world: World, outcome: Any) -> tuple[Artifact, dict[str, Any]]:
    request = report.report_request(EvaluationConfig(), outcome, ROLES)
    artifact = artifact_of(report, *request, world.root / "store")
    return artifact, json.loads((artifact.path / "report.json").read_text())


def test_what_loses_least_is_told_with_its_share_of_the_gain(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = with_merges(world, (-0.5, 0.2), {"alpha-0.5": (-0.4, 0.0), "alpha-0.25": (-0.2, 0.05)})
    artifact, facts = merges_in(world, outcome)
    merges = facts["merges"]
    assert [(one["name"], one["share"]) for one in merges["points"]] == [
        ("base", 0.0),
        ("20K-alpha-0.25", 0.25),
        ("20K-alpha-0.5", 0.5),
        ("20K", 1.0),
    ]
    assert merges["chosen"] == "20K-alpha-0.5" and merges["chat"] is None
    least, take = merges["findings"]
    assert least.startswith("Between base and 20K, least is lost at α = 0.5: perplexity on plain 0.0 [")
    assert "at α = 1: perplexity on plain +22.1 [" in least and "It keeps 84 % of the gain: " in least
    assert take == (
        "Take 20K-alpha-0.5: it is clearly better than base in the domain and not clearly worse in general, "
        "which 20K is not."
    )
    assert take in facts["findings"]
    assert report.chosen_of(artifact) == ("20K-alpha-0.5", "")
    text = (artifact.path / "report.md").read_text()
    assert "## Weights between models" in text and "| 20K-alpha-0.5 | 0.5 |" in text
    assert "change from 20K" in text and "merges.svg" in text
    svg = (artifact.path / "figures" / "merges.svg").read_text()
    assert "20K-alpha-0.25: domain" in svg and svg.count("<title>") == 4


@pytest.mark.parametrize(
    ("trained", "between", "chosen", "words"),
    [
        ((-0.5, 0.0), {"alpha-0.5": (-0.3, 0.0)}, "", "Take 20K as it was trained"),
        ((-0.5, 0.2), {"alpha-0.5": (-0.3, 0.1)}, "", "None of them is clearly better than base"),
        ((-0.3, 0.0), {"alpha-0.5": (-0.4, -0.1)}, "20K-alpha-0.5", "clearly better than 20K on one side"),
        ((0.0, 0.0), {"alpha-0.5": (0.0, 0.0)}, "", "None of them is clearly better than base"),
    ],
    ids=["nothing lost", "all lose", "better on both sides", "nothing moved"],
)
def test_a_merged_model_is_chosen_only_where_it_is_clearly_the_better_one(
    tmp_path: Path,
    trained: tuple[float, float],
    between: dict[str, tuple[float, float]],
    chosen: str,
    words: str,
) -> None:
    world = World(tmp_path)
    artifact, facts = merges_in(world, with_merges(world, trained, between))
    assert report.chosen_of(artifact)[0] == chosen
    assert any(words in one for one in facts["merges"]["findings"]), facts["merges"]["findings"]


def test_without_merges_a_report_is_as_it_was(plain: Plain) -> None:
    _, artifact, facts = plain
    assert "merges" not in facts and "merging" not in artifact.manifest.inputs
    assert not (artifact.path / "figures" / "merges.svg").exists()
    assert report.chosen_of(artifact) == ("", "")


def test_a_stop_says_whether_the_lowest_loss_was_in_an_earlier_trunk() -> None:
    own = {"step": 9, "tokens": 145_000, "loss": 2.04}
    told = []
    for lowest, tokens in ((2.0, 110_000), (2.04, 145_000)):
        rule = {"source": "notes", "lowest": lowest, "lowest_tokens": tokens, "stopped": own}
        stopped = report._stopped({"tokens_seen": 225_000, "stopping": rule})
        journal = Input("train", "key", "journal", "digest", Path(), ())
        told += stopped_early(
            [JournalSegment(name="400K", kind="trunk", journal=journal, computed=1, stopped=stopped)]
        )
    assert "lowest at 110K (2.000 nats per token)" in told[0]
    assert "goes on from the lowest of its own trunk, at 145K (2.040), and" in told[0]
    assert (
        "lowest at 145K (2.040 nats per token). The model 400K goes on from the weights of then, and"
        in told[1]
    )
