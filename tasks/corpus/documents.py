"""Documents as the corpus stages exchange them (Parquet, zstd, four columns), and the table of dropped documents.

Every stage that drops documents writes one `dropped.parquet` with the reasons; documents in = out + dropped + held
out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DOCUMENTS = pa.schema(
    [("id", pa.uint64()), ("source", pa.string()), ("text", pa.large_string()), ("meta", pa.large_string())]
)
DROPPED = pa.schema(
    [
        ("id", pa.uint64()),
        ("source", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("value", pa.float64()),
        ("detail", pa.string()),
    ]
)
_ROW_GROUP = 8192
_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def document_ids(source: str, first_ordinal: int, count: int) -> np.ndarray:
    """Ids of `count` rows of a source, starting at `first_ordinal`: uint64, shape (count,), unique within the source.

    The id is SplitMix64's finaliser (Steele, Lea and Flood 2014), a bijection, of the ordinal plus a hash of the
    source name.
    """
    base = int.from_bytes(hashlib.blake2b(source.encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        z = np.arange(first_ordinal, first_ordinal + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z + np.uint64(base)) & _MASK
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def read_documents(paths: Iterable[Path], columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of the given document files, in the order of the paths. Without paths, an empty table."""
    tables = [
        pq.read_table(path, columns=list(columns) if columns else None, partitioning=None) for path in paths
    ]
    if not tables:
        schema = DOCUMENTS if columns is None else pa.schema([DOCUMENTS.field(name) for name in columns])
        return schema.empty_table()
    return pa.concat_tables(tables)


def write_documents(path: Path, table: pa.Table, row_group: int = _ROW_GROUP) -> None:
    """Write documents (columns as in `DOCUMENTS`, any order) as Parquet, zstd; the same table gives the same bytes."""
    _write(path, table.select(DOCUMENTS.names).cast(DOCUMENTS), row_group)


def write_dropped(path: Path, table: pa.Table) -> None:
    """Write the dropped documents (columns as in `DROPPED`). An empty table is written too."""
    _write(path, table.select(DROPPED.names).cast(DROPPED))


def _write(path: Path, table: pa.Table, row_group: int = _ROW_GROUP) -> None:
    path.parent.mkdir(exist_ok=True)  # no parents: an orphaned worker must not recreate a deleted draft
    pq.write_table(
        table.combine_chunks().replace_schema_metadata(None),
        path,
        compression="zstd",
        row_group_size=row_group,
        use_dictionary=["source"] if "text" in table.column_names else ["source", "stage", "reason"],
    )


def dropped_table(
    ids: Any, source: Any, stage: str, reason: Any, value: Any = None, detail: Any = ""
) -> pa.Table:
    """Rows for `dropped.parquet`. `ids`: a sequence of uint64, or None. Every other argument is a scalar or has the
    same length."""
    column = pa.array(ids, pa.uint64())

    def spread(given: Any, kind: pa.DataType) -> pa.Array:
        if isinstance(given, pa.Array | pa.ChunkedArray):
            return given.cast(kind)
        if given is None or isinstance(given, str | int | float):
            return pa.array([given] * len(column), kind)
        return pa.array(given, kind)

    values = [
        spread(given, DROPPED.field(name).type)
        for name, given in (
            ("source", source),
            ("stage", stage),
            ("reason", reason),
            ("value", value),
            ("detail", detail),
        )
    ]
    return pa.table([column, *values], schema=DROPPED)
