"""The journal: one JSON line a step, cut back to the checkpoint on resume, so that its steps rise strictly.

While training it is `journal.jsonl`, which the parent follows. At the end the columns that do not depend on the
clock become `journal/journal.parquet`, the others `clock.parquet`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CLOCK = {
    "seconds": pa.float64(),
    "tokens_per_second": pa.float64(),
    "mfu": pa.float64(),
    "peak_memory": pa.int64(),
}
"""Columns that depend on the clock or the machine: seconds of the step, bytes of memory."""


def schema_of(sources: Sequence[str]) -> pa.Schema:
    """The clock-free columns; `tokens` are targets seen by the model so far, losses are nats a target."""
    return pa.schema(
        [
            ("step", pa.int64()),
            ("tokens", pa.int64()),
            ("loss", pa.float64()),
            *((f"loss/{source}", pa.float64()) for source in sources),
            ("lr", pa.float64()),
            ("grad_norm", pa.float64()),
            ("skipped", pa.bool_()),
        ]
    )


def journal_holds(path: Path, mark: Mapping[str, Any]) -> bool:
    """Whether the file begins with exactly what `mark` names."""
    length = int(mark["bytes"])
    try:
        with path.open("rb") as file:
            begin = file.read(length)
    except FileNotFoundError:
        begin = b""
    return len(begin) == length and hashlib.sha256(begin).hexdigest() == mark["sha256"]


class Journal:
    """journal.jsonl, open for appending after `mark` (None: from the start); what is behind it is cut away."""

    def __init__(self, path: Path, mark: Mapping[str, Any] | None, flush_every: int = 1) -> None:
        self._path = path
        self._file = path.open("r+b" if path.exists() else "w+b")
        length = int(mark["bytes"]) if mark else 0
        self._rows = int(mark["rows"]) if mark else 0
        self._digest = hashlib.sha256(self._file.read(length))
        self._file.truncate(length)
        self._file.seek(length)
        self._flush_every = flush_every

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a step's line; numbers that are not finite become null."""
        line = (json.dumps({name: _finite(value) for name, value in row.items()}) + "\n").encode()
        self._file.write(line)
        self._digest.update(line)
        self._rows += 1
        if self._rows % self._flush_every == 0:
            self._file.flush()

    def mark(self) -> dict[str, Any]:
        """Make everything so far durable, and name it: bytes, rows, sha256."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell(), "rows": self._rows, "sha256": self._digest.hexdigest()}

    def close(self) -> None:
        """Close the file; the lines stay."""
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All lines, oldest first."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def write_tables(lines: list[dict[str, Any]], sources: Sequence[str], journal: Path, clock: Path) -> None:
    """Write the clock-free columns to `journal` and the others, with the step, to `clock` (Parquet)."""
    schema = schema_of(sources)
    _write(journal, lines, schema)
    _write(clock, lines, pa.schema([("step", pa.int64()), *CLOCK.items()]))


def _write(path: Path, lines: list[dict[str, Any]], schema: pa.Schema) -> None:
    columns = {
        name: pa.array([line.get(name) for line in lines], schema.field(name).type) for name in schema.names
    }
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd", row_group_size=1 << 20)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
