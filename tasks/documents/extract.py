"""Extract: read the files of one shelf into documents. What cannot be read is set aside with its reason and place.

    1. `shelves` chose the files; each is told by its beginning, and read in a process of its own (`reader`).
    2. Files are read in shards of some megabytes. A process that ends or hangs costs what it was at, and that only if it
       does so twice.
    3. Parts: `documents` (Parquet: text, meta), `fates` (one row for each document, page and file that was lost),
       `dropped` (what was lost, as every stage tells it), `samples` (some of each kind, before and after).

Ingest reads `documents` like any file of rows. The key holds name, size and sha256 of each file, and of each kind among
them the versions of its extractor and of the packages that it calls; for archives, of all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.draft import Draft
from storage.errors import StageFailed
from storage.settings import Settings, identity
from tasks.corpus.documents import DROPPED, dropped_table, write_dropped
from tasks.corpus.reading.digests import FileDigests
from tasks.corpus.reasons import commonest
from tasks.documents.document import Columns
from tasks.documents.extract_shard import (
    FATES,
    FATES_FILE,
    SAMPLES_FILE,
    ExtractJob,
    SourceFile,
    read_shard,
)
from tasks.documents.folder import is_container
from tasks.documents.packages import missing
from tasks.documents.read import EXTRACTORS, extractor_version
from tasks.documents.shelves import Shelves

STAGE = "extract"
VERSION = 1
COMPONENTS = {kind: one.version for kind, one in EXTRACTORS.items()}
"""The kinds, with the versions of their extractors."""
_MODULES = {one.function.partition(".")[0] for one in EXTRACTORS.values()}
CODE_ROOTS = ("tasks.documents.worker", *(f"tasks.documents.{name}" for name in sorted(_MODULES)))
SHARD_BYTES = 8_000_000
"""Bytes on the disk of the files of one shard, about. A killed run reads no more than one for each worker again."""
_SHARD_FILES = 64


class ExtractConfig(Settings):
    """Everything besides its inputs on which the bytes depend."""

    name: str = identity(description="The source's name.")
    text_field: str = identity("text", description="The column of a table that holds its texts.")
    template: str | None = identity(None, description="The text of a table's row, with columns in braces.")


@dataclass(frozen=True)
class ExtractInputs:
    """The files of a shelf. In the key: their names and contents, and the extractors of their kinds."""

    files: tuple[dict[str, Any], ...]  # {name, bytes, sha256}, in the order in which they are read
    extractors: dict[str, str]
    paths: dict[str, str] = field(metadata={"in_key": False})


@dataclass(frozen=True)
class ExtractStats:
    """documents_in: documents, and files and entries of archives that could not be read. bytes_out: UTF-8 text."""

    source: str
    files: int
    documents_in: int
    documents_out: int
    documents_dropped: int
    pages: int
    pages_dropped: int
    bytes_in: int  # of the files on the disk
    bytes_out: int
    characters: int
    dropped_by_reason: dict[str, int]
    pages_dropped_by_reason: dict[str, int]
    kinds: dict[str, dict[str, int]]
    """Of each kind: files, documents, pages, characters, lost (files and entries), lost_pages."""
    encodings: dict[str, int]


def components(config: ExtractConfig, inputs: ExtractInputs) -> Iterator[str]:
    """The kinds that may be among the files."""
    yield from inputs.extractors


def extract_inputs(shelves: Shelves, number: int, digests: FileDigests) -> ExtractInputs:
    """The inputs for a shelf (`number` counts from 0). Raises OSError if a file cannot be read."""
    listing = shelves.listing
    names = shelves.documents(number)
    files = tuple(
        {"name": name, "bytes": listing.sizes[name], "sha256": digests.sha256(listing.paths[name])}
        for name in names
    )
    kinds = {listing.kinds[name] for name in names if name in listing.kinds}
    if any(map(is_container, kinds)):
        kinds = set(EXTRACTORS)
    versions = {kind: extractor_version(kind) for kind in sorted(kinds) if kind in EXTRACTORS}
    return ExtractInputs(files, versions, {name: str(listing.paths[name]) for name in names})


def run(config: ExtractConfig, inputs: ExtractInputs, draft: Draft) -> ExtractStats:
    """Read the files. Raises StageFailed if the packages that read them are not installed, or a file has changed."""
    if absent := missing():
        raise StageFailed(
            f"extract: reading documents needs {', '.join(absent)}: pip install 'onward[documents]'"
        )
    jobs = {
        f"{number:05d}": _job(config, inputs, group) for number, group in enumerate(_grouped(inputs.files))
    }
    aside = (FATES_FILE, SAMPLES_FILE)
    results = list(draft.shards("documents", jobs, read_shard, aside=aside).values())
    fates = _fates(draft, list(jobs))
    _samples(draft, list(jobs))
    stats = _stats(config, inputs, results)
    _dropped(draft, config.name, fates)
    if stats.documents_dropped or stats.pages_dropped:
        pages = f"; {stats.pages_dropped:,} pages have no text" if stats.pages_dropped else ""
        set_aside = f"set aside {stats.documents_dropped:,} ({commonest(stats.dropped_by_reason)})"
        draft.warn(
            f"source {config.name!r}: {stats.documents_out:,} documents of {stats.files:,} files"
            f"{', ' + set_aside if stats.documents_dropped else ''}{pages}"
        )
    return stats


def _grouped(files: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for file in files:
        group.append(file)
        size += file["bytes"]
        if size >= SHARD_BYTES or len(group) >= _SHARD_FILES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _job(config: ExtractConfig, inputs: ExtractInputs, files: Sequence[dict[str, Any]]) -> ExtractJob:
    given = tuple(
        SourceFile(one["name"], inputs.paths[one["name"]], one["bytes"], one["sha256"]) for one in files
    )
    return ExtractJob(config.name, given, columns=Columns(config.text_field, config.template))


def _fates(draft: Draft, jobs: list[str]) -> pa.Table:
    tables = [pq.read_table(draft.path / "documents" / name / FATES_FILE, partitioning=None) for name in jobs]
    table = pa.concat_tables([FATES.empty_table(), *tables]).combine_chunks()
    pq.write_table(table, draft.path / "fates.parquet", compression="zstd")
    draft.part("fates", "fates.parquet")
    return table


def _dropped(draft: Draft, source: str, fates: pa.Table) -> None:
    """Files and entries that were lost. Pages of documents that were read stand in `fates` alone."""
    lost = [row for row in fates.select(["place", "page", "reason", "message"]).to_pylist() if row["reason"]]
    lost = [row for row in lost if row["page"] is None]
    table = dropped_table(
        [None] * len(lost),
        source,
        STAGE,
        [row["reason"] for row in lost],
        None,
        [f"{row['place']}: {row['message']}"[:400] for row in lost],
    )
    write_dropped(draft.path / "dropped.parquet", pa.concat_tables([DROPPED.empty_table(), table]))
    draft.part("dropped", "dropped.parquet")


def _samples(draft: Draft, jobs: list[str]) -> None:
    """The first sample of each kind, or the first that shows its file too."""
    found: dict[str, Any] = {}
    for name in jobs:
        own = json.loads((draft.path / "documents" / name / SAMPLES_FILE).read_bytes())
        better = {kind: one for kind, one in own.items() if one["before"] is not None}
        better = {kind: one for kind, one in better.items() if found.get(kind, {}).get("before") is None}
        found = {**own, **found, **better}
    text = json.dumps(dict(sorted(found.items())), ensure_ascii=False, indent=0)
    (draft.path / "samples.json").write_text(text, encoding="utf-8")
    draft.part("samples", "samples.json")


def _stats(config: ExtractConfig, inputs: ExtractInputs, results: list[dict[str, Any]]) -> ExtractStats:
    def summed(name: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for result in results:
            total.update(result[name])
        return dict(sorted(total.items()))

    kinds: dict[str, Counter[str]] = {}
    for result in results:
        for kind, counts in result["kinds"].items():
            kinds.setdefault(kind, Counter()).update(counts)
    reasons = summed("dropped")
    pages = summed("pages_dropped")
    documents, dropped = sum(result["documents"] for result in results), sum(reasons.values())
    return ExtractStats(
        source=config.name,
        files=len(inputs.files),
        documents_in=documents + dropped,
        documents_out=documents,
        documents_dropped=dropped,
        pages=sum(result["pages"] for result in results),
        pages_dropped=sum(pages.values()),
        bytes_in=sum(file["bytes"] for file in inputs.files),
        bytes_out=sum(result["bytes"] for result in results),
        characters=sum(counts["characters"] for counts in kinds.values()),
        dropped_by_reason=reasons,
        pages_dropped_by_reason=pages,
        kinds={kind: dict(sorted(counts.items())) for kind, counts in sorted(kinds.items())},
        encodings=summed("encodings"),
    )
