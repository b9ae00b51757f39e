"""How far a whole run is, from a quote and from what has happened since it was made."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from flows.quote.quote import Line, Quote
from flows.ui.whole import At, Forecast, whole_of


def line(stage: str, done: int, to_do: int, seconds: float | None, rate: str = "measured") -> Line:
    return Line(stage, done, to_do, 1.0, "bytes", seconds, 0.0, rate if to_do else "")


def quote(*lines: Line, price: float | None = None) -> Quote:
    seconds = sum(one.seconds or 0.0 for one in lines)
    return Quote(lines, (), 0.0, seconds, (), 0.0, 0.0, None, None, price)


PLAN = quote(line("ingest", 2, 0, None), line("filter", 0, 4, 400.0), line("train", 0, 2, 7200.0), price=3.8)


def at(
    stage: str,
    share: float = 0.0,
    left: float | None = None,
    elapsed: float = 0.0,
    since: float | None = None,
) -> At:
    return At(stage, share, left, elapsed, since)


def test_at_the_beginning_all_of_the_quote_is_left() -> None:
    found = whole_of(PLAN, [at("ingest", 1.0, since=1.0), at("ingest", 1.0, since=2.0)], made=5.0)
    assert (found.done, found.total, found.seconds) == (2, 8, 7600.0)
    assert [(one.stage, one.to_do) for one in found.ahead] == [("filter", 4), ("train", 2)]
    assert found.price == pytest.approx(3.8)
    text = found.text(datetime(2026, 11, 30, 12, 48))
    assert text == "2 of 8 stages · about 2 h 07 min left, until 14:54 · about 3.80 more for the machine"


def test_what_has_ended_since_and_what_is_at_work_is_taken_off() -> None:
    stages = [
        at("filter", 1.0, since=6.0),
        at("filter", 1.0, since=7.0),
        at("filter", 0.5, left=30.0, elapsed=30.0),
    ]
    found = whole_of(PLAN, stages, made=5.0)
    assert (found.done, found.total) == (4, 8)
    assert (
        found.seconds == 30.0 + 100.0 + 7200.0
    )  # its own rate for the one at work, the measured one for the last
    early = whole_of(PLAN, [at("filter", 0.25)], made=5.0)
    assert early.seconds == 75.0 + 300.0 + 7200.0  # no rate of its own yet


def test_where_only_a_rule_of_thumb_was_known_a_stage_at_work_corrects_it_for_its_kind() -> None:
    guessed = quote(line("train", 0, 2, 7200.0, "assumed"))
    found = whole_of(guessed, [at("train", 0.5, left=600.0, elapsed=600.0)], made=0.0)
    assert found.seconds == 600.0 + 1200.0 and not found.ahead[0].assumed
    early = whole_of(guessed, [at("train", 0.01, left=9.0, elapsed=1.0)], made=0.0)
    assert early.seconds == 9.0 + 3600.0 and early.ahead[0].assumed
    assert early.text(datetime(2026, 11, 30, 23, 30)).endswith("measures")
    assert "until 01 Dec 00:30" in early.text(datetime(2026, 11, 30, 23, 30))


def test_of_stages_without_any_known_time_the_rest_is_more_than_what_is_told() -> None:
    open_ = quote(line("filter", 0, 1, 60.0), line("perplexity", 0, 1, None))
    found = whole_of(open_, [], made=0.0)
    assert not found.whole and "more than 1 min left" in found.text(datetime(2026, 11, 30, 12, 0))


def test_nothing_is_left_of_a_run_that_has_ended() -> None:
    stages = [
        *(at("filter", 1.0, since=9.0) for _ in range(4)),
        *(at("train", 1.0, since=9.0) for _ in range(2)),
    ]
    found = whole_of(PLAN, stages, made=5.0)
    assert (found.done, found.total, found.seconds, found.ahead) == (8, 8, 0.0, ())
    assert found.text(datetime(2026, 11, 30, 12, 0)).startswith("8 of 8 stages")
    more = whole_of(replace(PLAN, price=None), [*stages, at("filter", 1.0, since=9.5)], made=5.0)
    assert (more.done, more.total) == (8, 8)  # one slice more than was foreseen


def test_a_quote_is_made_when_the_run_has_lasted_and_then_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("flows.ui.whole.time.monotonic", lambda: clock[0])
    made: list[float] = []

    def make() -> Quote:
        made.append(clock[0])
        return PLAN

    forecast = Forecast(make, first=20.0, again=600.0, _began=100.0)
    assert forecast.now([]) is None and made == []
    clock[0] = 121.0
    assert forecast.now([]) is not None
    clock[0] = 500.0
    assert forecast.now([at("filter", 1.0, since=300.0)]) is not None and made == [121.0]
    clock[0] = 800.0
    assert forecast.now([], last=True) is not None and made == [121.0]
    assert forecast.now([]) is not None and made == [121.0, 800.0]
