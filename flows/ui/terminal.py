"""Blocks of a page in a terminal: tables that fit its width, without the notes that a document has.

A table that is too wide is cut between columns: its first columns stand at the left of each part. A value and its interval
stay on one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table as Grid
from rich.text import Text as Words

from tasks.pages.blocks import Block, Cell, Heading, Row, Table, Text

_TONES = {"better": "green", "worse": "red", "warn": "yellow", "same": "dim"}
_UNBROKEN = re.compile(r"\S+(?: · \S+)+|(?:\S+ )?\[[^\]]*\](?: %)?|\S+")
"""What stays on one line: a value with its interval, or a word."""
_GAP = 2
_LABEL_SHARE = 0.4
"""The most of the width that the first columns take from the others; longer names are wrapped, or cut in a word."""


def shown(blocks: Iterable[Block], console: Console, sections: Sequence[str] | None = None) -> None:
    """Print headings, findings, warnings and tables; of the sections of level 2, only those named."""
    wanted = True
    for block in blocks:
        if isinstance(block, Heading):
            wanted = block.level == 1 or sections is None or block.text in sections
            if wanted:
                console.print(Words(block.text, style="bold"), soft_wrap=False)
                if block.level == 1:
                    console.print()
        elif wanted and isinstance(block, Text) and block.role in ("findings", "warning"):
            console.print(Words(block.text))
            console.print()
        elif wanted and isinstance(block, Table):
            console.print(grid_of(block, console.width))
            console.print()


def report_tables(facts: Mapping[str, Any]) -> list[Block]:
    """The scores of `report.json`: of each benchmark its main metric in percent, the 95 % interval below it."""
    names = tuple(model["name"] for model in facts["models"])
    blocks: list[Block] = []
    rows: list[Row] = []
    for one in facts["benchmarks"]:
        chance = "–" if one["chance"] is None else f"{100 * one['chance']:.1f}"
        scores = (_score(one["models"].get(name)) for name in names)
        rows.append((Cell(one["benchmark"], below=one["metric"]), chance, *scores))
    if rows:
        blocks.append(Table(("benchmark, percent", "chance", *names), tuple(rows)))
    rows = [
        (one["source"], *(_perplexity(one["models"].get(name)) for name in names))
        for one in facts["perplexity"]
    ]
    if rows:
        blocks.append(Table(("perplexity on", *names), tuple(rows)))
    return blocks


def _score(one: Mapping[str, Any] | None) -> Cell:
    if one is None:
        return Cell("")
    chance = " at chance" if one.get("at_chance") else ""
    low, high = one.get("low"), one.get("high")
    interval = f"[{100 * low:.1f}, {100 * high:.1f}]" if low is not None and high is not None else ""
    return Cell(f"{100 * one['score']:.1f}", below=f"{interval}{chance}".strip())


def _perplexity(one: Mapping[str, Any] | None) -> Cell:
    if one is None:
        return Cell("")
    low, high = one.get("low"), one.get("high")
    interval = f"[{low:.1f}, {high:.1f}]" if low is not None and high is not None else ""
    return Cell(f"{one['perplexity']:.2f}", below=interval)


def grid_of(table: Table, width: int) -> Group:
    """The table for a terminal of this width, in as many parts as it takes."""
    least = [_least(table, place) for place in range(len(table.head))]
    most = [_most(table, place) for place in range(len(table.head))]
    kept = list(range(table.labels))
    others = sum(size + _GAP for size in most[table.labels :])
    room = max(int(width * _LABEL_SHARE), width - others) - _GAP * (len(kept) - 1)
    labels = _fitted([most[place] for place in kept], [min(least[place], room) for place in kept], room)
    left = width - sum(labels) - _GAP * len(labels)
    parts = _parts([place for place in range(len(table.head)) if place >= table.labels], least, left)
    grids = [_grid(table, kept, labels, part, least, most, left) for part in parts or [[]]]
    return Group(grids[0], *(one for grid in grids[1:] for one in ("", grid)))


def _grid(
    table: Table,
    kept: list[int],
    labels: list[int],
    part: list[int],
    least: list[int],
    most: list[int],
    left: int,
) -> Grid:
    """The first columns and those of a part, each as wide as there is room for."""
    own = _fitted(
        [most[place] for place in part], [least[place] for place in part], left - _GAP * max(0, len(part) - 1)
    )
    grid = Grid(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
    for place, size in zip([*kept, *part], [*labels, *own], strict=True):
        grid.add_column(
            Words(table.head[place]),
            justify="left" if table.is_text(place) else "right",
            width=max(1, size),
            vertical="top",
            overflow="ellipsis" if place in kept else "fold",
        )
    for row in table.rows:
        cells = [row[place] if place < len(row) else "" for place in [*kept, *part]]
        grid.add_row(*(_words(cell, heading=len(row) == 1) for cell in cells))
    return grid


def _parts(places: list[int], least: list[int], left: int) -> list[list[int]]:
    """Columns that fit beside each other; at least one in each part."""
    parts: list[list[int]] = []
    used = 0
    for place in places:
        needed = least[place] + (_GAP if used else 0)
        if not parts or (parts[-1] and used + needed > left):
            parts.append([])
            used, needed = 0, least[place]
        parts[-1].append(place)
        used += needed
    return parts


def _fitted(most: list[int], least: list[int], room: int) -> list[int]:
    """Widths between the least and the most. What is over the least goes to those that need it, one by one."""
    sizes = [min(one, other) for one, other in zip(least, most, strict=True)]
    over = room - sum(sizes)
    while over > 0 and (wanting := [place for place, size in enumerate(sizes) if size < most[place]]):
        for place in wanting[:over]:
            sizes[place] += 1
        over = room - sum(sizes)
    return sizes


def _lines(table: Table, place: int) -> Iterable[str]:
    yield table.head[place]
    for row in table.rows:
        if place < len(row) and (len(row) > 1 or len(table.head) == 1):
            cell = _cell(row, place)
            yield from (cell.text, cell.below)


def _least(table: Table, place: int) -> int:
    return max(
        (len(word) for line in _lines(table, place) for word in _UNBROKEN.findall(line)),
        default=1,
    )


def _most(table: Table, place: int) -> int:
    return max((len(line) for line in _lines(table, place)), default=1)


def _cell(row: Row, place: int) -> Cell:
    cell = row[place]
    return Cell(cell) if isinstance(cell, str) else cell


def _words(cell: Cell | str, heading: bool) -> Words:
    if isinstance(cell, str):
        cell = Cell(cell)
    words = Words(cell.text, style="bold" if heading else _TONES.get(cell.tone, ""))
    if cell.below:
        words.append(f"\n{cell.below}", style="dim")
    return words
