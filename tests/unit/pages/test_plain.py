"""Typed facts to JSON and back: the file's names and order are those of the fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from tasks.pages.plain import named, optional, plain, read_as, unwritten


@dataclass(frozen=True, kw_only=True)
class Change:
    before: str = named("from")
    value: float | None
    exact: float | None = optional()


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    pair: tuple[str, int]
    models: Mapping[str, Change]
    changes: tuple[Change, ...] = ()
    series: tuple[str, ...] = optional(())
    points: tuple[int, ...] = unwritten(())


ROW = Row(
    name="sciq",
    pair=("base", 3),
    models={"base": Change(before="x", value=0.5)},
    changes=(Change(before="base", value=None, exact=0.25),),
    points=(1, 2),
)
WRITTEN = {
    "name": "sciq",
    "pair": ["base", 3],
    "models": {"base": {"from": "x", "value": 0.5}},
    "changes": [{"from": "base", "value": None, "exact": 0.25}],
}


def test_fields_are_written_in_order_under_their_names_and_optional_ones_only_where_they_are_set():
    assert json.dumps(plain(ROW)) == json.dumps(WRITTEN)


def test_what_was_written_is_read_back_but_for_what_is_never_written():
    read = read_as(Row, json.loads(json.dumps(plain(ROW))))
    assert (read.name, read.pair, read.models, read.changes) == (ROW.name, ROW.pair, ROW.models, ROW.changes)
    assert read.points == () and isinstance(read.changes[0], Change)


def test_names_that_the_dataclass_does_not_know_are_left_out():
    assert read_as(Row, {**WRITTEN, "findings": ["more"]}).changes == ROW.changes
