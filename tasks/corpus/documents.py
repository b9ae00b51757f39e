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
_BATCH_BYTES = 8_000_000
_BUFFER_BYTES = 1 << 20
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


class TextColumn:
    """A column of text that grows by batches. Memory holds each text once, also while it grows."""

    def __init__(self) -> None:
        self._data = bytearray()  # grows in place, by the page table
        self._ends = [np.zeros(1, np.int64)]

    def add(self, texts: pa.LargeStringArray) -> None:
        """Append texts (no nulls)."""
        if not len(texts):
            return
        _, ends, data = texts.buffers()
        own = np.frombuffer(ends, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        self._ends.append(own[1:] + (len(self._data) - own[0]))
        if data is not None:
            self._data += memoryview(data)[own[0] : own[-1]]

    def array(self) -> pa.LargeStringArray:
        """All of them, as one array that shares this column's memory; nothing can be added after it."""
        ends = np.concatenate(self._ends)
        self._ends = [ends]
        return pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(self._data))


def read_column(path: Path, name: str, keep: np.ndarray | None = None) -> pa.LargeStringArray:
    """The texts of a column (`text` or `meta`) of a file of documents, of the rows where `keep` (bool, one per row) is
    true. Memory holds them once, and a few megabytes of the file."""
    column, row = TextColumn(), 0
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        for batch in file.iter_batches(_batch_rows(file.metadata, name), columns=[name], use_threads=False):
            texts = batch.column(0)
            if keep is not None:
                texts = texts.filter(pa.array(keep[row : row + len(texts)]))
            column.add(texts)
            row += batch.num_rows
    return column.array()


def _batch_rows(metadata: pq.FileMetaData, name: str) -> int:
    """So many rows of a column are about `_BATCH_BYTES`."""
    size = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        size += sum(
            group.column(n).total_uncompressed_size
            for n in range(group.num_columns)
            if group.column(n).path_in_schema == name
        )
    return max(1, min(_ROW_GROUP, _BATCH_BYTES * metadata.num_rows // max(1, size)))


def read_kept(path: Path, keep: np.ndarray, texts: pa.Array | None = None) -> pa.Table:
    """The rows of a file of documents where `keep` is true. `texts`: theirs, if they are not those of the file."""
    rows = read_documents([path], ["id", "source"]).filter(pa.array(keep))
    if texts is None:
        texts = read_column(path, "text", keep)
    columns = [rows["id"], rows["source"], texts.cast(pa.large_string()), read_column(path, "meta", keep)]
    return pa.table(columns, schema=DOCUMENTS)


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
