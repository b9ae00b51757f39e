"""Conditions on the fields of a row (`where` of a source): rows that do not meet them are set aside, and are not bad.

kind: pdf                one of these, parted by |
language: en|de
kind: "!= table|sheets"  none of these; a row without the field meets it
date: ">= 2015"          as numbers where both are numbers, else as text, as years and dates of ISO 8601 are compared
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from tasks.corpus.reading.batches import Batch, Fault

REASON = "where"
"""Of rows that do not meet a condition, in dropped.parquet."""
_SIGN = re.compile(r"\s*(>=|<=|!=|=|>|<)?\s*(.*?)\s*", re.S)
_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """One field and what it must be. `sign`: =, !=, or one of order."""

    field: str
    sign: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.field} {self.sign} {'|'.join(self.values)}"

    def holds(self, value: Any) -> bool:
        """Whether a field's value meets it; None: the row has no such field."""
        if value is None:
            return self.sign == "!="
        if self.sign in _ORDER:
            one, other = _number(value), _number(self.values[0])
            if one is not None and other is not None:
                return _ORDER[self.sign](one, other)
            return _ORDER[self.sign](_text(value), self.values[0])
        return any(_same(value, one) for one in self.values) == (self.sign == "=")


def words_of(value: Any) -> Any:
    """What YAML made a truth value, a number or a date of, as a row of JSON has it; anything else as it is."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bool):
        return _text(value)
    return str(value) if isinstance(value, int | float) else value


def conditions_of(where: Mapping[str, str]) -> tuple[Condition, ...]:
    """Parse the conditions. Raises ValueError, naming the field, if one has no value."""
    found = []
    for name, words in sorted(where.items()):
        match = _SIGN.fullmatch(words)
        assert match is not None
        sign = match[1] or "="
        values = (match[2],) if sign in _ORDER else tuple(one.strip() for one in match[2].split("|"))
        if not all(values):
            raise ValueError(
                f"where: {name}: {words!r} names no value; write for instance en|de, != table or >= 2015"
            )
        found.append(Condition(name, sign, values))
    return tuple(found)


def meeting(
    batch: Batch, conditions: tuple[Condition, ...], place: str, place_field: str | None = None
) -> Batch:
    """The batch in which the rows that fail a condition are faults. `place` is what the file is called; `place_field`: the
    field of each row that says so instead."""
    if not conditions or not len(batch.texts):
        return batch
    good = np.ones(len(batch.texts), bool)
    faults = list(batch.faults)
    for position, meta in enumerate(batch.metas.to_pylist()):
        fields = orjson.loads(meta)
        failed = next((one for one in conditions if not one.holds(fields.get(one.field))), None)
        if failed is not None:
            good[position] = False
            row = int(batch.rows[position])
            value = fields.get(failed.field)
            is_now = "it has none" if value is None else f"it is {_text(value)[:80]}"
            called = place if place_field is None else fields.get(place_field, place)
            faults.append(Fault(row, REASON, f"{called}: not {failed}: {is_now}"))
    if good.all():
        return batch
    keep = pa.array(good)
    faults.sort(key=lambda fault: (fault.row is None, fault.row or 0))
    return replace(
        batch,
        rows=batch.rows[good],
        texts=batch.texts.filter(keep),
        metas=batch.metas.filter(keep),
        faults=faults,
    )


def _same(value: Any, wanted: str) -> bool:
    one, other = _number(value), _number(wanted)
    return one == other if one is not None and other is not None else _text(value) == wanted


def _number(value: Any) -> float | None:
    """The finite number that a value is or says: the words nan and inf are words."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
