"""Stage `dedup`: drop exact copies and near-duplicates of documents seen before, in this slice or an earlier one.

Documents are taken in their order. A document is dropped if its normalised text is that of a kept one, or if it
shares a band of its MinHash signature with a kept one and their true Jaccard similarity is at least the threshold; so
the first occurrence stays, and what is decided never depends on what comes later. Only kept documents' signatures are
stored: `signatures/part.parquet`, and `signatures/chain.json` with the digest of the link before, so that a link's
digest stands for all signatures up to it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Chain, Input
from storage.draft import Draft
from storage.settings import Settings, identity
from tasks.corpus.documents import dropped_table, write_dropped
from tasks.corpus.duplicates import EXACT, KEPT, NEAR, Fates, Seen, decide
from tasks.corpus.minhash import MinHashConfig, sketch
from tasks.corpus.shards import Selection, document_shards, texts_of, write_selection

STAGE = "dedup"
VERSION = 1

REASONS = {EXACT: "exact_duplicate", NEAR: "near_duplicate"}
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


@dataclass(frozen=True)
class DedupInputs:
    """This slice's documents, and the `signatures` parts of the slices before it, oldest first."""

    documents: Input
    earlier: Chain | None = None


@dataclass(frozen=True)
class DedupStats:
    """Counts of documents and of bytes of text; `compared` are the candidate pairs whose similarity was computed."""

    documents_in: int
    documents_out: int
    documents_dropped: int
    bytes_in: int
    bytes_out: int
    dropped_by_reason: dict[str, int]
    compared: int


def run(config: DedupConfig, inputs: DedupInputs, draft: Draft) -> DedupStats:
    """Parts: documents, dropped, signatures. Value of a dropped row: the similarity; detail: the kept document."""
    shards = document_shards(inputs.documents)
    sketches = draft.scratch(
        "sketch", {name: SketchJob(path, config) for name, path in shards.items()}, sketch_shard
    )
    current = Seen.of_slice(shards, sketches)
    earlier = [Seen.of_link(link) for link in inputs.earlier.links] if inputs.earlier else []
    fates = decide(current, earlier, config.exact, config.minhash)
    keep = np.split(fates.kinds == KEPT, current.edges[1:-1])
    jobs = {name: Selection.of(path, mask) for (name, path), mask in zip(shards.items(), keep, strict=True)}
    draft.shards("documents", jobs, write_selection)
    _write_dropped(draft, current, fates)
    _write_signatures(draft, config, inputs.earlier, current, list(shards), keep)
    return _stats(current, fates)


@dataclass(frozen=True)
class SketchJob:
    """One file of documents to compute signatures of."""

    path: Path
    config: DedupConfig


def sketch_shard(job: SketchJob, directory: Path) -> dict[str, Any]:
    """Shard function: `sketch.parquet` with bytes, exact hash, number of shingles and band hashes of each document."""
    texts = texts_of(job.path)
    columns: dict[str, pa.Array] = {
        "bytes": pa.array(texts.str.len_bytes().to_numpy().astype(np.int64)),
        "exact": pa.array(exact_hashes(texts), pa.binary(16)),
    }
    if job.config.minhash is not None:
        bands, counts = sketch(texts, job.config.minhash)
        columns["shingles"] = pa.array(counts)
        columns |= {
            f"band_{i:02d}": pa.array(np.ascontiguousarray(bands[:, i])) for i in range(bands.shape[1])
        }
    pq.write_table(pa.table(columns), directory / "sketch.parquet", compression="none", use_dictionary=False)
    return {"rows": len(texts)}


def exact_hashes(texts: pl.Series) -> list[bytes]:
    """16 bytes of BLAKE2b of each text, lower-cased and with every run of whitespace made one space."""
    plain = texts.str.to_lowercase().str.replace_all(_WHITESPACE, " ").str.strip_chars()
    # a loop over documents, but hashing is the whole of its time
    return [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in plain]


def _write_dropped(draft: Draft, current: Seen, fates: Fates) -> None:
    gone = np.flatnonzero(fates.kinds != KEPT)
    table = dropped_table(
        current.ids[gone],
        current.sources.take(pa.array(gone)),
        STAGE,
        [REASONS[int(kind)] for kind in fates.kinds[gone]],
        fates.similarity[gone],
        [fates.kept_document[int(i)] for i in gone],
    )
    write_dropped(draft.path / "dropped.parquet", table)
    draft.part("dropped", "dropped.parquet")


def _write_signatures(
    draft: Draft,
    config: DedupConfig,
    earlier: Chain | None,
    current: Seen,
    names: list[str],
    keep: list[np.ndarray],
) -> None:
    """The kept documents' signatures, with the file and row where each document's text is found again."""
    kept = np.concatenate([*keep, np.zeros(0, bool)])
    files = np.repeat([f"documents/{name}/part.parquet" for name in names], [int(m.sum()) for m in keep])
    rows = np.concatenate([*(np.arange(m.sum()) for m in keep), np.zeros(0, np.int64)]).astype(np.uint32)
    table = pa.table(
        {
            "id": pa.array(current.ids[kept]),
            "source": current.sources.filter(pa.array(kept)),
            "file": pa.array(files.tolist(), pa.string()),
            "row": pa.array(rows),
            **{name: current.column(name).filter(pa.array(kept)) for name in current.columns()},
        }
    ).replace_schema_metadata(None)
    directory = draft.path / "signatures"
    directory.mkdir(exist_ok=True)
    pq.write_table(table, directory / "part.parquet", compression="zstd", use_dictionary=["source", "file"])
    chain = {
        "format": 1,
        "before": earlier.digest if earlier else None,
        "documents": int(kept.sum()),
        "minhash": config.minhash.model_dump() if config.minhash else None,
    }
    (directory / "chain.json").write_text(json.dumps(chain, indent=1, sort_keys=True) + "\n")
    draft.part("signatures", "signatures/part.parquet", "signatures/chain.json")


def _stats(current: Seen, fates: Fates) -> DedupStats:
    kept = fates.kinds == KEPT
    bytes_each = current.column("bytes").to_numpy()
    return DedupStats(
        documents_in=len(kept),
        documents_out=int(kept.sum()),
        documents_dropped=int((~kept).sum()),
        bytes_in=int(bytes_each.sum()),
        bytes_out=int(bytes_each[kept].sum()),
        dropped_by_reason={
            REASONS[kind]: int((fates.kinds == kind).sum())
            for kind in (EXACT, NEAR)
            if (fates.kinds == kind).any()
        },
        compared=fates.compared,
    )
