"""Read a row group of a Parquet file in batches; read a file's footer.

Parquet does not guarantee that strings are valid UTF-8: they are validated here. polars converts the other columns to
JSON, column by column. Only types without a JSON form (binary) and damaged batches are processed row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.corpus.reading.batches import Batch, Fault, Unit, checked, whole_fault
from tasks.corpus.reading.fields import KeptFields
from tasks.corpus.reading.parquet_pages import TooLarge, safe_rows

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 8192
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Footer:
    """Per row group: its rows, and the uncompressed bytes of the text column (0 if there is none)."""

    rows: tuple[int, ...]
    text_bytes: tuple[int, ...]


def read_footer(path: Path, text_field: str) -> Footer | None:
    """The content of the footer, or None if it cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    except (pa.ArrowException, OSError):
        return None
    return Footer(tuple(g.num_rows for g in groups), tuple(_text_bytes(g, text_field) for g in groups))


def _text_bytes(group: Any, text_field: str) -> int:
    columns = (group.column(index) for index in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_field)


def read_parquet(unit: Unit, text_field: str, kept: KeptFields) -> Iterator[Batch]:
    """The rows of one row group from `unit.row` on. A damaged group gives the rows before the damage, and one fault."""
    assert isinstance(unit.path, Path)
    if unit.path.stat().st_size == 0:
        yield whole_fault(Fault(None, "empty_file", f"{unit.name}: the file has no bytes"))
        return
    try:
        file = pq.ParquetFile(  # pre-buffering would hold the whole row group
            unit.path, buffer_size=_BUFFER_BYTES, page_checksum_verification=True, pre_buffer=False
        )
    except (pa.ArrowException, OSError) as error:
        message = f"{unit.name}: no readable Parquet footer ({_first_line(error)})"
        yield whole_fault(Fault(None, _reason(unit.path), message))
        return
    with file:
        if unit.piece < file.num_row_groups:
            yield from _read_group(unit, file, text_field, kept)


def _read_group(unit: Unit, file: pq.ParquetFile, text_field: str, kept: KeptFields) -> Iterator[Batch]:
    assert isinstance(unit.path, Path)
    where = f"{unit.name}: row group {unit.piece}"
    group = file.metadata.row_group(unit.piece)
    if not group.num_rows:
        return
    if (refusal := _unusable(file.schema_arrow, text_field)) is not None:
        yield whole_fault(Fault(None, refusal[0], f"{where}: {refusal[1]}", float(group.num_rows)))
        return
    row = 0
    columns = kept.columns(file.schema_arrow.names, text_field)
    leaves = [index for index in range(group.num_columns) if _is_read(group, index, columns)]
    size = sum(group.column(index).total_uncompressed_size for index in leaves)
    rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES * group.num_rows // max(1, size)))
    try:
        rows = safe_rows(unit.path, file, unit.piece, rows, leaves)
    except TooLarge as error:
        yield whole_fault(Fault(None, error.reason, f"{where}: {error}", float(group.num_rows)))
        return
    except (pa.ArrowException, OSError):
        pass  # damage, which is met again below and told where it is
    batches = file.iter_batches(rows, row_groups=[unit.piece], columns=columns, use_threads=False)
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                return
            done = row + batch.num_rows
            skip = max(0, unit.row - row)
            made = (
                _convert(batch.slice(skip), row + skip, text_field, where) if skip < batch.num_rows else None
            )
        except (pa.ArrowException, OSError) as error:
            lost = group.num_rows - max(row, unit.row)
            detail = (
                f"{where}: damaged from row {max(row, unit.row)} on, {lost} rows lost ({_first_line(error)})"
            )
            yield whole_fault(Fault(None, "unreadable_file", detail, float(lost)), max(row, unit.row))
            return
        if made is not None:
            yield made
        row = done


def _is_read(group: Any, index: int, columns: list[str] | None) -> bool:
    """Whether a leaf of the schema is in one of the columns (None: all)."""
    path = group.column(index).path_in_schema
    return columns is None or any(path == name or path.startswith(f"{name}.") for name in columns)


def _unusable(schema: pa.Schema, text_field: str) -> tuple[str, str] | None:
    """Why no row of such a file can be a document: (reason, message). None if rows can."""
    index = schema.get_field_index(text_field)
    if index < 0:
        return (
            "no_text_column",
            f"no column {text_field!r}; it has {', '.join(schema.names[:12])} (set text_field)",
        )
    kind = schema.field(index).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if _is_text(plain) or _is_binary(plain):
        return None
    return "text_not_string", f"the column {text_field!r} is {kind}, not text"


def _convert(batch: pa.RecordBatch, first: int, text_field: str, where: str) -> Batch:
    table = _plain_columns(pa.table(batch))
    rows = np.arange(first, first + table.num_rows, dtype=np.int64)
    count, faults = table.num_rows, list[Fault]()
    try:
        texts = _valid_texts(table, text_field)
    except pa.ArrowInvalid:
        good = np.array([_is_valid(table, n, text_field) for n in range(count)])
        message = "bytes that are no UTF-8"
        faults = [Fault(int(r), "invalid_utf8", f"{where}, row {r}: {message}") for r in rows[~good]]
        table, rows = table.filter(pa.array(good)), rows[good]
        texts = _valid_texts(table, text_field)
    metas = _metas(table.drop_columns([text_field]))
    span = (first, count, rows, None)
    return checked(span, texts, metas, faults, lambda row: f"{where}, row {row}")


def _plain_columns(table: pa.Table) -> pa.Table:
    """The table with dictionary columns decoded, so that each row is judged by its own value."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
    return table


def _valid_texts(table: pa.Table, text_field: str) -> pa.Array:
    """The texts as large_string. Raises ArrowInvalid if they, or the strings of another column, are not valid UTF-8."""
    table.validate(full=True)
    column = table.column(text_field).cast(pa.large_string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_valid(table: pa.Table, row: int, text_field: str) -> bool:
    try:
        _valid_texts(table.slice(row, 1).take([0]), text_field)
    except pa.ArrowInvalid:
        return False
    return True


def _metas(table: pa.Table) -> pa.Array:
    """Each row's other fields as one JSON object, in the order of the columns. NaN and infinity become null."""
    if not table.num_columns:
        return pa.array(["{}"] * table.num_rows, pa.large_string())
    if all(map(_has_json, table.schema.types)):
        try:
            frame = pl.DataFrame(pl.from_arrow(table))
            encoded = frame.select(pl.struct(pl.all()).struct.json_encode()).to_series()
            return encoded.to_arrow().cast(pa.large_string())
        except pl.exceptions.PolarsError:
            pass  # a rare type or time zone: fall back to row by row
    columns = [_values(column) for column in table.columns]
    rows = (dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True))
    return pa.array((orjson.dumps(row, default=_text_of).decode() for row in rows), pa.large_string())


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # a time out of the range of Python's types
        values = column.cast(pa.string()).to_pylist()
    return values


def _text_of(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return list(value) if isinstance(value, set | tuple) else str(value)


def _has_json(kind: pa.DataType) -> bool:
    """Whether polars can write values of this type as JSON. For some other types it would panic."""
    types = pa.types
    if types.is_nested(kind) and not types.is_union(kind):
        return all(_has_json(kind.field(index).type) for index in range(kind.num_fields))
    plain = (
        types.is_integer,
        types.is_floating,
        types.is_boolean,
        types.is_temporal,
        types.is_decimal128,
        types.is_null,
    )
    return _is_text(kind) or (not types.is_interval(kind) and any(is_kind(kind) for is_kind in plain))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _reason(path: Path) -> str:
    with path.open("rb") as file:
        return "truncated_file" if file.read(4) == b"PAR1" else "unreadable_file"


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
