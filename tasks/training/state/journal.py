"""The journal: one JSON line a step. A resume cuts it back to the checkpoint, so its steps are strictly increasing.

During training it is `journal.jsonl`, which the parent follows. At the end, columns that do not depend on the clock
go to `journal/journal.parquet`, the others to `clock.parquet`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.training.state.recovery import BAD_STEPS_IN_A_ROW
from tasks.training.state.spikes import WINDOW, Spikes

CLOCK = {
    "seconds": pa.float64(),
    "tokens_per_second": pa.float64(),
    "mfu": pa.float64(),
    "data_wait": pa.float64(),
    "peak_memory": pa.int64(),
}
"""Columns that depend on the clock or the machine. `seconds` is the step's duration, `data_wait` the share of it
spent waiting for data (0 … 1), `peak_memory` is in bytes.
"""


def schema_of(sources: Sequence[str]) -> pa.Schema:
    """The clock-free columns. `tokens` counts the targets that the model has seen so far; losses are in nats per
    target.

    skipped: the loss or the gradient was not finite, and no weight was changed. rolled_back: after this step, the
    last of several skipped ones, training went back to a checkpoint (recovery.py). spike: the loss is unusually
    high (spikes.py).
    """
    return pa.schema(
        [
            ("step", pa.int64()),
            ("tokens", pa.int64()),
            ("loss", pa.float64()),
            *((f"loss/{source}", pa.float64()) for source in sources),
            ("lr", pa.float64()),
            ("grad_norm", pa.float64()),
            ("skipped", pa.bool_()),
            ("rolled_back", pa.bool_()),
            ("spike", pa.bool_()),
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
    """journal.jsonl, open for appending after `mark` (None: from the start). Anything behind the mark is cut off."""

    def __init__(self, path: Path, mark: Mapping[str, Any] | None) -> None:
        self._path = path
        self._file = path.open("r+b" if path.exists() else "w+b")
        length = int(mark["bytes"]) if mark else 0
        self._rows = int(mark["rows"]) if mark else 0
        begin = self._file.read(length)
        self._digest = hashlib.sha256(begin)
        self._file.truncate(length)
        self._file.seek(length)
        lines = begin.splitlines()
        self._recent = deque(map(json.loads, lines[-BAD_STEPS_IN_A_ROW:]), BAD_STEPS_IN_A_ROW)
        self._spikes = Spikes(_last_losses(lines))
        self.losses = [_counted_loss(json.loads(line)) for line in lines]
        """Of the steps before the mark, oldest first; None where a step changed no weight."""

    @property
    def recent(self) -> list[dict[str, Any]]:
        """The last `BAD_STEPS_IN_A_ROW` rows, oldest first."""
        return list(self._recent)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a step's line, and mark it if its loss is a spike. Numbers that are not finite become null."""
        marked = {name: _finite(value) for name, value in row.items()}
        marked["spike"] = self._spikes.is_spike(marked["loss"])
        self._recent.append(marked)
        line = (json.dumps(marked) + "\n").encode()
        self._file.write(line)
        self._digest.update(line)
        self._rows += 1
        self._file.flush()

    def mark(self) -> dict[str, Any]:
        """Name everything so far: bytes, rows, sha256. It is in the file, and durable after `sync`."""
        self._file.flush()
        return {"bytes": self._file.tell(), "rows": self._rows, "sha256": self._digest.hexdigest()}

    def sync(self) -> None:
        """Make everything up to the last `mark` durable. May be called from another thread."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the lines stay."""
        self._file.close()


def _counted_loss(row: Mapping[str, Any]) -> float | None:
    return None if row.get("skipped") else row["loss"]


def _last_losses(lines: Iterable[bytes]) -> list[float]:
    """The last finite losses, oldest first, as many as the window of spikes.py holds."""
    found: list[float] = []
    for line in reversed(list(lines)):
        loss = json.loads(line)["loss"]
        if loss is not None:
            found.append(loss)
        if len(found) == WINDOW:
            break
    return found[::-1]


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
