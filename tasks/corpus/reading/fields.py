"""The fields of a row that are carried along with its text (`keep_fields` of a source), and those that a file has."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.corpus.reading.kinds import COMPRESSED_SUFFIXES, HEAD_BYTES, TEXT_SUFFIXES
from tasks.corpus.reading.streams import Stream
from tasks.corpus.reading.strict_json import strict_loads

_MOST_NAMES = 1000


class KeptFields:
    """Which fields stay. `seen`: the names that rows had, kept or not; empty where all fields stay."""

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self.names = None if names is None else frozenset(names)
        self.seen: set[str] = set()

    def of(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields of a row that stay, in their order."""
        if self.names is None:
            return fields
        self._see(fields)
        return {name: value for name, value in fields.items() if name in self.names}

    def columns(self, names: list[str], text_field: str) -> list[str] | None:
        """The columns of a table that are read; None: all."""
        if self.names is None:
            return None
        self._see(name for name in names if name != text_field)
        return [name for name in names if name == text_field or name in self.names]

    def _see(self, names: Iterable[str]) -> None:
        if len(self.seen) < _MOST_NAMES:
            self.seen.update(names)


def listed(names: Iterable[str]) -> str:
    """Names for a message: `'a', 'b' and 3 more`."""
    all_names = list(names)
    more = f" and {len(all_names) - 8:,} more" if len(all_names) > 8 else ""
    return (", ".join(repr(name) for name in all_names[:8]) or "none") + more


def fields_of(path: Path) -> tuple[set[str], bool]:
    """The fields that a file's rows have, from its beginning (none: not known), and whether there are no others in it."""
    *_, inner, outer = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    if (inner if outer in COMPRESSED_SUFFIXES else outer) in TEXT_SUFFIXES:
        return {"file"}, True
    with path.open("rb") as file:
        raw = file.read(HEAD_BYTES)
    if raw.startswith(b"PAR1"):
        try:
            return set(pq.read_schema(path).names), True
        except (pa.ArrowException, OSError):
            return set(), False
    head = next(iter(Stream(io.BytesIO(raw))), b"")
    found: set[str] = set()
    for line in head.removeprefix(b"\xef\xbb\xbf").lstrip(b"[ \r\n\t").split(b"\n"):
        row = _row(line.strip().rstrip(b",]"))
        found |= set(row)
    return found, False


def _row(line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            value = strict_loads(line)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}
