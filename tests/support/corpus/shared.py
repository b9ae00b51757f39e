"""Documents of the shared data."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import zstandard


def rows_of(directory: Path) -> list[dict]:
    rows: list[dict] = []
    for path in sorted(directory.glob("part-*")):
        if path.suffix == ".parquet":
            rows += pq.read_table(path).to_pylist()
        elif path.suffix == ".gz":
            rows += [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        else:
            with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
                rows += [json.loads(line) for line in io.TextIOWrapper(stream, encoding="utf-8")]
    return [row for row in rows if (row["text"] or "").strip()]
