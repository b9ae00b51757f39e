"""What more tokens would bring: from the lines of trainings to the page, with numbers of a known law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.pages.blocks import Picture
from tasks.pages.canvas import as_svg, save
from tasks.pages.html import html_of
from tasks.pages.markdown import markdown_of
from tasks.pages.report.outlook import (
    CAPTION,
    NAME,
    Segment,
    outlook_blocks,
    outlook_figure,
    outlooks,
    sentences,
    to_json,
)

GAP = 0.05


def line(tokens: int, loss: float, **more: Any) -> dict[str, Any]:
    documents = {"web": [[100, 100 * (loss - 0.1)], [100, 100 * (loss + 0.1)]]}
    return {"step": tokens // 1000, "tokens": tokens, "heldout/web": loss, "documents": documents, **more}


def trunk(first: int, last: int, name: str, seed: int = 0) -> Segment:
    """Measured every 20K tokens, by a law with a little noise."""
    random = np.random.default_rng(seed + first)
    at = range(first, last + 1, 20_000)
    lines = [line(tokens, law(max(tokens, 1000)) + random.normal(0, 0.002)) for tokens in at]
    return Segment(name, False, lines, warmup=20_000)


def law(tokens: float) -> float:
    return float(2.5 + 0.5 * (tokens / 1e6) ** -0.3)


def branch(first: int, last: int, name: str) -> Segment:
    return Segment(name, True, [line(first, law(first)), line(last, law(last) - GAP)])


FIRST = [trunk(0, 360_000, "400K"), branch(360_000, 400_000, "400K")]
BOTH = [*FIRST, trunk(380_000, 900_000, "1M"), branch(900_000, 1_000_000, "1M")]


def test_a_forecast_before_is_the_one_that_the_report_shows_after() -> None:
    [before] = outlooks(FIRST, {"1M": 1_000_000})
    [after] = outlooks(BOTH, {})
    [told], [shown] = before.foretold, after.foretold
    assert told.expected == shown.expected and (told.happened, told.held) == (None, None)
    assert shown.happened == pytest.approx(law(1e6) - GAP) and shown.held
    assert (shown.after, shown.budget) == ("400K", "1M")
    assert [each.tokens for each in after.more] == [2_000_000, 4_000_000] and before.more == ()
    assert after.more[1].low < law(4e6) - GAP < after.more[1].high


def test_the_run_says_it_before_the_next_budget() -> None:
    [said] = sentences(outlooks(FIRST, {"1M": 1_000_000}), "400K")
    expected = outlooks(FIRST, {"1M": 1_000_000})[0].foretold[0].expected
    assert said.startswith(
        f"held-out loss of web: {law(4e5) - GAP:.3f} at 400K, to be expected: {expected.value:.3f} ["
    )
    assert said.endswith("at 1M")
    few = [Segment("400K", False, FIRST[0].lines[:5]), FIRST[1]]
    [said] = sentences(outlooks(few, {"1M": 1_000_000}), "400K")
    assert "cannot be told" in said and "too few" in said


def test_the_page_shows_what_was_told_and_what_it_came_to(tmp_path: Path) -> None:
    facts = outlooks(BOTH, {})
    (tmp_path / "figures").mkdir()
    save(lambda tips: outlook_figure(facts, tips), tmp_path / "figures", NAME)
    blocks = outlook_blocks(facts, [Picture(NAME, CAPTION)])
    text, page = markdown_of(blocks), html_of(blocks, tmp_path)
    assert f"| web | 400K | 1M | {facts[0].foretold[0].expected.value:.3f} [" in text
    assert f"| {law(1e6) - GAP:.3f} |" in text and "| web | 1M | 4M |" in text
    assert "<svg" in page and "What more tokens would bring" in page
    svg = as_svg(lambda tips: outlook_figure(facts, tips), NAME)
    assert svg == as_svg(lambda tips: outlook_figure(facts, tips), NAME)
    assert f"<title>1M: {law(1e6) - GAP:.3f}</title>" in svg and "expected after 400K" in svg
    [found] = to_json(facts)
    assert found["foretold"][0]["budget"] == "1M" and found["law"]["power"] > 0


def test_a_forecast_that_did_not_hold_is_a_warning() -> None:
    worse = [*BOTH[:3], Segment("1M", True, [line(1_000_000, law(1e6) + 0.5)])]
    [found] = outlooks(worse, {})
    assert found.foretold[0].held is False
    assert "outside" in markdown_of(outlook_blocks([found], []))


def test_without_branches_or_single_documents_there_is_no_law() -> None:
    assert outlooks([BOTH[0]], {"1M": 1_000_000}) == ()
    assert outlooks([], {}) == () and outlook_blocks([], []) == []
    bare = [
        Segment(one.name, one.branch, [{**each, "documents": {}} for each in one.lines], one.warmup)
        for one in FIRST
    ]
    [found] = outlooks(bare, {"1M": 1_000_000})
    assert found.law is None and "single documents" in found.why
    assert "cannot tell" in markdown_of(outlook_blocks([found], []))
