"""From rates and work to a quote: the line through measured points, what is left of a run, and how both are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.config import RunConfig, parse_config
from flows.dag.plan import PlanRow, planned
from flows.quote.quote import ASSUMED, MEASURED, RECORDED, Measured, quote_of
from flows.quote.rates import Made, Point, Rate, Rates, SourceRate, fitted, rates_of, steady, with_tokens
from flows.quote.table import bytes_text, hours_text, render
from flows.quote.work import Item, SourceWork, Work, taken_of, work_of
from storage.artifact import Artifact
from storage.manifest import Manifest
from tests.support.runs import minimal


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    return tmp_path


# ---- rates ------------------------------------------------------------------------------------------------------------


def test_two_sizes_tell_what_is_fixed_from_what_grows() -> None:
    rate = fitted([Point(10, 7, 100), Point(10, 7, 100), Point(110, 27, 1100)])
    assert (rate.fixed_seconds, rate.unit_seconds) == (pytest.approx(5), pytest.approx(0.2))
    assert (rate.fixed_bytes, rate.unit_bytes) == (pytest.approx(0), pytest.approx(10))
    assert rate.seconds(2, 60) == pytest.approx(22) and rate.bytes(2, 60) == pytest.approx(600)
    assert rate.points == 3


def test_points_of_one_size_give_their_mean_alone() -> None:
    assert fitted([Point(100, 20, 0), Point(105, 21, 0)]) == Rate(0.0, pytest.approx(0.2), 0.0, 0.0, 2)
    assert fitted([Point(0, 3, 8), Point(0, 5, 8)]) == Rate(4.0, 0.0, 8.0, 0.0, 2)


def test_no_part_of_a_rate_is_negative() -> None:
    """Where noise gives a line that falls, or that begins below zero."""
    assert fitted([Point(10, 9, 0), Point(100, 5, 0)]) == Rate(7.0, 0.0, 0.0, 0.0, 2)
    assert fitted([Point(10, 1, 0), Point(100, 40, 0)]) == Rate(0.0, pytest.approx(0.4), 0.0, 0.0, 2)


def segment(home: Path, stage: str, key: str, seconds: list[float], took: float, **execution: Any) -> Made:
    """A training artifact with a clock of these steps, each of 4 sequences of 100 tokens."""
    directory = home / key
    directory.mkdir()
    pq.write_table(pa.table({"seconds": seconds}), directory / "clock.parquet")
    config = {"sequences_per_step": 4, "sequence_length": 100}
    facts = {"seconds": took, "execution": execution}
    return Made(
        stage, None, 1, None, Artifact(directory, Manifest(stage, 1, key, config, {}, {}, provenance=facts))
    )


def test_segments_that_are_compiled_alike_have_one_rate(home: Path) -> None:
    trunk = segment(home, "train", "a", [9.0, *[2.0] * 9], 40.0)
    branch = segment(home, "decay", "b", [3.0] * 5, 25.0)
    short = segment(home, "decay", "c", [3.0], 9.0)
    rates = rates_of([trunk, branch, short])
    each = (10 * 2.0 + 5 * 3.0) / 15
    assert rates.kinds["train"].unit_seconds == rates.kinds["decay"].unit_seconds == pytest.approx(each / 400)
    assert rates.kinds["train"].fixed_seconds == pytest.approx(40 - 10 * each)
    assert rates.kinds["decay"].fixed_seconds == pytest.approx(25 - 5 * each)
    assert rates.kinds["train"].seconds(1, 4000) == pytest.approx(40)
    compiled = segment(home, "train", "d", [1.0] * 10, 50.0, compile=True)
    rates = rates_of([compiled, branch])
    assert rates.kinds["train"].unit_seconds == pytest.approx(1 / 400)
    assert rates.kinds["decay"].unit_seconds == pytest.approx(3 / 400)


def test_steady_steps_are_those_after_the_warm_up_that_wait_for_nothing() -> None:
    found = steady([9.0, 3.0, 1.0, 1.2, 1.0, 5.0, 1.0, 0.8, 1.0, 1.0])
    assert found is not None
    assert (found.step_seconds, found.steps) == (pytest.approx(1.0), 10)
    assert steady([1.0, 1.0, 1.0]) is None and steady([]) is None
    few = steady([30.0, 2.0, 2.0, 2.0])
    assert few is not None and few.step_seconds == 2.0


def test_a_kind_that_was_not_measured_has_the_mean_of_its_stage() -> None:
    rates = Rates({"evaluate/a": Rate(2, 1), "evaluate/b": Rate(4, 3), "filter": Rate(1, 1)})
    assert rates.of("evaluate/c") == Rate(3, 2)
    assert rates.of("evaluate/a") == Rate(2, 1)
    assert rates.of("dedup") is None and rates.of("perplexity/x") is None


def test_a_question_takes_as_long_as_the_tokens_that_it_computes(home: Path) -> None:
    """Eight questions and forty, of 100 tokens each, at 0.01 s a token and two for the start; the real ones have 20."""

    def asked(key: str, questions: int, seconds: float) -> Made:
        stats = {"questions": questions}
        facts = {"seconds": seconds, "execution": {"tokens_computed": 100 * questions}}
        manifest = Manifest("evaluate", 1, key, {}, {}, {}, stats=stats, provenance=facts)
        return Made("evaluate", None, 0, "mmlu", Artifact(home, manifest))

    made = [asked("a", 8, 10.0), asked("b", 40, 42.0)]
    rates = rates_of(made)
    assert rates.kinds["evaluate/mmlu"].unit_seconds == pytest.approx(1.0)
    rate = with_tokens(rates, made, {"mmlu": 20.0, "other": 5.0}).kinds["evaluate/mmlu"]
    assert (rate.fixed_seconds, rate.unit_seconds) == (pytest.approx(2.0), pytest.approx(0.2))


def test_rates_are_read_back_from_json() -> None:
    rates = Rates({"filter": Rate(1, 2, 3, 4, 5)}, {"books": SourceRate(0.2, 0.01)}, 4.2)
    assert Rates.of_json(json.loads(json.dumps(rates.to_json()))) == rates


# ---- the work ---------------------------------------------------------------------------------------------------------

INIT = {
    "init": {
        "hidden_size": 64,
        "layers": 2,
        "heads": 2,
        "max_positions": 128,
        "pretrain_tokens": "4K",
        "tokenizer": {"vocabulary": 300},
    }
}


def run_of(home: Path, **over: Any) -> RunConfig:
    """Two sources of 100 KB; three quarters of 64K tokens are of the first."""
    for name in ("domain", "general"):
        (home / f"{name}.txt").write_text("a word or two\n" * (100_000 // 14))
    sources = [
        {"name": "domain", "role": "domain", "weight": 0.75, "files": ["domain.txt"]},
        {"name": "general", "role": "replay", "weight": 0.25, "files": ["general.txt"]},
    ]
    given: dict[str, Any] = {
        "corpus__sources": sources,
        "corpus__slice_bytes": "20K",
        "model__base": INIT,
        "packing__sequence_length": 128,
        "training__batch_tokens": 1024,
        "training__token_budgets": ["16K", "64K"],
        **over,
    }
    return parse_config(minimal(**given))


def works(run: RunConfig, rates: Rates) -> tuple[dict[str, Item], dict[str, SourceWork]]:
    work = work_of(run, planned(run), rates)
    return {one.kind: one for one in work.items}, {one.name: one for one in work.sources}


def test_slices_to_come_follow_from_tokens_and_the_size_of_the_text(home: Path) -> None:
    """Of the first source 48K tokens are taken, and a slice gives 20K · 0.5 = 10K; of the second 16K, and 4K for a new
    base."""
    run = run_of(home)
    assert [taken_of(run, one) for one in run.corpus.sources] == [48_384, 16_128 + 4_096]
    rates = Rates(
        sources={name: SourceRate(0.5, 0.9, 0.1, 21_000) for name in ("domain", "general")}, token_bytes=2.0
    )
    items, sources = works(run, rates)
    assert (items["filter"].done, items["filter"].to_do, items["filter"].amount) == (0, 5 + 3, 160_000 - 12)
    assert items["filter"].unit == "bytes"
    assert sources["domain"].epochs == pytest.approx(48_384 / 49_994, rel=1e-3)
    assert items["train"].to_do == 3 and items["decay"].to_do == 2
    assert items["train"].amount + items["decay"].amount > 64_000 + 4_096
    assert items["perplexity/domain"].to_do == 3
    assert items["perplexity/domain"].amount == pytest.approx(3 * 20_000 * 0.1 / 2)


def test_a_text_that_is_too_short_is_read_whole_and_again(home: Path) -> None:
    """A byte gives a twentieth of a token: 100 KB give 5,000, and 48,384 are taken."""
    rates = Rates(sources={"domain": SourceRate(0.05, 0.1), "general": SourceRate(1.0, 0.1)})
    items, sources = works(run_of(home), rates)
    assert sources["domain"].epochs == pytest.approx(9.7, rel=0.01) and sources["domain"].estimated
    assert items["ingest"].to_do == 5 + 2


def test_of_a_source_that_is_only_measured_one_slice_is_read(home: Path) -> None:
    measured = {"name": "measured", "role": "domain", "weight": 0, "files": ["domain.txt"]}
    run = run_of(home)
    run = run_of(home, corpus__sources=[*(one.model_dump() for one in run.corpus.sources), measured])
    items, sources = works(run, Rates(sources={name: SourceRate(0.5, 0.1) for name in ("domain", "general")}))
    assert sources["measured"].tokens == 0 and items["ingest"].to_do == 5 + 3 + 1
    assert items["perplexity/measured"].to_do == 3
    quote = quote_of(run, Work(tuple(items.values()), tuple(sources.values())), Measured(), [], 2)
    assert "measured is measured, and not trained on" in render([], quote)


def test_questions_are_those_of_the_file_up_to_the_limit(home: Path) -> None:
    rows = [{"question": f"Which {at}?", "choices": ["a", "b"], "answer": 0} for at in range(7)]
    (home / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = [{"name": "mine", "file": "own.jsonl"}]
    items, _ = works(run_of(home, evaluation__own=own), Rates())
    assert (items["evaluate/mine"].to_do, items["evaluate/mine"].amount) == (3, 21)
    items, _ = works(run_of(home, evaluation__own=own, evaluation__limit=5), Rates())
    assert items["evaluate/mine"].amount == 15


# ---- the quote --------------------------------------------------------------------------------------------------------


def work() -> Work:
    return Work(
        (
            Item("filter", 1, 2, 100.0),
            Item("train", 0, 1, 5000.0),
            Item("evaluate/a", 0, 1, 10.0),
            Item("evaluate/b", 1, 0, 0.0),
        ),
        (SourceWork("books", 12_000, 1_000, 4_000, True),),
    )


def test_a_quote_adds_up_what_is_to_do(home: Path) -> None:
    run = run_of(home, price_per_hour=36.0)
    measured = Measured(
        Rates({"filter": Rate(1, 0.1), "train": Rate(10, 0.01), "evaluate/a": Rate(2, 0.3, 100)}),
        Rates({"filter": Rate(2, 0.1, 0, 3)}),
        start_seconds=7,
        memory={"train": 5e9, "filter": 9e9, "report": 99e9},
    )
    quote = quote_of(run, work(), measured, [], 2)
    lines = {line.stage: line for line in quote.lines}
    assert lines["filter"].seconds == pytest.approx(2 * 2 + 100 * 0.1) and lines["filter"].bytes == 300
    assert lines["filter"].rate == RECORDED and lines["train"].rate == MEASURED
    assert lines["train"].seconds == pytest.approx(60)
    assert (lines["evaluate"].done, lines["evaluate"].to_do, lines["evaluate"].amount) == (1, 1, 10)
    assert quote.seconds == pytest.approx(7 + 14 + 60 + 5) and quote.open == ()
    assert quote.price == pytest.approx(quote.seconds / 100)
    assert quote.peak_memory == 9e9  # of stages that are to run
    assert json.loads(json.dumps(quote.to_json()))["seconds"] == quote.seconds


def test_checkpoints_take_time_of_a_long_training(home: Path) -> None:
    run = run_of(home, training__execution={"checkpoint_every": "20s"})
    rates = Rates({"train": Rate(0, 0.02)})
    quote = quote_of(run, work(), Measured(rates, checkpoint_seconds=3), [], 1)
    assert next(line.seconds for line in quote.lines if line.stage == "train") == pytest.approx(100 + 5 * 3)


def test_nothing_is_assumed_of_a_model_of_unknown_speed(home: Path) -> None:
    quote = quote_of(run_of(home), work(), Measured(), [], 2)
    assert quote.open == ("train", "evaluate") and quote.price is None
    told = {"tokens_per_second": 100.0, "parameters": 1000, "peak_bytes": 4e9}
    row = PlanRow("train", None, 1, None, "open", None, (), told)
    quote = quote_of(run_of(home), work(), Measured(), [row], 2)
    assert quote.open == () and {line.rate for line in quote.lines if line.to_do} == {ASSUMED}
    assert next(line.seconds for line in quote.lines if line.stage == "train") == pytest.approx(20 + 50)
    assert quote.peak_memory == 4e9 and quote.passing_bytes == 12 * 1000 * 3
    stopping = run_of(home, training__stop={"source": "domain", "patience_tokens": "8K"})
    assert quote_of(stopping, work(), Measured(), [row], 2).passing_bytes == 12 * 1000 * 6


# ---- as a table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 100, 120])
def test_the_table_fits_the_terminal(home: Path, width: int) -> None:
    reason = (
        "corpus.filter.thresholds.gopher_too_few_alphabetic_words: 0.8 → 0.6, and more words to fill the line"
    )
    line = "135M at 2048 in 8 GB: micro-batch 13, full checkpointing, about 64,000 tokens/s, about 2.1 h (an estimate)"
    told = {
        "tokens_per_second": 64_000.0,
        "line": line,
        "fits": True,
        "rate_from": "an estimate: 40% of 989 TFLOP/s",
    }
    rows = [
        PlanRow("filter", 1, None, None, "to build", "k", (reason,)),
        PlanRow("filter", 2, None, None, "to build", "k", (reason,)),
        PlanRow("train", None, 1, "1B", "open", None, ("waits for pack",), told),
    ]
    run = run_of(home, price_per_hour=2.5)
    text = render(
        rows,
        quote_of(run, work(), Measured(Rates({"train": Rate(3600 * 9, 0)})), rows, 2),
        free=5,
        width=width,
    )
    assert max(len(one) for one in text.splitlines()) <= max(width, 80)
    words = " ".join(text.split())
    assert "books is read about 12 times (12K tokens of about 1K)" in words
    assert f"filter: {reason} (× 2)" in words and "waits for" not in text
    assert "micro-batch 13, full checkpointing, about 64,000 tokens/s" in words and "2.1 h" not in text
    assert "9 h 00 min" in text and "price" in text and "5 B are free" in words
    assert "nothing to do" not in text


def test_a_finished_run_has_nothing_to_do(home: Path) -> None:
    done = Work((Item("filter", 3, 0, 0.0), Item("train", 1, 0, 0.0)), ())
    text = render([], quote_of(run_of(home), done, Measured(), [], 2))
    assert text.splitlines()[-1] == "nothing to do" and "?" not in text


def test_times_and_sizes_in_words() -> None:
    assert [hours_text(one) for one in (4, 59.4, 60, 3599, 7500, 36000, 4e5)] == [
        "4 s", "59 s", "1 min", "1 h 00 min", "2 h 05 min", "10 h", "111 h",
    ]  # fmt: skip
    assert [bytes_text(one) for one in (12, 1500, 99.6e6, 3.14e9, 120e9)] == [
        "12 B", "1.5 KB", "100 MB", "3.1 GB", "120 GB",
    ]  # fmt: skip
