"""Sources to ingest, and what was ingested of them."""

from __future__ import annotations

import gzip
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.artifact import Artifact
from tasks.corpus.documents import read_documents
from tasks.corpus.ingest import IngestConfig, SourceConfig


def source_of(*files: str, **over: object) -> SourceConfig:
    return SourceConfig(**{"name": "books", "role": "domain", "weight": 1.0, "files": files, **over})


def config_of(source: SourceConfig, slice_bytes: int | str = 10**9, **over: object) -> IngestConfig:
    return IngestConfig.of(source, **{"slice_bytes": slice_bytes, "seed": 0, **over})


def documents(artifacts: list[Artifact]) -> pa.Table:
    """The documents of all these slices, in order."""
    return pa.concat_tables(read_documents(artifact.part("documents").paths) for artifact in artifacts)


def digests(artifact: Artifact) -> dict[str, str]:
    """The digest of every part, by its name."""
    return {name: part.digest for name, part in artifact.manifest.parts.items()}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six files of several kinds, 300 documents of about 1,000 bytes, each naming its file and row."""
    root = tmp_path / "corpus"
    (root / "deep").mkdir(parents=True)
    rows = {
        name: [{"text": f"{name} {row} " + "word " * 200, "row": row} for row in range(50)]
        for name in ("a", "b", "c", "d", "e", "f")
    }
    pq.write_table(pa.Table.from_pylist(rows["a"]), root / "a.parquet", row_group_size=15)
    pq.write_table(pa.Table.from_pylist(rows["b"]), root / "b.parquet")
    for name in ("c", "d"):
        (root / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows[name]))
    packed = gzip.compress(b"\n".join(map(orjson.dumps, rows["e"])))
    (root / "deep" / "e.jsonl.gz").write_bytes(packed)
    (root / "deep" / "f.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows["f"])))
    return root
