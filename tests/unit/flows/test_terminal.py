"""Tables in a terminal: they fit its width, and nothing of them is lost."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from flows.ui.terminal import report_tables, shown
from tasks.pages.blocks import Block, Cell, Heading, Table, Text

WIDTHS = (60, 80, 100, 140)


def printed(blocks: list[Block], width: int, sections: tuple[str, ...] | None = None) -> list[str]:
    out = io.StringIO()
    shown(blocks, Console(file=out, width=width, color_system=None), sections)
    return out.getvalue().splitlines()


def wide(columns: int = 9) -> Table:
    head = ("benchmark", *(f"B · {number}0K" for number in range(columns)))
    scores = tuple(
        Cell(f"+{number}.5 [−{number}.1, {number}9.2] %", below="≈ no clear change")
        for number in range(columns)
    )
    return Table(head, (("general",), (Cell("arc_challenge", below="acc_norm"), *scores)))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_wide_table_is_cut_between_columns_and_no_interval_is(width: int) -> None:
    lines = printed([wide()], width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for number in range(9):
        assert f"+{number}.5 [−{number}.1, {number}9.2] %" in text, width
        assert f"B · {number}0K" in text
    parts = sum(line.startswith("benchmark") for line in lines)
    assert parts == sum(line.startswith("arc_challenge") for line in lines) > 1


def test_numbers_stand_at_the_right_and_words_at_the_left() -> None:
    table = Table(("model", "tokens", "note"), (("base", "5", "a"), ("400M", "1,234", "bcd")), notes=1)
    lines = [line.rstrip() for line in printed([table], 80)[:3]]
    assert lines == ["model  tokens  note", "base        5  a", "400M    1,234  bcd"]


def test_a_long_name_is_cut_and_the_numbers_stay() -> None:
    table = Table(("name", "a", "b"), (("x" * 200, "1234567", "7654321"),))
    lines = printed([table], 60)
    assert max(map(len, lines)) <= 60 and "…" in lines[1]
    assert "1234567" in lines[1] and "7654321" in lines[1]


def test_only_the_sections_that_were_asked_for_and_no_notes() -> None:
    row = Table(("a",), (("kept",),))
    other = Table(("a",), (("left",),))
    blocks: list[Block] = [
        Heading(1, "Title"),
        Text("the finding", "findings"),
        Heading(2, "One"),
        row,
        Text("a note of the document"),
        Heading(2, "Two"),
        other,
    ]
    text = "\n".join(printed(blocks, 80, ("One",)))
    assert "Title" in text and "the finding" in text and "kept" in text
    assert "left" not in text and "a note" not in text and "Two" not in text


def _facts() -> dict[str, Any]:
    sciq = {
        "benchmark": "sciq",
        "metric": "acc",
        "chance": 0.25,
        "models": {
            "base": {"score": 0.3, "low": 0.25, "high": 0.35, "at_chance": True},
            "1M": {"score": 0.8125, "low": None, "high": None, "at_chance": False},
        },
    }
    edu = {"source": "edu", "models": {"base": {"perplexity": 20.123, "low": 19.0, "high": 21.0}}}
    return {"models": [{"name": "base"}, {"name": "1M"}], "benchmarks": [sciq], "perplexity": [edu]}


def test_scores_are_percent_with_chance_and_interval() -> None:
    text = "\n".join(printed(report_tables(_facts()), 80))
    assert "25.0" in text and "30.0" in text and "81.2" in text and "acc" in text
    assert "[25.0, 35.0] at chance" in text
    assert "20.12" in text and "[19.0, 21.0]" in text


def test_nothing_measured_is_no_table() -> None:
    assert report_tables({"models": [], "benchmarks": [], "perplexity": []}) == []
