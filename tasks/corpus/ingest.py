"""Ingest: turn one slice of a source into documents. Malformed rows are set aside with their reason and place.

    1. `plan_slice` (slice_plan.py) chooses the units that the slice reads, by estimated size.
    2. All units but the last are read whole, in shards of neighbouring units, in any order.
    3. The last unit is read up to the row at which the slice reaches `slice_bytes`; the cursor names the next row.

Rows read = documents + rows set aside. A document's id comes from its place (unit in the source's order, row in the
unit), so no shard waits for the row count of another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.draft import Draft
from storage.errors import OnwardError, StageFailed
from tasks.corpus.documents import DROPPED, write_dropped
from tasks.corpus.reading import ingest_shard
from tasks.corpus.reading.batches import Unit
from tasks.corpus.reading.digests import FileDigests
from tasks.corpus.reading.fields import listed
from tasks.corpus.reading.ingest_shard import DROPPED_FILE, STAGE, ShardJob, read_shard
from tasks.corpus.reading.kinds import refusal
from tasks.corpus.reading.slice_plan import IngestInputs, SlicePlan, plan_slice, read_cursor
from tasks.corpus.reading.sources import IngestConfig, SourceConfig
from tasks.corpus.reading.where import REASON as NOT_WANTED
from tasks.corpus.reading.where import conditions_of
from tasks.corpus.reasons import commonest

VERSION = 2
COMPONENTS = {"parquet": 1, "lines": 2, "text": 1, "python": 1, "hub": 1, "extracted": 1}
"""Versions of the readers, by the kind of a file (origins.py), and of reading from the hub."""
_EMPTY = ("empty_file", "empty_text")
"""Reasons of rows and files that hold no text: nothing is wrong with them, and nothing is in them."""

__all__ = [
    "COMPONENTS",
    "STAGE",
    "VERSION",
    "FileDigests",
    "IngestConfig",
    "IngestInputs",
    "IngestStats",
    "SlicePlan",
    "SourceConfig",
    "components",
    "plan_slice",
    "read_cursor",
    "run",
]


@dataclass(frozen=True)
class IngestStats:
    """documents_in: rows read; a file or row group that cannot be read counts as one. bytes_out: UTF-8 text."""

    source: str
    slice: int
    documents_in: int
    documents_out: int
    documents_dropped: int
    bytes_in: int  # size on disk of the files that this slice reads from
    bytes_out: int
    dropped_by_reason: dict[str, int]
    files: int
    exhausted: bool


def components(config: IngestConfig, inputs: IngestInputs) -> Iterator[str]:
    """The readers of the files that this slice takes."""
    yield from {str(unit["kind"]) for unit in inputs.reading["units"]}
    if inputs.hub is not None:
        yield "hub"


def run(config: IngestConfig, inputs: IngestInputs, draft: Draft) -> IngestStats:
    """Read the slice. Parts: documents, dropped (dropped.parquet), cursor (cursor.json).

    Raises StageFailed if more than `max_bad_fraction` of the rows, or every file, was set aside.
    """
    for message in inputs.reading["warnings"]:
        draft.warn(message)
    jobs, results, position = _read_units(config, inputs, draft)
    dropped = _merge_dropped(draft, jobs)
    _look_for_fields(config, inputs, results, draft)
    stats = _stats(config, inputs, results, dropped, position)
    empty = _judge(config, inputs, stats, dropped, draft)
    _write_cursor(config, inputs, position, stats, empty, draft)
    return stats


def _read_units(
    config: IngestConfig, inputs: IngestInputs, draft: Draft
) -> tuple[dict[str, ShardJob], dict[str, dict[str, Any]], dict[str, int]]:
    """The jobs, their results, and where the next slice begins ({unit, row, offset, bytes taken of that unit})."""
    *whole, last = _units(inputs)
    jobs = {}
    for number, group in enumerate(_grouped(whole, _estimates(inputs))):
        jobs[f"{number:05d}"] = _job(config, inputs, f"{number:05d}", tuple(group), None)
    results = draft.shards("documents", jobs, read_shard, aside=(DROPPED_FILE,)) if jobs else {}
    left = config.slice_bytes - sum(result["bytes"] for result in results.values())
    taken = _begin_bytes(inputs, last)
    if left <= 0:  # the estimates were too low: the next slice reads the last unit
        return jobs, results, {"unit": last.index, "row": last.row, "offset": last.offset, "bytes": taken}
    name = f"{len(jobs):05d}"
    jobs[name] = _job(config, inputs, name, (last,), left)
    results |= draft.shards("documents", {name: jobs[name]}, read_shard, aside=(DROPPED_FILE,))
    end = results[name]["end"]
    if end is None:
        return jobs, results, {"unit": last.index + 1, "row": 0, "offset": 0, "bytes": 0}
    return jobs, results, {"unit": last.index, **end, "bytes": taken + end["bytes"]}


def _units(inputs: IngestInputs) -> list[Unit]:
    begin, members = inputs.reading["begin"], inputs.reading.get("members", {})
    remote = inputs.reading.get("remote", {})
    units = [
        Unit(
            index=unit["index"],
            name=unit["name"],
            kind=unit["kind"],
            piece=unit["piece"],
            path=remote.get(unit["name"]) or Path(inputs.paths[unit["name"]]),
            files=tuple(members.get(unit["name"], ())),
        )
        for unit in inputs.reading["units"]
    ]
    units[0] = replace(units[0], row=begin["row"], offset=begin["offset"])
    return units


def _estimates(inputs: IngestInputs) -> dict[int, int]:
    return {unit["index"]: unit["estimate"] for unit in inputs.reading["units"]}


def _begin_bytes(inputs: IngestInputs, unit: Unit) -> int:
    """Bytes of text that earlier slices took from a unit."""
    begin: dict[str, int] = inputs.reading["begin"]
    return begin["bytes"] if unit.index == begin["unit"] else 0


def _grouped(units: list[Unit], estimates: dict[int, int]) -> Iterator[list[Unit]]:
    """Group neighbouring units into shards of about one piece, so that thousands of small files do not make thousands
    of shards."""
    group: list[Unit] = []
    total = 0
    for unit in units:
        group.append(unit)
        total += estimates[unit.index]
        if total >= ingest_shard.PIECE_BYTES:
            yield group
            group, total = [], 0
    if group:
        yield group


def _job(
    config: IngestConfig, inputs: IngestInputs, name: str, units: tuple[Unit, ...], limit: int | None
) -> ShardJob:
    known = {file["name"]: file["bytes"] for file in inputs.files}
    sizes = {unit.name: known[unit.name] for unit in units if unit.name in known}
    where = conditions_of(config.where)
    return ShardJob(name, config.name, config.text_field, units, sizes, limit, config.keep_fields, where)


def _merge_dropped(draft: Draft, jobs: dict[str, ShardJob]) -> pa.Table:
    shards = (draft.path / "documents" / name / DROPPED_FILE for name in jobs)
    table = pa.concat_tables(
        [DROPPED.empty_table(), *(pq.read_table(path, partitioning=None) for path in shards)]
    )
    write_dropped(draft.path / "dropped.parquet", table)
    draft.part("dropped", "dropped.parquet")
    return table


def _look_for_fields(
    config: IngestConfig, inputs: IngestInputs, results: dict[str, dict[str, Any]], draft: Draft
) -> None:
    """Warn of fields to keep that no row of a first slice has."""
    there = {name for result in results.values() for name in result.get("fields", ())}
    absent = [name for name in config.keep_fields or () if name not in {*there, config.text_field}]
    if absent and inputs.cursor is None:
        draft.warn(
            f"source {config.name!r}: no row of its first slice has {listed(absent)} (keep_fields); "
            f"they have {listed(sorted(there))}"
        )


def _stats(
    config: IngestConfig,
    inputs: IngestInputs,
    results: dict[str, dict[str, Any]],
    dropped: pa.Table,
    position: dict[str, int],
) -> IngestStats:
    state = read_cursor(inputs.cursor)
    stats = IngestStats(
        source=config.name,
        slice=state["slice"] + 1 if state else 1,
        documents_in=sum(result["seen"] for result in results.values()),
        documents_out=sum(result["documents"] for result in results.values()),
        documents_dropped=dropped.num_rows,
        bytes_in=sum(file["bytes"] for file in inputs.files) + _extracted_bytes(inputs),
        bytes_out=sum(result["bytes"] for result in results.values()),
        dropped_by_reason=dict(sorted(Counter(dropped["reason"].to_pylist()).items())),
        files=len(inputs.paths),
        exhausted=position["unit"] >= inputs.reading["total"],
    )
    if stats.documents_in != stats.documents_out + stats.documents_dropped:
        raise OnwardError(
            f"ingest of {config.name}: {stats.documents_in} rows were read, but {stats.documents_out} documents and "
            f"{stats.documents_dropped} rows set aside came of them; nothing was committed"
        )
    return stats


def _extracted_bytes(inputs: IngestInputs) -> int:
    """Bytes on the disk of the files of extracted documents that the slice reads from."""
    if inputs.extracted is None:
        return 0
    own = [path for name, path in inputs.paths.items() if name in inputs.extracted.files]
    return sum(Path(path).stat().st_size for path in own)


def _judge(
    config: IngestConfig, inputs: IngestInputs, stats: IngestStats, dropped: pa.Table, draft: Draft
) -> int:
    """The rows and files without text that were not counted as bad. Raises StageFailed if too much of the source so far
    was set aside. A small last slice is not judged on its own.

    What is empty is not bad, unless there is more of it than documents: then the text is elsewhere. It is counted only
    once it matters, so that a cursor has the bytes that it had before this was told apart.
    """
    state = read_cursor(inputs.cursor) or {"rows": 0, "documents": 0, "dropped": 0}
    empty: int = state.get("empty", 0)
    if not dropped.num_rows:
        return empty
    passed = stats.dropped_by_reason.get(NOT_WANTED, 0)  # by the user's own conditions: they are not bad
    if passed == dropped.num_rows:
        return empty
    rows, bad = state["rows"] + stats.documents_in, state["dropped"] + stats.documents_dropped - passed
    documents = state["documents"] + stats.documents_out
    if bad > config.max_bad_fraction * rows or empty:
        here = empty + sum(stats.dropped_by_reason.get(reason, 0) for reason in _EMPTY)
        if here <= documents:
            bad, empty = bad - here, here
    reasons = commonest(stats.dropped_by_reason)
    first = [
        f"  {reason}: {detail}"
        for reason, detail in zip(
            dropped["reason"].slice(0, 10).to_pylist(),
            dropped["detail"].slice(0, 10).to_pylist(),
            strict=True,
        )
    ]
    if not documents and stats.exhausted and set(stats.dropped_by_reason) <= set(_EMPTY):
        raise StageFailed(
            f"ingest: source {config.name!r}, slice {stats.slice}: no text is in it ({reasons}). The first:\n"
            + "\n".join(first)
            + "\nPut the text there, set text_field to the column with the text, or leave the source out"
        )
    nothing = not documents and dropped["id"].null_count > 0
    if bad <= config.max_bad_fraction * rows and not nothing:
        draft.warn(
            f"source {config.name!r}: set aside {stats.documents_dropped:,} ({reasons}); first:{first[0][1:]}"
        )
        return empty
    what = "nothing could be read" if nothing else f"{bad:,} of {rows:,} rows had to be set aside"
    raise StageFailed(
        f"ingest: source {config.name!r}, slice {stats.slice}: {what} (in this slice: {reasons}), "
        f"more than max_bad_fraction = {config.max_bad_fraction:g} allows. The first:\n"
        + "\n".join(first)
        + f"\n{_way_out(inputs, nothing, bad, rows)}"
    )


def _way_out(inputs: IngestInputs, nothing: bool, bad: int, rows: int) -> str:
    """What to do about bad rows: to allow more of them is no advice where a file is of another kind, or most is bad."""
    local = (
        Path(path) for name, path in inputs.paths.items() if name not in inputs.reading.get("remote", {})
    )
    strange = [(path.name, found) for path in local if path.is_file() and (found := refusal(path))]
    if strange:
        name, (kind, way) = strange[0]
        more = f" ({len(strange):,} files in all)" if len(strange) > 1 else ""
        return f"{name} is {kind}{more}: {way}, or leave it out of files"
    repair = "Repair or leave out these files, or set text_field to the column with the text"
    if nothing or 2 * bad > rows:
        return repair
    enough = next(share / 100 for share in range(100) if bad <= share / 100 * rows)
    return f"{repair}; or raise corpus.max_bad_fraction to {enough:g}"


def _write_cursor(
    config: IngestConfig,
    inputs: IngestInputs,
    position: dict[str, int],
    stats: IngestStats,
    empty: int,
    draft: Draft,
) -> None:
    before = read_cursor(inputs.cursor) or {"rows": 0, "documents": 0, "dropped": 0}
    digests = {file["name"]: file["sha256"] for file in inputs.files}
    files = [
        {**entry, "sha256": digests[entry["name"]]} if entry["name"] in digests else entry
        for entry in inputs.reading["files"]
    ]
    cursor = {
        "source": config.name,
        "slice": stats.slice,
        "position": position,
        "rows": before["rows"] + stats.documents_in,
        "documents": before["documents"] + stats.documents_out,
        "dropped": before["dropped"] + stats.documents_dropped - stats.dropped_by_reason.get(NOT_WANTED, 0),
        "exhausted": stats.exhausted,
        "files": files,
        **({"hub": inputs.hub} if inputs.hub else {}),
        **({"empty": empty} if empty else {}),
        **({"before": inputs.reading["before"]} if "before" in inputs.reading else {}),
    }
    (draft.path / "cursor.json").write_text(json.dumps(cursor, indent=0), encoding="utf-8")
    draft.part("cursor", "cursor.json")
