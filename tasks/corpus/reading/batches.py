"""The output of every reader: batches of rows. Each row is either a document or a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from tasks.corpus.reading import limits
from tasks.corpus.reading.remote import RemoteFile

VISIBLE = r"[^\s\p{Cc}\p{Cf}]"  # a text without any such character is empty to a reader


@dataclass(frozen=True)
class Unit:
    """The part of a source that is read as one piece, and where reading begins. `index`: its place in the source's
    order."""

    index: int
    name: str
    kind: str  # parquet, lines, text or python
    piece: int
    path: Path | RemoteFile
    row: int = 0
    offset: int = 0  # byte (uncompressed) at which row `row` begins; lines only
    files: tuple[str, ...] = ()  # python only: relative to `path`


@dataclass(frozen=True)
class Fault:
    """A row that is set aside; with `row` None, a whole file or row group. `value`: the number of lost rows, if known."""

    row: int | None
    reason: str
    detail: str
    value: float | None = None


@dataclass
class Batch:
    """Rows [first, first + count) of a unit: documents (row number, text, meta) and faults."""

    first: int
    count: int
    rows: np.ndarray
    texts: pa.LargeStringArray
    metas: pa.LargeStringArray
    faults: list[Fault] = field(default_factory=list)
    offsets: np.ndarray | None = None  # byte after each of the `count` rows; lines only


def checked(
    span: tuple[int, int, np.ndarray, np.ndarray | None],
    texts: pa.Array,
    metas: pa.Array,
    faults: list[Fault],
    place: Callable[[int], str],
) -> Batch:
    """A batch in which rows without text, with null bytes in the text, or of more bytes than the limits, become faults.

    `span`: first row, number of rows, the rows to which `texts` and `metas` belong, and the byte after each row.
    """
    first, count, rows, offsets = span
    column = pl.Series(pl.from_arrow(texts))
    missing = column.is_null().to_numpy()
    null_byte = column.str.contains("\x00", literal=True).fill_null(False).to_numpy()
    visible = column.str.contains(VISIBLE).fill_null(False).to_numpy()
    long_text = (column.str.len_bytes() > limits.TEXT_BYTES).fill_null(False).to_numpy()
    long_meta = (pl.Series(pl.from_arrow(metas)).str.len_bytes() > limits.LINE_BYTES).to_numpy()
    good = visible & ~null_byte & ~missing & ~long_text & ~long_meta
    if not good.all():
        for position in np.flatnonzero(~good):
            row = int(rows[position])
            if missing[position]:
                reason, message = "missing_text", "the text is null"
            elif null_byte[position]:
                reason, message = "null_byte", "the text holds U+0000"
            elif long_text[position]:
                reason, message = "text_too_long", f"the text has more than {limits.TEXT_BYTES:,} bytes"
            elif long_meta[position]:
                reason, message = (
                    "row_too_long",
                    f"the other fields take more than {limits.LINE_BYTES:,} bytes",
                )
            else:
                reason, message = "empty_text", "the text has no visible character"
            faults.append(Fault(row, reason, f"{place(row)}: {message}"))
        keep = pa.array(good)
        rows, texts, metas = rows[good], texts.filter(keep), metas.filter(keep)
        faults.sort(key=lambda fault: (fault.row is None, fault.row or 0))
    return Batch(first, count, rows, texts, metas, faults, offsets)


def whole_fault(fault: Fault, row: int = 0) -> Batch:
    """A batch without rows, for a fault of a whole file."""
    none = pa.array([], pa.large_string())
    return Batch(row, 0, np.empty(0, np.int64), none, none, [fault])
