"""JSON as it is written where orjson refuses it: numbers out of range, and Python's names for what is no number."""

from __future__ import annotations

import json
import math
from typing import Any


def strict_loads(data: bytes) -> Any:
    """Load JSON that orjson has no type for. Raises ValueError or RecursionError for anything else.

    Integers and floats out of range become text. `NaN`, `Infinity` and `-Infinity`, which Python writes though JSON has no
    such values, become null, as from Parquet.
    """

    def whole(digits: str) -> Any:
        return int(digits) if len(digits) < 4300 else digits

    def real(digits: str) -> Any:
        return float(digits) if math.isfinite(float(digits)) else digits

    value = json.loads(data.decode(), parse_constant=lambda name: None, parse_int=whole, parse_float=real)
    # lone surrogates are not text: UnicodeEncodeError is a ValueError
    json.dumps(value, ensure_ascii=False).encode()
    return value
