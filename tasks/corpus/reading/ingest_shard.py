"""One shard of a slice, in a worker: units of a source become files of documents and one file of rows set aside.

Memory holds about one piece, for any size of unit. Where a file of documents ends depends on its texts alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import OnwardError, StageFailed
from tasks.corpus.documents import (
    DOCUMENTS,
    DROPPED,
    TextColumn,
    document_ids,
    dropped_table,
    write_documents,
    write_dropped,
)
from tasks.corpus.reading import extracted, limits
from tasks.corpus.reading.batches import Batch, Fault, Unit, whole_fault
from tasks.corpus.reading.fields import KeptFields
from tasks.corpus.reading.readers import read_unit
from tasks.corpus.reading.remote import Missing, RemoteFile, spooled
from tasks.corpus.reading.where import REASON as NOT_WANTED
from tasks.corpus.reading.where import Condition, meeting

STAGE = "ingest"
PIECE_BYTES = 32_000_000
"""Approximate bytes of text in one file of documents. Later stages process one such file at a time."""
DROPPED_FILE = "dropped.parquet"
"""The rows that one shard set aside. The file stays beside the shard's documents until all are merged into the part."""
ROWS_PER_UNIT = 1 << 40
"""A row's ordinal is its unit's index times this number, plus its row. So ids of different units never collide."""
_NAMES = pa.schema([DOCUMENTS.field("id"), DOCUMENTS.field("source")])


@dataclass(frozen=True)
class ShardJob:
    """One shard: units read one after another, up to `limit` bytes of text (None: completely)."""

    name: str
    source: str
    text_field: str
    units: tuple[Unit, ...]
    sizes: dict[str, int]
    limit: int | None
    keep_fields: tuple[str, ...] | None = None
    where: tuple[Condition, ...] = ()


def read_shard(job: ShardJob, directory: Path) -> dict[str, Any]:
    """Read a job's units into files of documents below `directory`, and the rows set aside into `DROPPED_FILE` there.

    Returns counts; where only some fields are kept, the names of all (`fields`); and as `end` the row at which reading of
    the last unit stopped ({row, offset, bytes}), or None if it was read to its end. Memory holds about one piece, for any
    size of unit.
    """
    writer = ShardWriter(job, directory)
    asked = {one.field for one in job.where}
    kept = KeptFields(None if job.keep_fields is None else {*job.keep_fields, *asked})
    end: dict[str, int] | None = None
    for unit in job.units:
        _check_unchanged(unit, job.sizes)
        try:
            with _here(unit, directory) as local:
                end = _read_into(writer, local, job, kept)
        except Missing as error:
            end = None
            writer.add(unit, whole_fault(Fault(None, "unreadable_file", f"{unit.name}: {error}"), unit.row))
    writer.close()
    return {
        "documents": writer.documents,
        "bytes": writer.bytes,
        "seen": writer.seen,
        "end": end,
        **({} if job.keep_fields is None else {"fields": sorted(kept.seen)}),
    }


@contextlib.contextmanager
def _here(unit: Unit, directory: Path) -> Iterator[Unit]:
    """The unit with a local file, if its reader needs one: for a row group of a Parquet file on the hub."""
    if unit.kind != "parquet" or not isinstance(unit.path, RemoteFile):
        yield unit
        return
    with spooled(unit.path, unit.piece, directory) as path:
        yield replace(unit, path=path)


def _read_into(writer: ShardWriter, unit: Unit, job: ShardJob, kept: KeptFields) -> dict[str, int] | None:
    end: dict[str, int] | None = None
    documents, aside = writer.documents, 0
    for read in read_unit(unit, job.text_field, kept):
        whole = meeting(read, job.where, unit.name, extracted.FILE if unit.kind == extracted.KIND else None)
        if end is not None:  # the previous batch reached the limit, and there is another one
            return end
        batch = whole if job.limit is None else _within(whole, job.limit - writer.bytes)
        _check_conserved(unit, batch)
        writer.add(unit, batch)
        aside += sum(fault.reason != NOT_WANTED for fault in batch.faults)
        if aside > limits.HOPELESS_ROWS and aside > limits.HOPELESS_SHARE * (
            aside + writer.documents - documents
        ):
            row = batch.first + batch.count
            detail = (
                f"{unit.name}: {aside:,} of its first {row:,} rows had to be set aside; the rest is not read"
            )
            writer.add(unit, whole_fault(Fault(None, "too_many_bad_rows", detail), row))
            return None
        if job.limit is not None and writer.bytes >= job.limit:
            offset = int(batch.offsets[-1]) if batch.offsets is not None else 0
            end = {"row": batch.first + batch.count, "offset": offset, "bytes": writer.bytes}
            if batch.count < whole.count:
                return end
    return None


def _within(batch: Batch, limit: int) -> Batch:
    """The batch up to the document with which its texts reach `limit` bytes."""
    reached = np.cumsum(_text_bytes(batch.texts))
    last = int(np.searchsorted(reached, limit))
    if last >= len(reached):
        return batch
    count = int(batch.rows[last]) + 1 - batch.first
    return Batch(
        batch.first,
        count,
        batch.rows[: last + 1],
        batch.texts.slice(0, last + 1),
        batch.metas.slice(0, last + 1),
        [fault for fault in batch.faults if fault.row is not None and fault.row < batch.first + count],
        None if batch.offsets is None else batch.offsets[:count],
    )


def _text_bytes(texts: pa.Array) -> np.ndarray:
    sizes: np.ndarray = pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    return sizes


def _check_unchanged(unit: Unit, sizes: dict[str, int]) -> None:
    try:
        same = unit.name not in sizes or unit.path.stat().st_size == sizes[unit.name]
    except FileNotFoundError:
        same = False
    if not same:
        raise StageFailed(
            f"ingest: {unit.path} has changed since this slice was planned; the next start plans anew",
            passing=True,
        )


def _check_conserved(unit: Unit, batch: Batch) -> None:
    aside = sum(fault.row is not None for fault in batch.faults)
    if batch.count != len(batch.texts) + aside:
        raise OnwardError(
            f"ingest: {unit.name}, rows {batch.first} to {batch.first + batch.count}: {len(batch.texts)} documents and "
            f"{aside} rows set aside do not add up; nothing was committed"
        )


class ShardWriter:
    """Writes documents into files of about `PIECE_BYTES`, and the rows set aside into one file.

    Files are cut by their texts alone, unless there are a million short ones, or their other fields take far more.
    """

    def __init__(self, job: ShardJob, directory: Path) -> None:
        self.job, self.directory = job, directory
        self.documents = self.bytes = self.seen = self.pieces = 0
        self._tables: list[pa.Table] = []
        self._texts, self._metas = TextColumn(), TextColumn()
        self._pending = self._pending_meta = self._rows = 0
        # what is kept by name came after there were stores: it counts as much as the text does
        self._most_meta = limits.PIECE_META_BYTES if job.keep_fields is None else PIECE_BYTES
        self._dropped = [DROPPED.empty_table()]

    def add(self, unit: Unit, batch: Batch) -> None:
        ids = document_ids(self.job.source, unit.index * ROWS_PER_UNIT + batch.first, batch.count)
        self.seen += batch.count + sum(fault.row is None for fault in batch.faults)
        if batch.faults:
            self._dropped.append(_dropped(self.job.source, ids, batch))
        count = len(batch.texts)
        source = pa.repeat(pa.scalar(self.job.source), count)
        own = pa.array(ids[batch.rows - batch.first], pa.uint64())
        table = pa.table([own, source], schema=_NAMES)
        sizes, others = _text_bytes(batch.texts), _text_bytes(batch.metas)
        self.documents, self.bytes = self.documents + count, self.bytes + int(sizes.sum())
        start = 0
        while start < count:
            reached, other = np.cumsum(sizes[start:]), np.cumsum(others[start:])
            taken = min(
                int(np.searchsorted(reached, PIECE_BYTES - self._pending)) + 1,
                int(np.searchsorted(other, self._most_meta - self._pending_meta)) + 1,
                limits.PIECE_ROWS - self._rows,
                count - start,
            )
            self._tables.append(table.slice(start, taken))
            self._texts.add(batch.texts.slice(start, taken))
            self._metas.add(batch.metas.slice(start, taken))
            self._pending += int(reached[taken - 1])
            self._pending_meta += int(other[taken - 1])
            self._rows += taken
            start += taken
            if (
                self._pending >= PIECE_BYTES
                or self._pending_meta >= self._most_meta
                or self._rows >= limits.PIECE_ROWS
            ):
                self._flush()

    def close(self) -> None:
        if self._tables or not self.pieces:
            self._flush()
        write_dropped(self.directory / DROPPED_FILE, pa.concat_tables(self._dropped))

    def _flush(self) -> None:
        path = self.directory / f"{self.job.name}-{self.pieces:03d}" / "part.parquet"
        names = pa.concat_tables([_NAMES.empty_table(), *self._tables])
        columns = [names["id"], names["source"], self._texts.array(), self._metas.array()]
        write_documents(path, pa.table(columns, schema=DOCUMENTS))
        self._tables, self.pieces = [], self.pieces + 1
        self._texts, self._metas = TextColumn(), TextColumn()
        self._pending = self._pending_meta = self._rows = 0


def _dropped(source: str, ids: np.ndarray, batch: Batch) -> pa.Table:
    faults = batch.faults
    return dropped_table(
        [None if fault.row is None else int(ids[fault.row - batch.first]) for fault in faults],
        source,
        STAGE,
        [fault.reason for fault in faults],
        [fault.value for fault in faults],
        [fault.detail[:400] for fault in faults],
    )
