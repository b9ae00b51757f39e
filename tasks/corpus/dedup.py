"""Stage `dedup`: drop exact copies and near-duplicates of documents in this slice or an earlier one.

Documents are processed in order. A document is dropped in two cases: its normalised text equals that of a kept
document; or it shares a band of its MinHash signature with a kept document, and their true Jaccard similarity reaches
the threshold. So the first occurrence stays, and no decision depends on later documents. Optionally, lines that repeat
lines of earlier documents are removed (paragraphs.py). Only kept documents are remembered (signatures.py).

With line removal, two decisions depend on each other: a document is compared with the edited text of kept documents,
and the edits depend on which earlier documents were dropped. The stage therefore alternates between both decisions
until nothing changes. Each iteration settles at least the first document that was not settled yet, so the result
equals that of one pass in document order.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import feather

from storage.artifact import Chain, Input
from storage.draft import Draft
from storage.settings import Settings, identity
from tasks.corpus.documents import (
    dropped_table,
    read_column,
    read_kept,
    write_documents,
    write_dropped,
)
from tasks.corpus.duplicates.comparison import EMPTIED, EXACT, KEPT, NEAR, Fates, Sketched, decide
from tasks.corpus.duplicates.minhash import MinHashConfig, sketch
from tasks.corpus.duplicates.paragraphs import FILE, ParagraphConfig, RepeatedLines, lines_of, without_lines
from tasks.corpus.duplicates.shingle_sets import shingle_shard
from tasks.corpus.duplicates.signatures import KeptDocuments, NewLink, SignatureTable
from tasks.corpus.shards import PART_FILE, Selection, document_shards, texts_of

STAGE = "dedup"
VERSION = 2
COMPONENTS = {"exact": 1, "minhash": 3, "paragraphs": 2}
"""Versions of the ways in which copies are found."""
ROW_GROUP_BYTES = 128_000
"""Approximate bytes of text in one row group of the kept documents. Later slices read single documents back."""

REASONS = {EXACT: "exact_duplicate", NEAR: "near_duplicate", EMPTIED: "repeated_paragraphs"}
_WHITESPACE = r"[^\S ]\s*| \s+"


class DedupConfig(Settings):
    """Which duplicates are dropped."""

    exact: bool = identity(
        True,
        description="Drop documents whose text, lower-cased and with whitespace collapsed, was seen before.",
    )
    minhash: MinHashConfig | None = identity(
        MinHashConfig(), description="How near-duplicates are found; null leaves them in."
    )
    paragraphs: ParagraphConfig | None = identity(
        None, description="Remove lines that stood in earlier documents; null leaves them in."
    )


@dataclass(frozen=True)
class DedupInputs:
    """The documents of this slice, and the `signatures` parts of the slices before it, oldest first."""

    documents: Input
    earlier: Chain | None = None


def components(config: DedupConfig, inputs: DedupInputs) -> Iterator[str]:
    """The ways that are on."""
    asked = {
        "exact": config.exact,
        "minhash": config.minhash is not None,
        "paragraphs": config.paragraphs is not None,
    }
    return (name for name, on in asked.items() if on)


@dataclass(frozen=True)
class DedupStats:
    """Counts of documents and bytes of text. `compared`: candidate pairs whose similarity was computed.

    `beyond_group`: how often a kept document shared a band with `MOST_IN_GROUP` documents kept before it; later
    documents are not compared with it because of that band. bytes_in = bytes_out + bytes_dropped + bytes_removed,
    where bytes_removed are the repeated lines of the `documents_edited` documents.
    """

    documents_in: int
    documents_out: int
    documents_dropped: int
    bytes_in: int
    bytes_out: int
    dropped_by_reason: dict[str, int]
    compared: int
    bytes_dropped: int
    documents_edited: int
    lines_removed: int
    bytes_removed: int
    beyond_group: int


def run(config: DedupConfig, inputs: DedupInputs, draft: Draft) -> DedupStats:
    """Parts: documents, dropped, signatures; and edited, if paragraphs are compared.

    In a dropped row, `value` is the similarity (repeated_paragraphs: the number of removed lines) and `detail` is the
    kept document.
    """
    shards = document_shards(inputs.documents)
    sketches = draft.scratch(
        "sketches", {name: SketchJob(path, config) for name, path in shards.items()}, sketch_shard
    )
    current, kept = Sketched.of(shards, sketches), KeptDocuments(inputs.earlier)
    lines = lines_of(draft, config.paragraphs, shards, current.edges, kept) if config.paragraphs else None
    repeated = RepeatedLines.nothing()
    for turn in itertools.count():
        name = f"shingles-{turn}" if turn else "shingles"
        make = partial(draft.scratch, name, make=shingle_shard)
        fates = decide(current, kept, config.exact, config.minhash, repeated, make)
        if lines is None:
            break
        before, repeated = repeated, lines.repeated(fates.kinds == KEPT)
        if repeated.same_edits(before):
            repeated = _empty(repeated, fates)
            _write_edited(draft, current, repeated)
            break
    jobs = dict(zip(shards, _keep_jobs(current, fates, repeated), strict=True))
    draft.shards("documents", jobs, write_kept)
    _write_dropped(draft, current, fates)
    _write_signatures(draft, config, kept, current, list(shards), fates, repeated)
    return _stats(current, fates, repeated)


@dataclass(frozen=True)
class SketchJob:
    """One file of documents whose signatures are computed."""

    path: Path
    config: DedupConfig


def sketch_shard(job: SketchJob, directory: Path) -> dict[str, Any]:
    """Shard function: writes `sketch.arrow` with each document's bytes, exact hash, number of shingles and band
    hashes."""
    texts = texts_of(job.path)
    lowered = texts.str.to_lowercase()
    columns: dict[str, pa.Array] = {
        "bytes": pa.array(texts.str.len_bytes().to_numpy().astype(np.int64)),
        "exact": pa.array(exact_hashes(lowered), pa.binary(16)),
    }
    if job.config.minhash is not None:
        bands, counts = sketch(lowered, job.config.minhash)
        columns["shingles"] = pa.array(counts)
        columns |= {
            f"band_{i:02d}": pa.array(np.ascontiguousarray(bands[:, i])) for i in range(bands.shape[1])
        }
    feather.write_feather(pa.table(columns), directory / "sketch.arrow", compression="uncompressed")
    return {"rows": len(texts)}


def exact_hashes(lowered: pl.Series) -> list[bytes]:
    """16-byte BLAKE2b of each lower-case text, with every run of whitespace replaced by one space."""
    plain = lowered.str.replace_all(_WHITESPACE, " ").str.strip_chars()
    # a loop over documents: nearly all its time is spent in hashing
    return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in plain]


@dataclass(frozen=True)
class KeepJob:
    """What to write of one file of documents: the selected rows, without some lines.

    `rows` (of the file) and `lines` are packed int64.
    """

    selection: Selection
    rows: bytes
    lines: bytes


def _keep_jobs(current: Sketched, fates: Fates, repeated: RepeatedLines) -> Iterator[KeepJob]:
    for path, low, high in zip(current.files, current.edges[:-1], current.edges[1:], strict=True):
        here = slice(*np.searchsorted(repeated.rows, [low, high]))
        yield KeepJob(
            Selection.of(path, fates.kinds[low:high] == KEPT),
            (repeated.rows[here] - low).tobytes(),
            repeated.lines[here].tobytes(),
        )


def write_kept(job: KeepJob, directory: Path) -> dict[str, Any]:
    """Shard function: writes the selected documents in row groups of about `ROW_GROUP_BYTES`."""
    path, keep = job.selection.path, job.selection.mask()
    rows, lines = np.frombuffer(job.rows, np.int64), np.frombuffer(job.lines, np.int64)
    texts: pl.Series = pl.from_arrow(read_column(path, "text"))  # type: ignore[assignment]
    group = max(1, ROW_GROUP_BYTES * len(texts) // max(int(texts.str.len_bytes().sum()), 1))
    if len(rows):
        texts = without_lines(texts, rows, lines)
    kept = texts.filter(pl.Series(keep)).to_arrow(compat_level=pl.CompatLevel.oldest())
    write_documents(directory / PART_FILE, read_kept(path, keep, kept), row_group=group)
    return {"rows": len(kept)}


def _empty(repeated: RepeatedLines, fates: Fates) -> RepeatedLines:
    """Mark the documents that lost all their lines as dropped; return the edits of the other documents."""
    fates.kinds[repeated.emptied] = EMPTIED
    counts = np.bincount(repeated.rows, minlength=len(fates.kinds))
    fates.similarity[repeated.emptied] = counts[repeated.emptied]
    stays = fates.kinds[repeated.rows] == KEPT
    return RepeatedLines(
        repeated.rows[stays], repeated.lines[stays], repeated.bytes[stays], repeated.emptied, repeated.new
    )


def _write_edited(draft: Draft, current: Sketched, repeated: RepeatedLines) -> None:
    """Write `edited.parquet`: id, source, and the number of lines and bytes removed, for each kept document that was
    edited."""
    rows, counts = np.unique(repeated.rows, return_counts=True)
    sizes = np.bincount(repeated.rows, repeated.bytes, minlength=len(current)).astype(np.int64)
    table = pa.table(
        {
            "id": pa.array(current.ids[rows]),
            "source": current.sources.take(pa.array(rows)),
            "lines": pa.array(counts, pa.int64()),
            "bytes": pa.array(sizes[rows]),
        }
    )
    pq.write_table(table, draft.path / "edited.parquet", compression="zstd", use_dictionary=["source"])
    draft.part("edited", "edited.parquet")


def _write_dropped(draft: Draft, current: Sketched, fates: Fates) -> None:
    gone = np.flatnonzero(fates.kinds != KEPT)
    table = dropped_table(
        current.ids[gone],
        current.sources.take(pa.array(gone)),
        STAGE,
        [REASONS[int(kind)] for kind in fates.kinds[gone]],
        fates.similarity[gone],
        [fates.kept_document.get(int(i), "") for i in gone],
    )
    write_dropped(draft.path / "dropped.parquet", table)
    draft.part("dropped", "dropped.parquet")


def _write_signatures(
    draft: Draft,
    config: DedupConfig,
    kept: KeptDocuments,
    current: Sketched,
    names: list[str],
    fates: Fates,
    repeated: RepeatedLines,
) -> None:
    """Write the kept documents (with the file and row where each text can be found) and the tables of their hashes."""
    rows = np.flatnonzero(fates.kinds == KEPT)
    file = np.searchsorted(current.edges, rows, side="right") - 1
    documents = pa.table(
        {
            "id": pa.array(current.ids[rows]),
            "source": current.sources.take(pa.array(rows)).dictionary_encode(),
            "file": pa.DictionaryArray.from_arrays(
                pa.array(file, pa.int32()),
                pa.array([f"documents/{name}/{PART_FILE}" for name in names], pa.string()),
            ),
            "row": pa.array((np.arange(len(rows)) - np.searchsorted(file, file)).astype(np.uint32)),
        }
    )
    directory = draft.path / "signatures"
    directory.mkdir(exist_ok=True)
    link = NewLink(kept)
    places = np.arange(len(rows)) + link.start
    exact = current.values("exact")[rows]
    link.write(directory, "exact.arrow", [SignatureTable.of(exact[:, 0], places, link.start, exact[:, 1])])
    facts: dict[str, Any] = {"minhash": None, "paragraphs": None}
    if config.minhash is not None:
        facts["minhash"] = config.minhash.model_dump()
        able = current.with_shingles[rows]
        bands = (current.values(f"band_{band:02d}")[rows[able]] for band in range(config.minhash.bands))
        link.write(
            directory, "bands.arrow", (SignatureTable.of(band, places[able], link.start) for band in bands)
        )
    if config.paragraphs is not None:
        facts["paragraphs"] = config.paragraphs.model_dump()
        link.write(directory, FILE, [SignatureTable(repeated.new)])
    link.close(directory, documents, facts)
    draft.part("signatures", "signatures")


def _stats(current: Sketched, fates: Fates, repeated: RepeatedLines) -> DedupStats:
    kept = fates.kinds == KEPT
    bytes_each, removed = current.values("bytes"), int(repeated.bytes.sum())
    return DedupStats(
        documents_in=len(kept),
        documents_out=int(kept.sum()),
        documents_dropped=int((~kept).sum()),
        bytes_in=int(bytes_each.sum()),
        bytes_out=int(bytes_each[kept].sum()) - removed,
        dropped_by_reason={
            reason: int((fates.kinds == kind).sum())
            for kind, reason in REASONS.items()
            if (fates.kinds == kind).any()
        },
        compared=fates.compared,
        bytes_dropped=int(bytes_each[~kept].sum()),
        documents_edited=len(np.unique(repeated.rows)),
        lines_removed=len(repeated.rows),
        bytes_removed=removed,
        beyond_group=fates.beyond_group,
    )
