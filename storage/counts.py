"""Counts in the form that people write and read: `400M`, `64K`, `1B` (decimal units, also for bytes).

There are two written forms. `count_text` is exact, for names and configurations; `parse_count` reads it back.
`rounded_count` has three figures, for prose, tables and axes.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_COUNT = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)(?:[eE]\+?([0-9]+))?\s*([KMBG]?)B?\s*$", re.IGNORECASE)
_SCALE = {"": 1, "K": 1_000, "M": 1_000_000, "B": 1_000_000_000, "G": 1_000_000_000}
_LARGEST = 10**18
"""More than any corpus, disk or model holds. The limit keeps `1e400` from becoming an integer of 400 digits."""
_UNITS = (("B", 10**9, 4), ("M", 10**6, 4), ("K", 10**3, 2))
"""Unit, its size, and the most decimals that `count_text` writes with it: 524.288K would be no better than 524288."""


def parse_count(value: Any) -> Any:
    """Read `400M`, `2.5K`, `1B`, `64MB` or a plain number in text as an exact integer. Other types are returned unchanged.

    Raises ValueError if a text is not a count or not a whole number, for true and false, and for what is beyond 10^18.
    """
    if isinstance(value, bool):
        raise ValueError(f"must be a count, not {str(value).lower()}")
    if isinstance(value, int | float) and abs(value) > _LARGEST:
        raise ValueError(f"is beyond {_LARGEST:.0e}")
    if not isinstance(value, str):
        return value
    match = _COUNT.match(value)
    if not match:
        raise ValueError(f"{value[:40]!r} is not a count; write for instance 500000, 500K, 400M or 1B")
    digits, exponent, unit = match[1].replace("_", ""), match[2] or "0", match[3].upper()
    if len(digits) > 40 or len(exponent) > 4:
        raise ValueError(f"{value[:40]!r} is beyond {_LARGEST:.0e}")
    exact = Decimal(digits).scaleb(int(exponent)) * _SCALE[unit]
    if exact > _LARGEST:
        raise ValueError(f"{value[:40]!r} is beyond {_LARGEST:.0e}")
    if exact != exact.to_integral_value():
        raise ValueError(f"{value[:40]!r} is not a whole number")
    return int(exact)


def count_text(count: int) -> str:
    """The exact text of a count: `400M`, `1.5B`, `1.0004M`, `524288`. Different counts have different texts."""
    for unit, size, decimals in _UNITS:
        if count >= size and count % (size // 10**decimals) == 0:
            whole, rest = divmod(count, size)
            digits = len(str(size)) - 1
            return f"{whole}.{rest:0{digits}}".rstrip("0").rstrip(".") + unit
    return str(count)


def rounded_count(count: float) -> str:
    """A count with three figures, for reading: `1.23M`, `400K`, `1B` (also for 999,999,999), `12B`, `1,500B`, `7`."""
    if count < 0:
        return f"-{rounded_count(-count)}"
    places = ((unit, size) for unit, size, _ in _UNITS)
    for unit, size in places:
        if round_to(count, 3) >= size:
            return f"{_plain(round_to(count, 3) / size)}{unit}"
    return _plain(round(count))


def round_to(value: float, figures: int) -> float:
    """Round a number to this many significant figures."""
    return float(f"{value:.{figures - 1}e}")


def _plain(value: float) -> str:
    """Three figures without an exponent; thousands with a comma."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
