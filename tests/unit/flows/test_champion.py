"""The champion's rule: which models can be compared, what clearly worse means, and who wins."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flows.tracking.champion import TAG, Candidate, Standing, choose, standing_of, standings
from storage.artifact import Input
from storage.errors import OnwardError
from tasks.pages.report.facts import GroupRow, PerplexityRow, ReportModel, change_of
from tasks.pages.report.gather import gather
from tasks.pages.report.inputs import ReportConfig, ReportInputs

QUESTIONS = 400
ROLES = {"books": "domain", "web": "replay"}


def artifact(
    directory: Path, stage: str, part: str, table: Mapping[str, Any], numbers: dict[str, Any]
) -> Any:
    """As much of an artifact as the rule and the report read."""
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(table)), directory / f"{part}.parquet")
    (directory / "scores.json").write_text(json.dumps(numbers))
    files = {part: f"{part}.parquet", "scores": "scores.json"}

    def of(name: str) -> Input:
        return Input(stage, str(directory), name, "", directory, (files[name],))

    manifest = SimpleNamespace(config={"max_length": 64}, inputs={"model": {"digest": "x"}, "files": []})
    return SimpleNamespace(stage=stage, key=str(directory), stats=numbers, manifest=manifest, part=of)


def benchmark(directory: Path, right: np.ndarray, subject: list[str] | None = None) -> Any:
    """As the stage writes it: of all benchmarks only MMLU has subjects, the others have null."""
    subjects = subject or pa.nulls(len(right), pa.string())
    table = {"subject": subjects, "doc": np.arange(len(right)), "acc": right.astype(float)}
    score = float(right.mean())
    numbers = {"main": "acc", "metrics": {"acc": score}, "stderr": {"acc": 0.0}, "split": "test", "shots": 0}
    numbers |= {"limit": None, "questions": len(right), "available": len(right), "max_length": 64}
    return artifact(directory, "evaluate", "questions", table, {**numbers, "chance": 0.25})


def text(directory: Path, nll: np.ndarray, size: np.ndarray) -> Any:
    """Of held-out documents; four bytes to a token."""
    tokens = size // 4
    numbers = {"bits_per_byte": float(nll.sum() / size.sum() / math.log(2)), "documents": len(nll)}
    numbers |= {"perplexity": float(np.exp(nll.sum() / tokens.sum())), "max_length": 64, "stride": 32}
    numbers |= {"tokens": int(tokens.sum()), "bytes": int(size.sum())}
    table = {"id": np.arange(len(nll)), "nll": nll, "tokens": tokens}
    return artifact(directory, "perplexity", "documents", table, numbers)


def model(home: Path, name: str, rights: Mapping[str, np.ndarray], tokens: int = 10) -> Candidate:
    """A model that answered benchmarks so."""
    scores = {of: benchmark(home / name / of, right) for of, right in rights.items()}
    return Candidate(name, tokens, scores, {})


def reported(
    models: list[Candidate], groups: Mapping[str, str], roles: Mapping[str, str]
) -> tuple[dict[str, GroupRow], dict[str, PerplexityRow]]:
    """The report's rows of groups, and of sources."""
    inputs = ReportInputs(
        models=tuple(
            ReportModel(
                name=one.name,
                tokens=one.tokens,
                stage="base",
                key="",
                digest="",
                path="",
                seen=one.tokens,
                computed=0,
            )
            for one in models
        ),
        scores={one.name: {n: a.part("scores") for n, a in one.scores.items()} for one in models},
        questions={one.name: {n: a.part("questions") for n, a in one.scores.items()} for one in models},
        perplexity={one.name: {n: a.part("scores") for n, a in one.perplexity.items()} for one in models},
        documents={one.name: {n: a.part("documents") for n, a in one.perplexity.items()} for one in models},
    )
    found = gather(ReportConfig(benchmarks=tuple(groups.items()), sources=tuple(roles)), inputs)
    return (
        {row.group: row for row in found.groups},
        {row.source: row for row in found.perplexity},
    )


def flipped(rng: np.random.Generator, right: np.ndarray, share: float) -> np.ndarray:
    return np.where(rng.random(len(right)) < share, ~right, right)


def test_the_change_is_that_of_the_paired_differences(tmp_path):
    rng = np.random.default_rng(0)
    groups = {"a": "general", "b": "general", "c": "domain"}
    base = {name: rng.random(2000) < 0.6 for name in groups}
    after = {name: flipped(rng, right, 0.1) for name, right in base.items()}
    found = standings([model(tmp_path, "base", base), model(tmp_path, "8K", after)], groups, {})["8K"]
    assert found is not None
    differences = [after[name].astype(float) - base[name] for name in ("a", "b")]
    error = np.sqrt(sum(stats.sem(one) ** 2 for one in differences)) / 2
    mean = np.mean([one.mean() for one in differences])
    assert found.general == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.95, mean, error), abs=0.1 * error)
    assert found.domain == pytest.approx(after["c"].mean())


@pytest.mark.parametrize("seed", range(6))
def test_it_never_contradicts_the_report(tmp_path, seed):
    """Of three models, with two forms of the same questions, subjects, and texts; or of texts alone."""
    rng = np.random.default_rng(seed)
    groups = {"mmlu": "general", "mmlu_continuation": "general", "piqa": "general", "sciq": "domain"}
    roles = {**ROLES, "code": "replay"}
    base = {name: rng.random(QUESTIONS) < 0.5 for name in groups}
    size = rng.integers(500, 3000, 60)
    nll = size * rng.normal(0.9, 0.1, 60)
    subject = [f"subject {number % 7}" for number in range(QUESTIONS)]
    models = []
    for number, name in enumerate(("base", "8K", "20K")):
        lost = {of: right & (rng.random(QUESTIONS) > 0.02 * number) for of, right in base.items()}
        scores = {
            of: benchmark(tmp_path / name / of, right, subject if of.startswith("mmlu") else None)
            for of, right in lost.items()
        }
        worse = rng.normal(1 + 0.004 * number * (rng.random() - 0.3), 0.02, (3, 60))
        texts = {
            of: text(tmp_path / name / of, nll * change, size)
            for of, change in zip(roles, worse, strict=True)
        }
        models.append(Candidate(name, 10 * number, scores, texts))
    means, _ = reported(models, groups, roles)
    found = standings(models, groups, roles)
    for one in models[1:]:
        said, place = change_of(means["general"], "base", one.name), found[one.name]
        assert said is not None and place is not None
        assert (place.general, place.low, place.high, place.verdict) == tuple(
            getattr(said, name) for name in ("value", "low", "high", "verdict")
        )
    own = [Candidate(one.name, one.tokens, {}, one.perplexity) for one in models]
    _, sources = reported(own, {}, roles)
    for name, place in standings(own, {}, roles).items():
        changes = [change_of(sources[of], "base", name) for of in ("web", "code")]
        verdicts = {change.verdict for change in changes if change is not None}
        assert place is not None and place.clearly_worse == ("worse" in verdicts)


def test_a_few_lost_answers_are_not_clearly_worse(tmp_path):
    """Five of 500 lost and none gained: an interval of standard errors lies below zero, the exact test says p = 0.06."""
    right = np.arange(500) % 2 == 0
    lost = right.copy()
    lost[:10:2] = False
    groups = {"piqa": "general", "sciq": "domain"}
    models = [
        model(tmp_path, "base", {"piqa": right, "sciq": right}),
        model(tmp_path, "8K", {"piqa": lost, "sciq": right}),
    ]
    differences = lost.astype(float) - right
    assert stats.norm.interval(0.95, differences.mean(), stats.sem(differences))[1] < 0
    assert stats.binomtest(0, 5).pvalue > 0.05
    place = standings(models, groups, {})["8K"]
    assert place is not None and not place.clearly_worse and place.general == pytest.approx(-0.01)


@pytest.mark.parametrize("shared", [True, False])
def test_two_forms_of_the_same_questions_are_no_two_samples(tmp_path, shared):
    rng = np.random.default_rng(3)
    groups = {"mmlu": "general", "mmlu_continuation" if shared else "piqa": "general", "sciq": "domain"}
    base = {name: rng.random(2000) < 0.6 for name in groups}
    turned = rng.random(2000) < 0.1
    after = {name: np.where(turned, ~right, right) for name, right in base.items()}
    found = standings([model(tmp_path, "base", base), model(tmp_path, "8K", after)], groups, {})["8K"]
    assert found is not None and found.low is not None and found.high is not None
    first, second = (after[name].astype(float) - base[name] for name in list(groups)[:2])
    error = stats.sem((first + second) / 2) if shared else np.hypot(stats.sem(first), stats.sem(second)) / 2
    assert (found.high - found.low) / 2 == pytest.approx(stats.norm.isf(0.025) * error, rel=0.05)


def test_what_fell_clearly_in_general_is_no_champion(tmp_path):
    rng = np.random.default_rng(2)
    domain, general = rng.random(QUESTIONS) < 0.5, rng.random(QUESTIONS) < 0.6
    forgot = general & (rng.random(QUESTIONS) < 0.8)
    groups = {"sciq": "domain", "piqa": "general"}
    models = [
        model(tmp_path, name, {"sciq": sciq, "piqa": piqa})
        for name, sciq, piqa in (
            ("base", domain, general),
            ("kept", domain | (rng.random(QUESTIONS) < 0.1), general),
            ("forgot", domain | (rng.random(QUESTIONS) < 0.4), forgot),
        )
    ]
    found = {name: one for name, one in standings(models, groups, {}).items() if one is not None}
    assert found["forgot"].domain > found["kept"].domain > found["base"].domain
    assert [name for name, one in found.items() if one.clearly_worse] == ["forgot"]
    assert choose(found, found["base"].measure).champion == "kept"


def test_other_questions_than_the_base_was_asked_are_an_error(tmp_path):
    groups = {"sciq": "domain", "piqa": "general"}
    base, other = (
        model(tmp_path, name, {of: np.ones(size, dtype=bool) for of in groups})
        for name, size in (("base", 5), ("8K", 6))
    )
    with pytest.raises(OnwardError, match=r"8K and the base were asked other questions .*piqa"):
        standings([base, other], groups, {})


def test_without_benchmarks_it_is_perplexity_of_replay_text(tmp_path):
    rng = np.random.default_rng(1)
    size = rng.integers(500, 3000, 300) // 4 * 4
    nll = size * rng.normal(0.9, 0.1, 300)
    after = nll * rng.normal(1.01, 0.02, 300)
    base = Candidate("base", 0, {}, {n: text(tmp_path / "base" / n, nll, size) for n in ROLES})
    own = {
        "books": text(tmp_path / "8K" / "books", nll * 0.9, size),
        "web": text(tmp_path / "8K" / "web", after, size),
    }
    found = standings([base, Candidate("8K", 10, {}, own)], {}, ROLES)
    first, last = found["base"], found["8K"]
    assert last is not None and last.clearly_worse
    drawn = rng.integers(0, 300, (4000, 300))
    ratios = (nll - after)[drawn].sum(1) / (size[drawn].sum(1) / 4)
    low, high = -np.expm1(-np.quantile(ratios, [0.025, 0.975]))
    assert (last.low, last.high) == pytest.approx((low, high), rel=0.15)
    assert first is not None and not first.clearly_worse and last.domain > first.domain
    assert last.domain == pytest.approx(-0.9 * nll.sum() / size.sum() / math.log(2))
    assert first.measure == last.measure


def test_levels_of_other_sets_are_not_compared(tmp_path):
    """The same scores and texts, of which other ones count as the domain's."""
    right, nll, size = np.arange(20) % 2 == 0, np.full(5, 300.0), np.full(5, 400)
    one = Candidate(
        "base",
        10,
        {n: benchmark(tmp_path / n, right) for n in ("a", "b")},
        {n: text(tmp_path / n, nll, size) for n in ROLES},
    )

    def measure(groups, roles):
        found = standings([one], groups, roles)["base"]
        assert found is not None
        return found.measure

    groups = {"a": "domain", "b": "general"}
    ways = [
        (groups, ROLES),
        ({"a": "domain", "b": "domain"}, ROLES),
        ({"a": "general", "b": "domain"}, ROLES),
        ({"a": "general", "b": "general"}, ROLES),
        (groups, {"books": "domain", "web": "domain"}),
        ({}, ROLES),
    ]
    assert len({measure(*way) for way in ways}) == len(ways)
    assert measure(dict(reversed(groups.items())), {**ROLES, "not measured": "domain"}) == measure(
        groups, ROLES
    )


def test_a_model_measured_on_the_domain_in_no_way_has_no_standing():
    assert standings([Candidate("base", 0, {}, {})], {}, {"web": "replay"}) == {"base": None}


def test_the_whole_of_mmlu_is_judged_in_seconds_and_always_the_same(tmp_path):
    rng = np.random.default_rng(4)
    subject = [f"subject {number % 57}" for number in range(14_042)]
    groups = {"mmlu": "general", "sciq": "domain"}
    base = rng.random(14_042) < 0.3
    models = []
    for name in ("base", "400M", "1B"):
        right = flipped(rng, base, 0.2)
        scores = {
            "mmlu": benchmark(tmp_path / name / "mmlu", right, subject),
            "sciq": benchmark(tmp_path / name / "sciq", right[:1000]),
        }
        models.append(Candidate(name, 0, scores, {}))
    began = time.process_time()
    first = standings(models, groups, {})
    seconds = time.process_time() - began
    assert standings(models, groups, {}) == first
    print(f"three models on 14,042 questions: {seconds:.2f} s")
    assert seconds < 10


def at(
    tokens: int,
    domain: float,
    verdict: Any = "no clear change",
    measure: str = "m",
    run: str = "",
    name: str = "",
    beaten: tuple[str, ...] = (),
) -> Standing:
    return Standing(tokens, domain, -0.1, -0.2, -0.01, measure, verdict, 0.01, run, name, beaten)


def test_the_best_in_the_domain_that_lost_nothing_clearly():
    models = {"1": at(0, 0.30), "2": at(400, 0.35), "3": at(1000, 0.40, "worse")}
    assert choose(models, "m").champion == "2"
    assert choose(models | {"3": at(1000, 0.40)}, "m").champion == "3"
    assert choose(models | {"4": at(9, 0.9, measure="another")}, "m").champion == "2"
    assert choose(models | {"0": at(300, 0.35)}, "m").champion == "0", "of equals the one that saw less"
    assert choose(models, "another").champion is None
    assert "clearly worse in general" in choose(models, "m").reasons["3"]


def test_of_models_at_chance_none_takes_the_alias_and_the_reason_says_so():
    noise = {"1": at(0, 0.25), "2": at(400, 0.27), "3": at(1000, 0.26)}
    found = choose(noise, "m")
    assert found.champion == "1" and found.reasons["1"].startswith("champion: fewest tokens")
    assert found.reasons["2"] == (
        "no champion: not clearly better in the domain than version 1 (0.27 against 0.25)"
    )
    assert choose(noise, "m", holder="3").champion == "3", "nor does it go back by noise"
    assert choose(noise | {"4": at(2000, 0.4)}, "m", holder="3").champion == "4"
    assert choose(noise | {"3": at(1000, 0.26, "worse")}, "m", holder="3").champion == "1"


def test_within_a_run_the_reports_verdict_decides_and_not_the_distance():
    models = {
        "1": at(0, 0.30, run="r", name="base"),
        "2": at(400, 0.301, run="r", name="400M", beaten=("base",)),
        "3": at(1000, 0.9, run="r", name="1B"),
    }
    found = choose(models, "m")
    assert found.champion == "2" and "version 1" in found.reasons["2"]


def test_a_version_of_before_that_tells_no_error_is_beaten_by_that_of_the_other():
    old = Standing(0, 0.3, None, None, None, "m")
    assert at(1, 0.4).beats(old) and not at(1, 0.31).beats(old) and not old.beats(old)


def test_clearly_better_is_what_the_report_calls_improved(tmp_path):
    rng = np.random.default_rng(5)
    base = rng.random(QUESTIONS) < 0.4
    rights = {"base": base, "8K": flipped(rng, base, 0.02), "20K": base | (rng.random(QUESTIONS) < 0.15)}
    models = [
        model(tmp_path, name, {"sciq": right}, 10 * k) for k, (name, right) in enumerate(rights.items())
    ]
    found = standings(models, {"sciq": "domain"}, {})
    assert {name: one.beaten for name, one in found.items() if one} == {
        "base": (), "8K": (), "20K": ("base", "8K"),
    }  # fmt: skip
    place = found["20K"]
    assert place is not None and place.error == pytest.approx(stats.sem(rights["20K"]), rel=0.01)
    assert choose({k: one for k, one in found.items() if one}, place.measure).champion == "20K"


def test_without_benchmarks_a_clear_perplexity_makes_the_champion(tmp_path):
    rng = np.random.default_rng(6)
    size = rng.integers(500, 3000, 40) // 4 * 4
    nll = size * rng.normal(0.9, 0.1, 40)
    levels = {"base": nll, "8K": nll * rng.normal(1, 0.02, 40), "20K": nll * 0.9}
    models = [
        Candidate(name, 0, {}, {of: text(tmp_path / name / of, own, size) for of in ROLES})
        for name, own in levels.items()
    ]
    found = standings(models, {}, ROLES)
    assert (
        found["8K"]
        and found["8K"].beaten == ()
        and found["20K"]
        and set(found["20K"].beaten) == {"base", "8K"}
    )
    few = [Candidate(name, 0, {}, {of: text(tmp_path / name / f"few {of}", own[:5], size[:5]) for of in ROLES})
           for name, own in levels.items()]  # fmt: skip
    places = standings(few, {}, ROLES)
    assert places["20K"] and places["20K"].beaten == (), "five documents make no champion"


@given(
    st.integers(0, 10**12),
    st.floats(-10, 10),
    st.none() | st.floats(-1, 1),
)
def test_a_standing_is_the_same_from_its_tags(tokens, domain, general):
    bounds = (None, None) if general is None else (general - 0.5, general + 0.5)
    for verdict in ("improved", "worse", "no clear change", None):
        known = Standing(tokens, domain, general, *bounds, "m", verdict)
        assert standing_of(known.tags()) == known


@pytest.mark.parametrize(("high", "worse"), [(-0.01, True), (0.01, False), (None, False)])
def test_a_tag_without_a_verdict_says_it_by_its_interval(high, worse):
    known = asdict(Standing(1, 0.5, -0.1, -0.2, high, "m"))
    known.pop("verdict")
    found = standing_of({TAG: json.dumps(known)})
    assert found is not None and found.clearly_worse == worse
