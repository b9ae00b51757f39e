"""What a row group of a Parquet file would unpack to, from the headers of its pages, before any page is unpacked.

A footer may say anything, and a few bytes of a page can stand for gigabytes: by compression, by a dictionary whose one
long value is repeated in every row, by prefixes (DELTA_BYTE_ARRAY), or by runs of a list's values. The reader allocates
what a page's header says, so the headers are what can be trusted. They are Thrift's compact protocol:
https://parquet.apache.org/docs/file-format/data-pages/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.corpus.reading import limits
from tasks.corpus.reading.limits import megabytes

_HEADER_BYTES = 1 << 12
_LARGEST_HEADER = 1 << 24
_DELTA_BYTE_ARRAY = 7
_BYTES = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")


class TooLarge(Exception):
    """A row group that is not read. The text says what of it would take too much memory."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Page:
    """What a page's header says."""

    dictionary: bool
    packed: int
    unpacked: int
    values: int
    encoding: int


def safe_rows(
    path: Path, file: pq.ParquetFile, piece: int, wanted: int, leaves: Sequence[int] | None = None
) -> int:
    """The number of rows, at most `wanted`, that can be read at once whichever they are. Raises TooLarge.

    `leaves`: the numbers of the columns that are read; None: all.
    """
    group = file.metadata.row_group(piece)
    with path.open("rb") as raw:
        columns = [
            _column(path, raw, file, piece, index, wanted)
            for index in (range(group.num_columns) if leaves is None else leaves)
        ]
    most = max(limits.ENDLESS_BYTES, limits.EXPANSION * sum(column.unpacked for column in columns))
    for column in columns:
        if column.repeated * group.num_rows > most:
            _check_total(path, piece, column.name, wanted, most)
    each = sum(max(column.densest, column.repeated) for column in columns)
    return max(1, min(wanted, limits.BATCH_BYTES // max(1, each)))


@dataclass(frozen=True)
class _Column:
    """A column of a row group. In bytes: what its pages unpack to, the mean value of the page with the largest values,
    and the largest value that may be repeated in any row (0: none is)."""

    name: str
    unpacked: int
    densest: int
    repeated: int


def _column(path: Path, raw: BinaryIO, file: pq.ParquetFile, piece: int, index: int, rows: int) -> _Column:
    chunk, leaf = file.metadata.row_group(piece).column(index), file.schema.column(index)
    name = chunk.path_in_schema
    densest = values = unpacked = repeated = 0
    for page in pages(raw, _begin(chunk), chunk.total_compressed_size):
        too_dense = page.unpacked > limits.LINE_BYTES and page.unpacked > limits.PAGE_EXPANSION * page.packed
        if page.unpacked > limits.PAGE_BYTES or too_dense:
            sizes = f"{page.packed:,} bytes to {megabytes(page.unpacked)}"
            raise TooLarge("expands_too_much", f"a page of column {name!r} unpacks from {sizes}")
        unpacked += page.unpacked
        if page.dictionary or page.encoding == _DELTA_BYTE_ARRAY:
            repeated = max(repeated, page.unpacked)
        if not page.dictionary:
            values += page.values
            densest = max(densest, page.unpacked // max(1, page.values))
    nested = leaf.max_repetition_level > 0
    if nested and values > max(limits.NESTED_VALUES, 8 * unpacked):
        message = f"column {name!r} unpacks from {unpacked:,} bytes to {values:,} values"
        raise TooLarge("too_many_values", message)
    if leaf.physical_type not in _BYTES:
        repeated = 0
    elif nested:
        if repeated * values > limits.BATCH_BYTES:
            _check_nested(path, piece, name, rows)
        repeated = 0
    elif chunk.has_dictionary_page and repeated * rows > limits.BATCH_BYTES:
        repeated = min(repeated, _longest(path, piece, name))
    if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY":
        densest = max(densest, int(leaf.length))  # which a null takes too
    return _Column(name, unpacked, densest, repeated)


def _check_total(path: Path, piece: int, name: str, rows: int, most: int) -> None:
    """Raise TooLarge if the values of a column, its dictionary spelt out, take more than `most` bytes."""
    total = 0
    with _by_dictionary(path, name) as file:
        for batch in file.iter_batches(rows, row_groups=[piece], columns=[name], use_threads=False):
            total += sum(_lengths(found).total for found in _dictionaries(batch))
            if total > most:
                message = f"column {name!r} repeats its values to more than {megabytes(most)}"
                raise TooLarge("expands_too_much", message)


def _longest(path: Path, piece: int, name: str) -> int:
    """The longest value of a column's dictionary, in bytes."""
    with _by_dictionary(path, name) as file:
        for batch in file.iter_batches(1, row_groups=[piece], columns=[name], use_threads=False):
            return max((_lengths(found).max for found in _dictionaries(batch)), default=0)
    return 0


def _check_nested(path: Path, piece: int, name: str, rows: int) -> None:
    """Raise TooLarge if the strings of a nested column take too much memory once its dictionary is spelt out."""
    with _by_dictionary(path, name) as file:
        for batch in file.iter_batches(rows, row_groups=[piece], columns=[name], use_threads=False):
            size = sum(_lengths(found).total for found in _dictionaries(batch))
            if size > 4 * limits.BATCH_BYTES:
                message = f"{batch.num_rows:,} rows of column {name!r} unpack to {megabytes(size)}"
                raise TooLarge("expands_too_much", message)


def _by_dictionary(path: Path, name: str) -> pq.ParquetFile:
    return pq.ParquetFile(path, read_dictionary=[name], pre_buffer=False, buffer_size=1 << 20)


@dataclass(frozen=True)
class _Lengths:
    max: int
    total: int


def _lengths(array: pa.DictionaryArray) -> _Lengths:
    lengths = pc.binary_length(array.dictionary)
    total = pc.sum(lengths.take(array.indices)).as_py() if len(array) else 0
    return _Lengths(int(pc.max(lengths).as_py() or 0), int(total or 0))


def _dictionaries(batch: pa.RecordBatch) -> Iterator[pa.DictionaryArray]:
    """The dictionary arrays of a batch, in lists and structures too."""
    waiting: list[Any] = list(batch.columns)
    while waiting:
        array = waiting.pop()
        if pa.types.is_dictionary(array.type):
            yield array
        elif pa.types.is_struct(array.type):
            waiting += array.flatten()
        elif pa.types.is_map(array.type):
            waiting += [array.keys, array.items]
        elif hasattr(array, "flatten") and pa.types.is_nested(array.type):
            waiting.append(array.flatten())


def _begin(chunk: Any) -> int:
    first = int(chunk.data_page_offset)
    return min(first, int(chunk.dictionary_page_offset)) if chunk.has_dictionary_page else first


# ── Page headers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def pages(file: BinaryIO, begin: int, size: int) -> Iterator[Page]:
    """The pages of a column chunk. Ends early at a header that cannot be read, where the reader too finds damage."""
    at, end = begin, begin + size
    while at < end:
        read = _header(file, at, end)
        if read is None:
            return
        fields, length = read
        data = fields.get(5) or fields.get(8) or {}
        dictionary = fields.get(7) or {}
        packed, unpacked = fields.get(3, 0), fields.get(2, 0)
        if not (isinstance(packed, int) and isinstance(unpacked, int)) or packed < 0:
            return
        values = data.get(1, 0)
        yield Page(bool(dictionary), packed, unpacked, values, data.get(2 if fields.get(5) else 4, 0))
        at += length + packed


def _header(file: BinaryIO, at: int, end: int) -> tuple[dict[int, Any], int] | None:
    size = _HEADER_BYTES
    while True:
        file.seek(at)
        data = file.read(min(size, end - at))
        try:
            return _structure(data, 0)
        except (IndexError, ValueError, RecursionError):
            if size >= min(end - at, _LARGEST_HEADER):
                return None
            size *= 16


def _structure(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A structure's fields by number, and the place after it."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        sign, at = data[at], at + 1
        if sign == 0:
            return fields, at
        if sign >> 4:
            number += sign >> 4
        else:
            number, at = _integer(data, at)
        fields[number], at = _value(data, at, sign & 15)


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):  # the kind is the value
        return kind == 1, at
    if kind in (3, 7):
        return None, at + (1 if kind == 3 else 8)
    if kind in (4, 5, 6):
        return _integer(data, at)
    if kind == 8:
        size, at = _unsigned(data, at)
        if at + size > len(data):
            raise IndexError
        return None, at + size
    if kind in (9, 10):
        return _list(data, at)
    if kind == 12:
        return _structure(data, at)
    raise ValueError(f"no kind {kind}")  # maps, which no page header has


def _list(data: bytes, at: int) -> tuple[None, int]:
    sign, at = data[at], at + 1
    count = sign >> 4
    if count == 15:
        count, at = _unsigned(data, at)
    for _ in range(count):
        if at >= len(data):
            raise IndexError
        _, at = (None, at + 1) if sign & 15 in (1, 2) else _value(data, at, sign & 15)
    return None, at


def _unsigned(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("no number")


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _unsigned(data, at)
    return (value >> 1) ^ -(value & 1), at
