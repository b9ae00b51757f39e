"""Read one unit of a source: a row group of a Parquet file, a span of a JSON-lines file, a text file, Python docs.

`read_unit` yields batches. Each row is either a document or a fault; a problem of a whole file (or row group) is one
fault without a row number. Batches are cut by bytes, so memory stays flat for any file. Where they are cut only
affects where the caller may stop.

Compression is detected from a file's first bytes (gzip, zstd), not from its name.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from tasks.corpus.reading import limits, python_docs
from tasks.corpus.reading.batches import Batch, Fault, Unit, checked, whole_fault
from tasks.corpus.reading.extracted import KIND as EXTRACTED
from tasks.corpus.reading.extracted import read_extracted
from tasks.corpus.reading.fields import KeptFields
from tasks.corpus.reading.json_array import Broken, elements_of
from tasks.corpus.reading.limits import megabytes
from tasks.corpus.reading.parquet import read_parquet
from tasks.corpus.reading.streams import LongLine, Stream, blocks, line_span, opened
from tasks.corpus.reading.strict_json import strict_loads

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_STRUCTURE = re.compile(rb"[{\[,]")
_BOM = b"\xef\xbb\xbf"
_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def read_unit(unit: Unit, text_field: str, kept: KeptFields | None = None) -> Iterator[Batch]:
    """The rows of a unit from `unit.row` on, in order. Unreadable data become faults; OSError is not caught.

    `kept`: the other fields that are carried along (None: all).
    """
    kept = kept or KeptFields()
    if unit.kind == "parquet":
        return read_parquet(unit, text_field, kept)
    if unit.kind == "text":
        return _read_text(unit, kept)
    if unit.kind == "python":
        return _read_python(unit, kept)
    if unit.kind == EXTRACTED:
        return read_extracted(unit, kept)
    return _read_lines(unit, text_field, kept)


# ── JSON lines ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_lines(unit: Unit, text_field: str, kept: KeptFields) -> Iterator[Batch]:
    with opened(unit.path) as stream:
        if stream.empty:
            yield whole_fault(Fault(None, "empty_file", f"{unit.name}: the file has no bytes"))
            return
        if stream.utf16:
            yield whole_fault(
                Fault(None, "invalid_utf8", f"{unit.name}: UTF-16 (byte order mark), not UTF-8")
            )
            return
        if stream.array and unit.piece == 0:
            elements = elements_of(unit.path)
            if elements is not None:
                yield from _array_batches(unit, elements, text_field, kept)
                return
        start, end = line_span(unit.path, unit.piece) if stream.divisible else (0, None)
        start = max(start, unit.offset)
        parser = _LineParser(unit, text_field, kept, line=1 if start == 0 else None, offset=start)
        yield from _line_batches(parser, stream, start, end)


def _line_batches(parser: _LineParser, stream: Stream, start: int, end: int | None) -> Iterator[Batch]:
    stream.read_from(start, end)
    for block in blocks(stream):
        cut = stream.fault is not None
        if isinstance(block, LongLine):
            batches = parser.pass_over(block, cut=cut)
        else:
            batches = parser.parse(block, cut=cut)
        yield from (batch for batch in batches if batch.count)
    if stream.fault:
        reason, message = stream.fault
        before = f"{parser.row} rows before it are kept" if parser.row else "nothing before it could be read"
        yield whole_fault(Fault(None, reason, f"{parser.unit.name}: {message}; {before}"), parser.row)


class _LineParser:
    """Turns blocks of whole lines into batches; counts rows, lines and bytes.

    It is a Python loop over lines: orjson spends its time inside each line (over 500 MB/s), and columnar JSON readers
    can neither set single lines aside nor keep the other fields unchanged.
    """

    def __init__(
        self, unit: Unit, text_field: str, kept: KeptFields, *, line: int | None, offset: int
    ) -> None:
        self.unit, self.text_field, self.kept = unit, text_field, kept
        self.line, self.row, self.offset = line, unit.row, offset

    def parse(self, block: bytes, *, cut: bool) -> Iterator[Batch]:
        """The rows of one block. `cut`: the file broke off, so an unfinished last line is not a row."""
        if self.offset == 0 and block.startswith(_BOM):
            block, self.offset = block[3:], 3
        if block.isspace():  # millions of empty lines take no time
            self.line = None if self.line is None else self.line + block.count(b"\n")
            self.offset += len(block)
            return
        lines = block.split(b"\n")
        unfinished = len(lines) - 1  # the text after the last newline: empty except at the end of a file
        for begin in range(0, len(lines), limits.BATCH_ROWS):
            some = lines[begin : begin + limits.BATCH_ROWS]
            yield self._batch(some, unfinished - begin, cut)

    def _batch(self, lines: list[bytes], unfinished: int, cut: bool) -> Batch:
        first, faults = self.row, list[Fault]()
        rows, texts, metas = list[int](), list[str | None](), list[str]()
        marks, offsets = (
            list[int](),
            list[int](),
        )  # for each row: its line or first byte, and the byte after it
        for number, line in enumerate(lines):
            mark = self.offset if self.line is None else self.line
            self.offset += len(line) + (number != unfinished)
            if self.line is not None and number != unfinished:
                self.line += 1
            if not line or line.isspace():
                continue
            record = record_of_line(line, self.text_field, self.kept)
            if isinstance(record, Refused):
                if cut and number == unfinished:
                    break
                faults.append(Fault(self.row, record.reason, f"{self._place(mark)}: {record.message}"))
            else:
                rows.append(self.row)
                texts.append(record.text)
                metas.append(record.meta)
            marks.append(mark)
            offsets.append(self.offset)
            self.row += 1
        return checked(
            (first, self.row - first, np.array(rows, np.int64), np.array(offsets, np.int64)),
            pa.array(texts, pa.large_string()),
            pa.array(metas, pa.large_string()),
            faults,
            lambda row: self._place(marks[row - first]),
        )

    def pass_over(self, line: LongLine, *, cut: bool) -> Iterator[Batch]:
        """The row of a line that was not kept, because it is too long."""
        mark, row = self.offset if self.line is None else self.line, self.row
        self.offset += line.size + line.ended
        if self.line is not None:
            self.line += line.ended
        if cut and not line.ended:
            return
        self.row += 1
        refused = _too_long(line.size)
        fault = Fault(row, refused.reason, f"{self._place(mark)}: {refused.message}")
        none = pa.array([], pa.large_string())
        yield Batch(row, 1, np.empty(0, np.int64), none, none, [fault], np.array([self.offset], np.int64))

    def _place(self, mark: int) -> str:
        return f"{self.unit.name}:{mark}" if self.line is not None else f"{self.unit.name}: byte {mark}"


@dataclass(frozen=True)
class JsonRow:
    """A row of JSON: its text (None if null), and its other fields as JSON."""

    text: str | None
    meta: str


@dataclass(frozen=True)
class Refused:
    """Why a row of JSON is not a document."""

    reason: str
    message: str


def record_of_line(line: bytes, text_field: str, kept: KeptFields) -> JsonRow | Refused:
    """Parse one line of JSON. If orjson rejects it, the standard library parses it again, strictly."""
    if len(line) > limits.PLAIN_JSON_BYTES and (refused := _too_much(line)) is not None:
        return refused
    try:
        value = orjson.loads(line)
    except (orjson.JSONDecodeError, TypeError) as error:
        try:
            value = strict_loads(line)
        except (ValueError, RecursionError):
            return _refusal(line, str(error))
    return _record(value, text_field, kept)


def _too_much(line: bytes) -> Refused | None:
    """Why a long line is not parsed: its length, or the number of its values."""
    if len(line) > limits.LINE_BYTES:
        return _too_long(len(line))
    values = sum(len(_STRUCTURE.findall(between)) for between in _STRING.split(line))
    if values > limits.JSON_VALUES:
        return Refused("too_many_values", f"more than {limits.JSON_VALUES:,} values in one row")
    return None


def _too_long(size: int) -> Refused:
    return Refused("line_too_long", f"{size:,} bytes in one row, and at most {limits.LINE_BYTES:,} are read")


def _refusal(line: bytes, message: str) -> Refused:
    if b"\0" in line:
        return Refused("null_byte", "the line holds null bytes")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return Refused("invalid_utf8", f"byte {line[error.start]:#04x} at {error.start}: {error.reason}")
    return Refused("malformed_json", message)


def _record(value: Any, text_field: str, kept: KeptFields) -> JsonRow | Refused:
    if type(value) is not dict:
        return Refused("not_an_object", f"{_JSON_NAMES[type(value)]}, not an object")
    if text_field not in value:
        return Refused(
            "missing_text", f"no field {text_field!r}; it has {', '.join(list(value)[:8]) or 'none'}"
        )
    text = value.pop(text_field)
    if text is not None and type(text) is not str:
        return Refused("text_not_string", f"{text_field!r} is {_JSON_NAMES[type(text)]}")
    value = kept.of(value)
    try:
        return JsonRow(text, orjson.dumps(value).decode())
    except TypeError:  # nested too deeply for orjson, or an integer beyond 64 bits
        try:
            return JsonRow(text, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        except RecursionError:
            return Refused("malformed_json", "nested too deep")


def _array_batches(
    unit: Unit, elements: Iterator[Any | LongLine | Broken], text_field: str, kept: KeptFields
) -> Iterator[Batch]:
    first, chunk, size = unit.row, list[JsonRow | Refused](), 0
    broken: Broken | None = None
    for element in itertools.islice(elements, unit.row, None):
        if isinstance(element, Broken):
            broken = element
        elif isinstance(element, LongLine):
            chunk.append(_too_long(element.size))
        elif isinstance(element, bytes):
            chunk.append(record_of_line(element, text_field, kept))
            size += len(element)
        else:
            chunk.append(_record(element, text_field, kept))
        if len(chunk) == 1024 or size > limits.ARRAY_BYTES:
            yield _array_batch(unit, first, chunk)
            first, chunk, size = first + len(chunk), [], 0
    if chunk:
        yield _array_batch(unit, first, chunk)
    if broken:
        row = first + len(chunk)
        detail = f"{unit.name}: {broken.message}; {row} elements before it are kept"
        yield whole_fault(Fault(None, broken.reason, detail), row)


def _array_batch(unit: Unit, first: int, records: list[JsonRow | Refused]) -> Batch:
    good = [(first + n, r) for n, r in enumerate(records) if isinstance(r, JsonRow)]
    faults = [
        Fault(first + n, r.reason, f"{unit.name}: element {first + n}: {r.message}")
        for n, r in enumerate(records)
        if isinstance(r, Refused)
    ]
    return checked(
        (first, len(records), np.array([row for row, _ in good], np.int64), None),
        pa.array([record.text for _, record in good], pa.large_string()),
        pa.array([record.meta for _, record in good], pa.large_string()),
        faults,
        lambda row: f"{unit.name}: element {row}",
    )


# ── Text files and Python documentation ──────────────────────────────────────────────────────────────────────────────


def _read_text(unit: Unit, kept: KeptFields) -> Iterator[Batch]:
    """A text file is one document."""
    parts, size = list[bytes](), 0
    with opened(unit.path) as stream:
        for chunk in stream:
            parts.append(chunk)
            size += len(chunk)
            if size > limits.TEXT_BYTES:
                most = megabytes(limits.TEXT_BYTES)
                message = f"{unit.name}: a text file is one document, of at most {most}; split it, or make JSON lines of it"
                yield whole_fault(Fault(None, "text_too_long", message))
                return
    data = b"".join(parts).removeprefix(_BOM)
    del parts
    if stream.empty:
        yield whole_fault(Fault(None, "empty_file", f"{unit.name}: the file has no bytes"))
        return
    if stream.fault:
        yield whole_fault(Fault(None, stream.fault[0], f"{unit.name}: {stream.fault[1]}"))
        return
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        what = "UTF-16 (byte order mark)" if stream.utf16 else f"{error.reason} at byte {error.start}"
        yield whole_fault(Fault(None, "invalid_utf8", f"{unit.name}: {what}; convert the file to UTF-8"))
        return
    meta = orjson.dumps(kept.of({"file": unit.name})).decode()
    yield from _documents(unit, [(text, meta)])


def _read_python(unit: Unit, kept: KeptFields) -> Iterator[Batch]:
    assert isinstance(unit.path, Path)
    found = python_docs.documents(unit.path, unit.files)
    yield from _documents(unit, [(text, orjson.dumps(kept.of(meta)).decode()) for text, meta in found])


def _documents(unit: Unit, pairs: list[tuple[str, str]]) -> Iterator[Batch]:
    pairs = pairs[unit.row :]
    if pairs:
        rows = np.arange(unit.row, unit.row + len(pairs), dtype=np.int64)
        yield checked(
            (unit.row, len(pairs), rows, None),
            pa.array([text for text, _ in pairs], pa.large_string()),
            pa.array([meta for _, meta in pairs], pa.large_string()),
            [],
            lambda row: unit.name if unit.kind == "text" else f"{unit.name}: document {row}",
        )
