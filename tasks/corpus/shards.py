"""How the corpus stages divide their work: one shard of work per shard of documents.

A stage first judges the documents, in scratch shards that survive a crash and are deleted at commit. It then writes
the documents that it keeps.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.corpus.documents import read_documents, read_kept, write_documents

PART_FILE = "part.parquet"


def document_shards(documents: Input) -> dict[str, Path]:
    """Map from shard name to its file of documents, in the order of the documents."""
    return {Path(name).parent.name: documents.root / name for name in documents.files}


@dataclass(frozen=True)
class Selection:
    """The rows of a file of documents that are written. `bits`: one bit per row, packed by numpy.

    cuts: row → the characters [begin, end) of its text that are left out.
    """

    path: Path
    rows: int
    bits: bytes
    cuts: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, keep: np.ndarray, cuts: Mapping[int, tuple[int, int]] | None = None) -> Selection:
        """Select the rows of `path` where `keep` (bool, one per row) is true."""
        return cls(path, len(keep), np.packbits(keep).tobytes(), cuts or {})

    def mask(self) -> np.ndarray:
        """The selection as bool, shape (rows,)."""
        return np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.rows).astype(bool)


def write_selection(job: Selection, directory: Path) -> dict[str, Any]:
    """Shard function: writes the selected documents unchanged, but for what is cut out of them. A file whose rows are all
    selected is copied."""
    keep = job.mask()
    if keep.all() and not job.cuts:
        shutil.copyfile(job.path, directory / PART_FILE)
    elif job.cuts:
        texts = texts_of(job.path).to_list()
        for row, (begin, end) in job.cuts.items():
            texts[row] = texts[row][:begin] + texts[row][end:]
        kept = pa.array(texts, pa.large_string()).filter(pa.array(keep))
        write_documents(directory / PART_FILE, read_kept(job.path, keep, kept))
    else:
        write_documents(directory / PART_FILE, read_kept(job.path, keep))
    return {"rows": int(keep.sum())}


def texts_of(path: Path) -> pl.Series:
    """The texts of a file of documents, without the other columns."""
    return pl.from_arrow(read_documents([path], ["text"])["text"])  # type: ignore[return-value]


def read_rows(path: Path, rows: np.ndarray) -> pl.Series:
    """The texts of some rows (int64, ascending) of a file of documents. Reads only the row groups that contain them."""
    if not len(rows):
        return pl.from_arrow(read_documents([], ["text"])["text"])  # type: ignore[return-value]
    with pq.ParquetFile(path) as reader:
        groups = [reader.metadata.row_group(i).num_rows for i in range(reader.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(groups)])
        held, group = np.unique(np.searchsorted(edges, rows, side="right") - 1, return_inverse=True)
        # one call for all groups: a call costs as much as a group
        read = reader.read_row_groups(held.tolist(), columns=["text"])
    sizes = edges[held + 1] - edges[held]
    within = rows - edges[held][group] + (np.cumsum(sizes) - sizes)[group]
    return pl.from_arrow(read["text"].take(pa.array(within)))  # type: ignore[return-value]


def count_by(values: np.ndarray) -> dict[str, int]:
    """How often each string occurs, in alphabetical order."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}
