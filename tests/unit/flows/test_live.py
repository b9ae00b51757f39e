"""What the UI is shown of a run, without the UI: a real store, real stages, and pages kept in memory."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from flows.dag.call import Call
from flows.dag.plan import Reasons
from flows.machine.gpu import Gpu
from flows.quote.quote import Line, Quote
from flows.runs.stage_task import Builder
from flows.ui.console import Console
from flows.ui.live import Live, own_artifacts, slug
from flows.ui.stage_bar import description, duration
from flows.ui.stage_progress import StageProgress
from flows.ui.whole import Forecast
from storage.errors import StageFailed
from storage.store import Request, Store
from storage.workers import Workers
from tests.support import slow_stage
from tests.support.slow_stage import SlowConfig, SlowInputs


class Kept:
    """Pages as Prefect has them, with every version of each; `away` is a server that does not answer."""

    def __init__(self) -> None:
        self.pages: dict[str, list[tuple[float, Any, str | None]]] = {}
        self.away = False

    def put(
        self, key: str, kind: str, data: Any, description: str | None = None, task_run: UUID | None = None
    ) -> None:
        if self.away:
            raise ConnectionError("no answer")
        self.pages.setdefault(key, []).append((time.monotonic(), data, description))

    def has(self, key: str) -> bool:
        return key in self.pages

    def newest(self, key: str) -> tuple[Any, str]:
        """(data, description)."""
        _, data, description = self.pages[key][-1]
        return data, description or ""


class Run:
    """A builder whose stages are shown."""

    def __init__(self, home: Path, period: float = 0.1, force: frozenset[str] = frozenset()) -> None:
        self.go = home / "go"
        self.store = Store(home / "store")
        self.pages = Kept()
        self.builder = Builder(self.store, Workers(1), Console(quiet=True), force, {"flow_run": "this one"})
        reasons = Reasons(self.store, own_artifacts("this one", set()))
        self.live = Live(self.pages, "small", self.store.work_of, reasons.brief, force, period, 0.2)
        self.builder.listeners.append(self.live.listen)
        self.builder.followers.append(self.live.follow)
        self.live.start()

    def make(self, config: SlowConfig, **named: Any) -> threading.Thread:
        """Make the stage in a thread of its own."""
        call = Call(
            Request(slow_stage, config, SlowInputs()), **{"slice": 1, "round": None, "item": None} | named
        )

        def make() -> None:
            with contextlib.suppress(StageFailed):
                self.builder.make(call)

        thread = threading.Thread(target=make, daemon=True)
        thread.start()
        return thread

    def text(self, stage: StageProgress) -> str:
        """What stands beside the stage's bar."""
        return description(stage, self.store.work_of(stage.call.request.stage, stage.call.request.key))

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not true():
            assert time.monotonic() < end, self.pages.pages
            time.sleep(0.02)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_a_stage_has_one_bar_that_moves_and_ends_at_the_whole(run):
    thread = run.make(SlowConfig())
    run.until(lambda: len(run.pages.pages.get("small-slow-slice-1", ())) >= 3)
    percent, text = run.pages.newest("small-slow-slice-1")
    assert 0 < percent < 100
    assert "of 1,000 documents" in text
    run.go.touch()
    thread.join(10)
    run.live.close(10)
    percent, text = run.pages.newest("small-slow-slice-1")
    assert percent == 100 and "built in" in text
    moved = [data for _, data, _ in run.pages.pages["small-slow-slice-1"]]
    assert moved == sorted(moved)


def test_a_stage_that_is_over_at_once_has_a_row_and_no_bar(run):
    run.go.touch()
    run.make(SlowConfig()).join(10)
    run.live.close(10)
    assert set(run.pages.pages) == {"stages"}
    (row,) = run.pages.newest("stages")[0]
    assert (row["stage"], row["of"], row["state"], row["documents"], row["why"]) == (
        "slow",
        "slice 1",
        "built",
        "3 → 2",
        "never made in this store",
    )


def test_a_failure_stands_where_the_bar_stopped_and_tells_no_secret(run):
    thread = run.make(SlowConfig(fails="http://me:hunter2@host refused"))
    run.until(lambda: run.pages.has("small-slow-slice-1"))
    run.go.touch()
    thread.join(10)
    run.live.close(10)
    percent, text = run.pages.newest("small-slow-slice-1")
    assert percent < 100 and "failed after" in text and "host refused" in text
    assert "hunter2" not in json.dumps(run.pages.pages)
    assert run.pages.newest("stages")[0][0]["state"] == "failed"


def test_the_table_says_why_a_stage_ran(tmp_path):
    (tmp_path / "go").touch()
    first = Run(tmp_path)
    first.builder.facts["flow_run"] = "one before"
    first.make(SlowConfig()).join(10)
    first.live.close(10)
    second = Run(tmp_path)
    second.make(SlowConfig()).join(10)
    second.make(SlowConfig(letter="b"), slice=2).join(10)
    second.make(SlowConfig(letter="c"), slice=3).join(10)
    second.live.close(10)
    rows = {row["of"]: row for row in second.pages.newest("stages")[0]}
    assert (rows["slice 1"]["state"], rows["slice 1"]["why"]) == ("cached", "")
    assert rows["slice 2"]["why"] == "config.letter: a → b"
    assert rows["slice 3"]["why"] == "config.letter: a → c", "what this run made is no reason"
    forced = Run(tmp_path, force=frozenset({"slow"}))
    forced.make(SlowConfig()).join(10)
    forced.live.close(10)
    assert forced.pages.newest("stages")[0][0]["why"] == "reproduced"


def test_what_is_under_way_stands_first_and_what_it_waits_for(run):
    run.go.touch()
    run.make(SlowConfig()).join(10)
    run.go.unlink()
    thread = run.make(SlowConfig(letter="b"), slice=2)
    run.until(lambda: len(run.builder.calls) == 2)
    for follower in run.builder.followers:
        follower(run.builder.calls[1], 0, None, "", note="waiting for the GPU (another run)")
    run.until(lambda: run.pages.has("stages") and len(run.pages.newest("stages")[0]) == 2)
    assert [row["of"] for row in run.pages.newest("stages")[0]] == ["slice 2", "slice 1"]
    run.go.touch()
    thread.join(10)
    run.live.close(10)
    assert [row["of"] for row in run.pages.newest("stages")[0]] == ["slice 1", "slice 2"]


def test_a_stage_that_waits_for_the_gpu_says_so_and_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.stages.ON_DEVICE", frozenset({"slow"}))
    run.go.touch()
    run.builder.gpu = Gpu(tmp_path, "fake", "the second")
    with Gpu(tmp_path, "fake", "the first").held(lambda who: None):
        thread = run.make(SlowConfig())
        run.until(lambda: run.pages.has("small-slow-slice-1"))
        assert (
            "waiting for the GPU (gpu-fake is taken by the first" in run.pages.newest("small-slow-slice-1")[1]
        )
        assert run.pages.newest("stages")[0][0]["state"] == "waiting"
    thread.join(10)
    run.live.close(10)
    assert run.pages.newest("stages")[0][0]["state"] == "built"
    assert any("waiting for the GPU" in warning for warning in run.builder.console.warnings)


def test_a_server_that_is_away_costs_nothing_but_the_delay(run):
    run.pages.away = True
    run.go.touch()
    began = time.monotonic()
    run.make(SlowConfig()).join(10)
    run.make(SlowConfig(letter="b"), slice=2).join(10)
    assert time.monotonic() - began < 5
    assert run.pages.pages == {}
    threading.Timer(1.0, lambda: setattr(run.pages, "away", False)).start()
    run.live.close(20)
    assert len(run.pages.newest("stages")[0]) == 2


def test_nothing_is_published_more_often_than_it_may_be(tmp_path):
    run = Run(tmp_path, period=0.5)
    thread = run.make(SlowConfig())
    time.sleep(2.2)
    times = [at for at, _, _ in run.pages.pages["stages"]]
    assert 2 <= len(times) <= 6
    assert min(later - before for before, later in itertools.pairwise(times)) > 0.4
    run.go.touch()
    thread.join(10)
    run.live.close(10)


def call_of(stage: str, **config: Any) -> Call:
    request = Request(slow_stage, SlowConfig(**config), SlowInputs())
    call = Call(request, None, 1, "400M", began=time.time() - 60)
    object.__setattr__(call, "request", _Named(request, stage))
    return call


class _Named:
    """A request under the name of another stage."""

    def __init__(self, request: Request, stage: str) -> None:
        self.config, self.inputs, self.key, self.stage = request.config, request.inputs, request.key, stage


def test_training_tells_its_rate_the_time_left_and_how_old_its_checkpoint_is(tmp_path, run):
    call = call_of("train")
    work = run.store.work_of("train", call.request.key)
    (work / "checkpoints" / "step-00000020").mkdir(parents=True)
    (work / "checkpoints" / "step-00000020" / "manifest.json").write_text("{}")
    (work / "journal.jsonl").write_text('{"step": 20, "tokens": 5000, "loss": 2.5}\n{"step": 25, "tok')
    stage = StageProgress(call, time.monotonic() - 60, done=5000, total=20_000, unit="tokens", share=0.25)
    now = time.monotonic()
    stage.samples.extend([(now - 10, 0.2, 4000), (now, 0.25, 5000)])
    text = run.text(stage)
    assert "5,000 of 20,000 tokens · 100 tokens/s · about 2 min 30 s left" in text
    assert "last checkpoint 0." in text and "at step 20" in text
    assert "5,000 tokens seen by the model · loss 2.500" in text
    run.live.close(10)


def test_shards_are_shown_as_the_documents_in_them(run):
    call = call_of("dedup")
    documents = SimpleNamespace(stats={"documents_out": 8000})
    object.__setattr__(call.request, "inputs", SimpleNamespace(documents=documents))
    with run.live._guard:
        run.live._stages.append(StageProgress(call, time.monotonic()))
    run.live.follow(call, 3, 8, "shards of sketches")
    (stage,) = run.live._stages
    assert "3,000 of 8,000 documents (pass 1 of 2)" in run.text(stage)
    assert stage.share == pytest.approx(3 / 16)
    run.live.follow(call, 2, 8, "shards of documents")
    assert "2,000 of 8,000 documents (pass 2 of 2)" in run.text(stage)
    assert stage.share == pytest.approx(10 / 16)
    run.live.close(10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (59.4, "59 s"), (61, "1 min 01 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_keys_of_pages_are_what_prefect_allows():
    assert slug("edu-125m train · round 1 · 400M→1B") == "edu-125m-train-round-1-400m-1b"


def test_the_whole_run_has_a_bar_and_what_is_to_come_has_rows(tmp_path: Path) -> None:
    run = Run(tmp_path)
    lines = (
        Line("slow", 1, 2, 2.0, "bytes", 200.0, 0.0, "measured"),
        Line("train", 0, 1, 1.0, "tokens", 3600.0, 0.0, "assumed"),
    )
    run.live.whole.forecast = Forecast(
        lambda: Quote(lines, (), 0.0, 3800.0, (), 0.0, 0.0, None, None, None), first=0.0
    )
    thread = run.make(SlowConfig())
    run.until(lambda: run.pages.has("run"))
    percent, text = run.pages.newest("run")
    assert 0 <= percent < 50 and "1 of 4 stages · about 1 h 0" in text and "until " in text
    rows = run.pages.newest("stages")[0]
    assert [(row["stage"], row["of"], row["state"]) for row in rows] == [
        ("slow", "slice 1", "running"),
        ("slow", "2 ×", "to come"),
        ("train", "1 ×", "to come"),
    ]
    assert rows[2]["time"] == "about 1 h 00 min" and rows[2]["why"] == "by a rule of thumb"
    run.go.touch()
    thread.join(10)
    run.live.close(10)
    assert [row["state"] for row in run.pages.newest("stages")[0]] == ["built"]
    assert "2 of 4 stages" in run.pages.newest("run")[1]


def test_a_run_that_cannot_be_foreseen_is_shown_as_before(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def unforeseen() -> Quote:
        raise OSError("no rate anywhere")

    run.live.whole.forecast = Forecast(unforeseen, first=0.0)
    run.go.touch()
    run.make(SlowConfig()).join(10)
    run.live.close(10)
    assert set(run.pages.pages) == {"stages"}


@pytest.mark.parametrize(("state", "drawn"), [("cached", False), ("built", True), ("running", True)])
def test_training_is_drawn_where_this_attempt_trains(run: Run, state: str, drawn: bool) -> None:
    """A run that finds all of it shows it on its report; to draw it takes a second."""
    call, pages = call_of("train"), Kept()
    live = Live(pages, "small", run.store.work_of, lambda request: "", period=0.1)
    work = run.store.work_of("train", call.request.key)
    work.mkdir(parents=True)
    rows = [{"step": step, "tokens": 64 * step, "loss": 5.0 - step, "lr": 1e-3} for step in (1, 2, 3)]
    (work / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    live.start()
    live.listen("begin", call, None)
    call.state = state
    if state != "running":
        live.listen("end", call, None)
    live.close(20)
    assert ("training" in pages.pages) == drawn


def test_a_link_that_comes_after_the_end_is_shown_and_costs_no_error_where_prefect_is_away(run):
    run.live.close(10)
    run.live.link("mlflow", "http://box/#/1", "This run in MLflow")
    assert run.pages.newest("mlflow") == ("[This run in MLflow](http://box/#/1)", "This run in MLflow")
    run.pages.away = True
    run.live.link("mlflow-runs", "http://box/#/2", "Compare runs in MLflow")
    assert "mlflow-runs" not in run.pages.pages
