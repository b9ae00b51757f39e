"""What is small in a rehearsal and what is not; and for which plans its figures hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.config import RunConfig, load_config, parse_config
from flows.dag.plan import PlanRow
from flows.dag.rounds import rounds_of
from flows.quote.happened import beside
from flows.quote.planned import quoted
from flows.quote.rates import Made, Rate, Rates
from flows.quote.rehearsed import Rehearsed, basis_of, file_of, newest, save
from flows.quote.small import more_held_out, small_of, with_more_questions
from flows.quote.training import compiled_by_rule
from flows.runs.rehearsal import checkpoints_in
from storage.artifact import Artifact
from storage.manifest import Manifest
from storage.settings import identity_of
from tasks.training.state.writer import Writer
from tests.support import ROOT
from tests.support.runs import minimal
from tests.support.smollm import config, smollm_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return smollm_home(tmp_path, monkeypatch)


def at(speed: float | None) -> list[PlanRow]:
    return [PlanRow("train", None, 1, "1M", "open", None, (), {"tokens_per_second": speed})]


def store_of(home: Path) -> Path:
    return home / ".store-rehearsal"


# ---- what is small ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_configuration_can_be_made_small(home: Path, path: Path) -> None:
    run = load_config(path)
    small = small_of(run, store_of(home), at(3000.0))
    assert small.run.store_path == store_of(home)
    [one] = rounds_of(small.run)
    assert one.last_step <= 29 and one.last_step - one.branch_step in (0, 5)
    mine, theirs = identity_of(small.run), identity_of(run)
    assert mine["packing"] == theirs["packing"]
    assert mine["corpus"]["filter"] == theirs["corpus"]["filter"]
    assert {name: mine["training"][name] for name in ("learning_rate", "optimizer", "precision")} == {
        name: theirs["training"][name] for name in ("learning_rate", "optimizer", "precision")
    }


def test_the_trunk_takes_about_a_minute(home: Path) -> None:
    """At 338 tokens/s, steps of 4,096 take 12 s: six would, and eight are the fewest. At 50,000 there are many."""
    run = config(batch_tokens=4096, token_budgets=["256K", "640K"])
    [slow] = rounds_of(small_of(run, store_of(home), at(338.0)).run)
    assert (slow.branch_step, slow.last_step) == (8, 13)
    [fast] = rounds_of(small_of(run, store_of(home), at(50_000.0)).run)
    assert (fast.branch_step, fast.last_step) == (24, 29)
    [unknown] = rounds_of(small_of(run, store_of(home), at(None)).run)
    assert unknown.last_step == 29


def test_a_batch_that_takes_minutes_is_made_smaller(home: Path) -> None:
    """524,288 tokens at 338 a second take 26 minutes; eight steps of five sequences of 2,048 take four."""
    small = small_of(config(), store_of(home), at(338.0))
    assert small.batch_tokens == small.run.training.batch_tokens == 6 * 2048
    assert small_of(config(), store_of(home), at(400_000.0)).batch_tokens == 524_288


def test_what_is_told_in_tokens_of_training_fits_the_few_steps(home: Path) -> None:
    run = config(
        batch_tokens=4096,
        keep_every_tokens="100M",
        average={"checkpoints": 8, "every_tokens": "1M"},
        schedule={"kind": "wsd", "decay_fraction": 0.3},
    )
    small = small_of(run, store_of(home), at(50_000.0)).run
    [one] = rounds_of(small)  # raises where the mean does not lie within the branch
    assert one.last_step - one.branch_step == 8
    assert small.training.keep_every_tokens == 12 * 4096  # one is kept
    cosine = small_of(
        config(batch_tokens=4096, schedule={"kind": "rewarm"}), store_of(home), at(50_000.0)
    ).run
    assert [(one.branch_step, one.last_step) for one in rounds_of(cosine)] == [(24, 24)]


def test_large_slices_are_read_apart(home: Path) -> None:
    """One of each source, of at most as much as keeps the workers busy."""
    run = config()
    small = small_of(run, store_of(home), at(338.0))
    assert small.run.corpus.slice_bytes == 8_000_000
    assert small.slices is not None and small.slices.corpus.slice_bytes >= 64_000_000
    assert {one.weight for one in small.slices.corpus.sources} == {1.0}
    raw = run.model_dump(mode="json")
    raw["corpus"]["slice_bytes"] = 6_000_000
    few = small_of(parse_config(raw), store_of(home), at(338.0))
    assert few.run.corpus.slice_bytes == 6_000_000 and few.slices is None


def test_more_questions_are_asked_where_they_are_quick(home: Path) -> None:
    run = parse_config(minimal(evaluation__limit=150))
    small = small_of(run, store_of(home), at(1000.0)).run
    assert small.evaluation.limit == 8

    def limit(seconds: float, of: RunConfig = run) -> int | None:
        return with_more_questions(of, small, seconds).evaluation.limit

    assert limit(2.0) == 45 and limit(20.0) == 24 and limit(0.01) == 150
    assert limit(0.01, parse_config(minimal())) == 200
    assert [more_held_out(speed) for speed in (0.0, 300.0, 3_000.0, 1e6)] == [8_000, 8_000, 30_000, 64_000]


def test_a_segment_is_compiled_as_the_longest_real_one_would_be(home: Path) -> None:
    """An hour of arithmetic on a CPU is the rule: the budgets of the file have it, eight steps have not."""
    rows = [PlanRow("train", None, 1, None, "open", None), PlanRow("decay", None, 1, None, "open", None)]
    long = compiled_by_rule(config(execution={"device": "cpu"}), rows)
    short = compiled_by_rule(
        config(batch_tokens=2048, token_budgets=["20K"], execution={"device": "cpu"}), rows
    )
    assert set(short.values()) == {False} and set(long) == {"train", "decay"}
    assert compiled_by_rule(config(execution={"device": "cpu", "compile": True}), rows) == {}


def test_what_a_checkpoint_takes_is_read_from_what_the_trainer_says(tmp_path: Path) -> None:
    said: list[str] = []
    writer = Writer(tmp_path, 1, None, said.append)
    state = {"step": 3, "journal": {}, "identity": {}, "identity_digest": ""}
    writer.begin({"model": {"weight": torch.zeros(4)}}, state, lambda: None)
    writer.wait()
    writer.close()
    assert len(checkpoints_in("\n".join(said), "cpu")) == 1
    line = "checkpoint at step 13: copied in 0.40 s, written in 6.1 s beside the steps\n"
    assert checkpoints_in(f"step 12\n{line}done\n", "cpu") == [pytest.approx(0.4 + 3.05)]
    assert checkpoints_in(line, "cuda") == [pytest.approx(0.4)]


# ---- for which plans it holds -----------------------------------------------------------------------------------------


def rehearsed(run: RunConfig, when: str = "2026-11-30T12:00:00+00:00", **over: Any) -> Rehearsed:
    given: dict[str, Any] = {
        "run": run.name,
        "when": when,
        "budgets": run.training.token_budgets,
        "basis": basis_of(run),
        "rates": Rates({"filter": Rate(1, 2)}),
        "start_seconds": 20.0,
        "checkpoint_seconds": 0.5,
        "checkpoint_bytes": 1e9,
    }
    return Rehearsed(**{**given, **over})


def test_the_newest_of_the_same_machine_and_model_is_taken(home: Path) -> None:
    run = config()
    assert newest(run) is None
    save(file_of(run, "a"), rehearsed(run))
    save(file_of(run, "b"), rehearsed(run, "2026-12-01T12:00:00+00:00", start_seconds=30.0))
    save(
        file_of(run, "c"),
        rehearsed(run, "2026-12-02T12:00:00+00:00", basis={**basis_of(run), "host": "another"}),
    )
    file_of(run, "d").write_text("{}")
    file_of(run, "e").write_text("no JSON")
    found = newest(run)
    assert found is not None and found.start_seconds == 30.0
    assert json.loads(json.dumps(found.to_json())) == json.loads(file_of(run, "b").read_text())
    assert newest(config(token_budgets=["1B", "2B"], learning_rate=1e-5)) == found
    assert newest(config(precision="fp32")) is None


def test_a_plan_says_what_was_measured_and_when(home: Path) -> None:
    (home / "text.txt").write_text("a word or two\n" * 1000)
    init = {"hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 128, "pretrain_tokens": "4K"}
    sources = [
        {"name": name, "role": role, "weight": 0.5, "files": ["text.txt"]}
        for name, role in (("a", "domain"), ("b", "replay"))
    ]
    run = parse_config(
        minimal(
            corpus__sources=sources,
            model__base={"init": {**init, "tokenizer": {"vocabulary": 300}}},
            packing__sequence_length=128,
            training__batch_tokens=1024,
            training__token_budgets=["16K"],
        )
    )
    before = quoted(run)
    assert before.quote.open and "measured" not in before.text(100)
    rates = Rates(
        {kind: Rate(3.0, 0.0) for kind in ("train", "decay", "perplexity/a", "perplexity/b", "samples")}
    )
    save(file_of(run, "a"), rehearsed(run, rates=rates))
    after = quoted(run)
    assert after.quote.open == () and after.quote.start_seconds == 20.0
    assert "measured on 2026-11-30 12:00:00 by rehearse" in after.text(100)
    elsewhere = quoted(run, memory=8 * 10**9, device="H100")
    assert "measured" not in elsewhere.text(100) and "are free" not in elsewhere.text(100)

    said: list[str] = []
    save(
        file_of(run, "a"),
        rehearsed(run, rates=replace(rates, kinds={**rates.kinds, "train": Rate(3.0, 0.0, 1e18)})),
    )
    quoted(run, said.append)
    [warned] = [line for line in said if line.startswith("store: ")]
    assert "needs about 2,000,000,000 GB" in warned and "make room" in warned


def artifact(stage: str, key: str, seconds: float) -> Made:
    manifest = Manifest(stage, 1, key, {}, {}, {}, provenance={"seconds": seconds})
    return Made(stage, None, None, None, Artifact(Path("/nonexistent"), manifest))


def test_a_quote_stands_beside_what_happened() -> None:
    lines = [
        {"stage": "train", "seconds": 100.0, "done": 0},
        {"stage": "decay", "seconds": 50.0, "done": 0},
        {"stage": "evaluate", "seconds": None, "done": 0},
        {"stage": "filter", "seconds": 5.0, "done": 1},
        {"stage": "report", "seconds": 1.0, "done": 0},
    ]
    made = [artifact("train", "a", 70.0), artifact("train", "b", 50.0), artifact("decay", "c", 45.0)]
    made += [artifact("evaluate", "d", 9.0), artifact("filter", "e", 9.0), made[0]]
    rows = beside({"lines": lines}, made)
    assert [(one.stage, one.quoted, one.took) for one in rows] == [
        ("train", 100.0, 120.0),
        ("decay", 50.0, 45.0),
        ("in all", 150.0, 165.0),
    ]
    assert rows[0].off == pytest.approx(0.2) and rows[-1].off == pytest.approx(0.1)
    assert beside({}, made) == []
    assert replace(rows[0], quoted=0.0).off == 0.0
