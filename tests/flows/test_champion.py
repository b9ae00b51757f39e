"""The champion's rule: which models can be compared, what clearly worse means, and who wins."""

from __future__ import annotations

import math
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

from flows.champion import Measured, Standing, choose, standing, standing_of
from storage.errors import OnwardError

QUESTIONS = 400


def artifact(path: Path, table: dict[str, Any], stage: str, numbers: dict[str, Any]) -> Any:
    """As much of an artifact as the rule reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    part = SimpleNamespace(only=lambda: path)
    manifest = SimpleNamespace(
        config={"max_length": 64}, inputs={"model": {"digest": path.stem}, "files": []}
    )
    return SimpleNamespace(
        stage=stage, key=path.stem, stats=numbers, manifest=manifest, part=lambda name: part
    )


def benchmark(path: Path, right: np.ndarray) -> Any:
    """As the stage writes it: of all benchmarks only MMLU has subjects, the others have null."""
    subject = pa.nulls(len(right), pa.string())
    table = {"subject": subject, "doc": np.arange(len(right)), "acc": right.astype(float)}
    numbers = {"main": "acc", "metrics": {"acc": float(right.mean()) if len(right) else 0.0}}
    return artifact(path, table, "evaluate", numbers)


def text(path: Path, nll: np.ndarray, size: np.ndarray) -> Any:
    numbers = {"bits_per_byte": float(nll.sum() / size.sum() / math.log(2))}
    return artifact(path, {"id": np.arange(len(nll)), "nll": nll, "bytes": size}, "perplexity", numbers)


def test_the_interval_is_that_of_the_paired_differences(tmp_path):
    rng = np.random.default_rng(0)
    base = [rng.random(QUESTIONS) < 0.6 for _ in range(2)]
    model = [np.where(rng.random(QUESTIONS) < 0.1, ~right, right) for right in base]
    groups = {"a": "general", "b": "general", "c": "domain"}
    domain = rng.random(50) < 0.5
    measured = [
        Measured(
            {
                "a": benchmark(tmp_path / name / "a.parquet", rights[0]),
                "b": benchmark(tmp_path / name / "b.parquet", rights[1]),
                "c": benchmark(tmp_path / name / "c.parquet", domain),
            },
            {},
        )
        for name, rights in (("model", model), ("base", base))
    ]
    found = standing(10, measured[0], measured[1], groups, {})
    assert found is not None
    differences = [after.astype(float) - before for after, before in zip(model, base, strict=True)]
    error = np.sqrt(sum(stats.sem(one) ** 2 for one in differences)) / 2
    low, high = stats.norm.interval(0.95, np.mean([one.mean() for one in differences]), error)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.domain == pytest.approx(domain.mean())


@pytest.mark.parametrize("shared", [True, False])
def test_two_forms_of_the_same_questions_are_no_two_samples(tmp_path, shared):
    rng = np.random.default_rng(3)
    groups = {"mmlu": "general", "mmlu_continuation" if shared else "piqa": "general", "sciq": "domain"}
    base = [rng.random(QUESTIONS) < 0.6 for _ in groups]
    turned = rng.random(QUESTIONS) < 0.1
    model = [np.where(turned, ~right, right) for right in base]
    made = [
        Measured(
            {
                n: benchmark(tmp_path / side / f"{n}.parquet", right)
                for n, right in zip(groups, rights, strict=True)
            },
            {},
        )
        for side, rights in (("model", model), ("base", base))
    ]
    found = standing(10, made[0], made[1], groups, {})
    assert found is not None and found.low is not None and found.high is not None
    first, second = (after.astype(float) - before for after, before in zip(model[:2], base[:2], strict=True))
    error = stats.sem((first + second) / 2) if shared else np.hypot(stats.sem(first), stats.sem(second)) / 2
    assert (found.high - found.low) / 2 == pytest.approx(stats.norm.isf(0.025) * error)


def test_what_fell_clearly_in_general_is_no_champion(tmp_path):
    rng = np.random.default_rng(2)
    domain, general = rng.random(QUESTIONS) < 0.5, rng.random(QUESTIONS) < 0.6
    forgot = general & (rng.random(QUESTIONS) < 0.8)
    groups = {"sciq": "domain", "piqa": "general"}
    made = {
        name: Measured(
            {
                "sciq": benchmark(tmp_path / name / "sciq.parquet", sciq),
                "piqa": benchmark(tmp_path / name / "piqa.parquet", piqa),
            },
            {},
        )
        for name, sciq, piqa in (
            ("base", domain, general),
            ("kept", domain | (rng.random(QUESTIONS) < 0.1), general),
            ("forgot", domain | (rng.random(QUESTIONS) < 0.4), forgot),
        )
    }
    found = {name: standing(10, one, made["base"], groups, {}) for name, one in made.items()}
    assert found["forgot"].domain > found["kept"].domain > found["base"].domain
    assert [name for name, one in found.items() if one.clearly_worse] == ["forgot"]
    assert choose(found, found["base"].measure) == "kept"


def test_other_questions_than_the_base_was_asked_are_an_error(tmp_path):
    groups = {"sciq": "domain", "piqa": "general"}
    made = [
        Measured({n: benchmark(tmp_path / str(size) / f"{n}.parquet", np.ones(size)) for n in groups}, {})
        for size in (5, 6, 0)
    ]
    for model, base in ((made[0], made[1]), (made[2], made[2])):
        with pytest.raises(OnwardError, match=r"evaluate/piqa .*other questions"):
            standing(10, model, base, groups, {})


def test_without_benchmarks_it_is_bits_per_byte_of_held_out_text(tmp_path):
    rng = np.random.default_rng(1)
    size = rng.integers(500, 3000, 300)
    nll = size * rng.normal(0.9, 0.1, 300)
    after = nll * rng.normal(1.01, 0.02, 300)
    roles = {"books": "domain", "web": "replay"}
    base = Measured({}, {n: text(tmp_path / "base" / f"{n}.parquet", nll, size) for n in roles})
    model = Measured(
        {},
        {
            "books": text(tmp_path / "model" / "books.parquet", nll * 0.9, size),
            "web": text(tmp_path / "model" / "web.parquet", after, size),
        },
    )
    found = standing(10, model, base, {}, roles)
    assert found is not None and found.clearly_worse
    drawn = rng.integers(0, 300, (4000, 300))
    ratios = (nll - after)[drawn].sum(1) / size[drawn].sum(1) / math.log(2)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), rel=0.15)
    first = standing(0, base, base, {}, roles)
    assert first is not None and not first.clearly_worse and found.domain > first.domain
    assert first.measure == found.measure


def test_levels_of_other_sets_are_not_compared(tmp_path):
    """The same scores and texts, of which other ones count as the domain's."""
    right, nll, size = np.arange(20) % 2 == 0, np.full(5, 300.0), np.full(5, 400)
    model = Measured(
        {n: benchmark(tmp_path / f"{n}.parquet", right) for n in ("a", "b")},
        {n: text(tmp_path / f"{n}.parquet", nll, size) for n in ("books", "web")},
    )

    def measure(groups, roles):
        found = standing(10, model, model, groups, roles)
        assert found is not None
        return found.measure

    groups, roles = {"a": "domain", "b": "general"}, {"books": "domain", "web": "replay"}
    ways = [
        (groups, roles),
        ({"a": "domain", "b": "domain"}, roles),
        ({"a": "general", "b": "domain"}, roles),
        ({"a": "general", "b": "general"}, roles),
        (groups, {"books": "domain", "web": "domain"}),
        ({}, roles),
    ]
    assert len({measure(*way) for way in ways}) == len(ways)
    assert measure(dict(reversed(groups.items())), {**roles, "not measured": "domain"}) == measure(
        groups, roles
    )


def test_a_model_measured_on_the_domain_in_no_way_has_no_standing(tmp_path):
    nothing = Measured({}, {})
    assert standing(0, nothing, nothing, {}, {"web": "replay"}) is None


def at(tokens: int, domain: float, high: float = 0.1, measure: str = "m") -> Standing:
    return Standing(tokens, domain, high - 0.1, high - 0.2, high, measure)


def test_the_best_in_the_domain_that_lost_nothing_clearly():
    models = {"1": at(0, 0.30), "2": at(400, 0.35), "3": at(1000, 0.40, high=-0.01)}
    assert choose(models, "m") == "2"
    assert choose(models | {"3": at(1000, 0.40, high=0.001)}, "m") == "3"
    assert choose(models | {"4": at(9, 0.9, measure="another")}, "m") == "2"
    assert choose(models | {"0": at(300, 0.35)}, "m") == "0", "of equals the one that saw less"
    assert choose(models, "another") is None


@given(
    st.integers(0, 10**12),
    st.floats(-10, 10),
    st.none() | st.floats(-1, 1),
)
def test_a_standing_is_the_same_from_its_tags(tokens, domain, general):
    bounds = (None, None) if general is None else (general - 0.5, general + 0.5)
    known = Standing(tokens, domain, general, *bounds, "m")
    assert standing_of(known.tags()) == known
