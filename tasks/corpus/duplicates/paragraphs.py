r"""Remove lines that occur in several documents (navigation, licences, notices), except where they occur first.

    1. Each file's documents are cut at line ends; lines that are long enough are normalised and hashed.
    2. In document order, a line is removed (with its line end) if its hash occurs in an earlier document that is no
       copy, in this slice or an earlier one. Repetitions within a document stay.
    3. A document without a visible line left is dropped.

A paragraph is a line, as in CCNet (Wenzek et al. 2020, arXiv:1911.00359, section 3.1). CCNet compares lines of web
text in lower case, without punctuation and accents, by 64 bits of their hash, and keeps one of each. CCNet replaces
every digit by 0; here numbers are kept, since table rows that differ only in numbers are not copies. dedup remembers
an edited document by the hashes of its original lines, and compares later documents with its edited text. Which
documents are copies and which lines are repeated depend on each other: see dedup.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.draft import Draft
from storage.settings import Settings, Whole, identity
from tasks.corpus.duplicates.minhash import simplify
from tasks.corpus.duplicates.signatures import KeptDocuments
from tasks.corpus.reading.batches import VISIBLE
from tasks.corpus.shards import texts_of

FILE = "paragraphs.arrow"
_LINES = pa.schema([("row", pa.int64()), ("line", pa.int64()), ("bytes", pa.int64()), ("hash", pa.uint64())])


class ParagraphConfig(Settings):
    """Which repeated lines are removed."""

    min_characters: Whole = identity(
        31,
        ge=1,
        le=1_000_000,
        description="Shorter lines stay, however many documents hold them; 30 characters are FineWeb's short line.",
    )


@dataclass(frozen=True)
class RepeatedLines:
    """The lines to remove. rows, lines, bytes: int64 each, in order: document in the slice, line number, bytes.
    emptied: rows of documents without any line left. new: uint64, ascending, hashes of lines that occur first in this
    slice."""

    rows: np.ndarray
    lines: np.ndarray
    bytes: np.ndarray
    emptied: np.ndarray
    new: np.ndarray

    @classmethod
    def nothing(cls) -> RepeatedLines:
        """No edits at all."""
        none = np.zeros(0, np.int64)
        return cls(none, none, none, none, none.astype(np.uint64))

    def same_edits(self, other: RepeatedLines) -> bool:
        """Whether both remove the same lines."""
        return np.array_equal(self.rows, other.rows) and np.array_equal(self.lines, other.lines)

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The lines to remove from some documents (int64, ascending): their index in `rows`, and the line number."""
        at = np.searchsorted(rows, self.rows)
        here = at < len(rows)
        here[here] = rows[at[here]] == self.rows[here]
        return at[here], self.lines[here]


@dataclass(frozen=True)
class LinesJob:
    """One file whose documents are cut into lines."""

    path: Path
    min_characters: int


@dataclass(frozen=True)
class ComparedLines:
    """The lines of a slice's documents that are compared, in order.

    rows, numbers, bytes: int64, shape (lines,): the document in the slice, the line in it, its bytes with the line
    end. group: int64, shape (lines,), the index of its hash in `distinct` (uint64, ascending). before: bool, one per
    hash, whether it occurred in an earlier slice. visible: int64, shape (documents,), the number of visible lines.
    """

    rows: np.ndarray
    numbers: np.ndarray
    bytes: np.ndarray
    group: np.ndarray
    distinct: np.ndarray
    before: np.ndarray
    visible: np.ndarray

    def repeated(self, keep: np.ndarray) -> RepeatedLines:
        """The lines to remove if only the documents of `keep` (bool, one per document of the slice) are kept."""
        on = np.flatnonzero(keep[self.rows])
        groups, at = np.unique(self.group[on], return_index=True)
        first = np.full(len(self.distinct), -1)
        first[groups] = self.rows[on[at]]
        again = on[self.before[self.group[on]] | (first[self.group[on]] != self.rows[on])]
        removed = np.bincount(self.rows[again], minlength=len(keep))
        emptied = np.flatnonzero((removed > 0) & (removed == self.visible))
        new = self.distinct[(first >= 0) & ~self.before]
        return RepeatedLines(self.rows[again], self.numbers[again], self.bytes[again], emptied, new)


def lines_of(
    draft: Draft, config: ParagraphConfig, files: Mapping[str, Path], edges: np.ndarray, kept: KeptDocuments
) -> ComparedLines:
    """The lines of all documents in `files`. `edges`, int64, shape (files + 1,): the first document of each file."""
    jobs = {name: LinesJob(path, config.min_characters) for name, path in files.items()}
    made = draft.scratch("lines", jobs, cut_lines)
    tables, visible = [_LINES.empty_table()], [np.zeros(0, np.int64)]
    for directory, low in zip(made.values(), edges[:-1].tolist(), strict=True):
        table = pq.read_table(directory / "lines.parquet", partitioning=None)
        tables.append(table.set_column(0, "row", pa.array(table["row"].to_numpy() + low)))
        visible.append(pq.read_table(directory / "visible.parquet", partitioning=None)["visible"].to_numpy())
    lines = pa.concat_tables(tables)
    distinct, group = np.unique(lines["hash"].to_numpy(), return_inverse=True)
    before = np.zeros(len(distinct), bool)
    for known in kept.tables(FILE):
        before[known.find(distinct)[1]] = True
    rows, numbers, sizes = (lines[name].to_numpy() for name in ("row", "line", "bytes"))
    return ComparedLines(rows, numbers, sizes, group, distinct, before, np.concatenate(visible))


def cut_lines(job: LinesJob, directory: Path) -> dict[str, Any]:
    """Shard function: writes `lines.parquet` (the compared lines) and `visible.parquet` (visible lines per document)."""
    lines, counts = _split(texts_of(job.path))
    first = np.cumsum(counts) - counts
    row = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(lines)) - np.repeat(first, counts)
    shown = lines.str.contains(VISIBLE).to_numpy()
    compared = np.flatnonzero(lines.str.strip_chars().str.len_chars().to_numpy() >= job.min_characters)
    plain = simplify(lines.gather(compared)).str.strip_chars()
    worded = (plain.str.len_bytes() > 0).to_numpy()
    compared, plain = compared[worded], plain.filter(pl.Series(worded))
    columns = [
        row[compared],
        number[compared],
        lines.str.len_bytes().to_numpy()[compared].astype(np.int64) + 1,
        line_hashes(plain),
    ]
    visible = np.bincount(row[shown], minlength=len(counts)).astype(np.int64)
    for name, table in (
        ("lines", pa.table([pa.array(column) for column in columns], schema=_LINES)),
        ("visible", pa.table({"visible": visible})),
    ):
        pq.write_table(table, directory / f"{name}.parquet", compression="none", use_dictionary=False)
    return {}


def line_hashes(plain: pl.Series) -> np.ndarray:
    """64-bit BLAKE2b of each text: uint64, shape (texts,)."""
    # a loop over lines: nearly all its time is spent in hashing
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in plain]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def without_lines(texts: pl.Series, rows: np.ndarray, lines: np.ndarray) -> pl.Series:
    """The texts without some lines (`rows`, `lines`: int64, shape (removed,), ascending). No text may lose all its
    lines."""
    if not len(rows):
        return texts
    edited, which = np.unique(rows, return_inverse=True)
    pieces, counts = _split(texts.gather(edited))
    stays = np.ones(len(pieces), bool)
    stays[(np.cumsum(counts) - counts)[which] + lines] = False
    left = pl.DataFrame(
        {"text": np.repeat(np.arange(len(edited)), counts)[stays], "line": pieces.filter(pl.Series(stays))}
    )
    joined = left.group_by("text", maintain_order=True).agg(pl.col("line").str.join("\n"))["line"]
    return texts.clone().scatter(edited, joined)


def _split(texts: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """All lines one after another, and the number of lines in each text: int64, shape (texts,)."""
    parts = texts.str.split("\n")
    return parts.explode(), parts.list.len().to_numpy().astype(np.int64)
