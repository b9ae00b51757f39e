"""Slices of documents for tests: a few Parquet files and the reference to them that a stage takes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.corpus.documents import document_ids, read_documents, write_documents


def slice_of(
    root: Path,
    texts: Sequence[str],
    *,
    source: str = "tales",
    first: int = 0,
    shards: int = 3,
    own_ids: Sequence[str] | None = None,
) -> Input:
    """Documents with ordinals from `first` on, in so many files, as the part `documents` of a stage before."""
    ids = document_ids(source, first, len(texts))
    names = own_ids or [str(first + i) for i in range(len(texts))]
    files = []
    for number, rows in enumerate(np.array_split(np.arange(len(texts)), shards) if shards else ()):
        files.append(f"documents/{number:04d}/part.parquet")
        table = pa.table(
            {
                "id": pa.array(ids[rows]),
                "source": pa.array([source] * len(rows), pa.string()),
                "text": pa.array([texts[i] for i in rows], pa.large_string()),
                "meta": pa.array([json.dumps({"id": names[i]}) for i in rows], pa.large_string()),
            }
        )
        (root / files[-1]).parent.mkdir(parents=True, exist_ok=True)
        write_documents(root / files[-1], table)
    digest = hashlib.sha256(b"".join((root / name).read_bytes() for name in files)).hexdigest()
    return Input("ingest", digest, "documents", digest, root, tuple(files), {})


def part_in(path: Path, part: str, suffix: str = ".parquet") -> Input:
    """A part of a draft in `path`, as the next stage takes it."""
    kinds = (suffix, ".json", ".arrow") if part in ("signatures", "known") else (suffix, ".json")
    files = sorted(file for file in (path / part).rglob("*") if file.suffix in kinds)
    files = [file for file in files if not file.name.startswith(".")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return Input("made", digest, part, digest, path, tuple(str(file.relative_to(path)) for file in files), {})


def texts_in(path: Path, part: str = "documents") -> list[str]:
    """Texts of a part of a draft, in order."""
    return read_documents(sorted((path / part).rglob("*.parquet")), ["text"])["text"].to_pylist()


def dropped_in(path: Path) -> list[dict]:
    """Rows of `dropped.parquet`."""
    return pq.read_table(path / "dropped.parquet").to_pylist()


def edited_in(path: Path) -> list[dict]:
    """Rows of `edited.parquet`."""
    return pq.read_table(path / "edited.parquet").to_pylist()


def bytes_in(path: Path) -> dict[str, bytes]:
    """Every file of the parts of a draft: what stands outside the scratch space and the shards' records."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and "scratch" not in file.parts and not file.name.startswith(".")
    }
