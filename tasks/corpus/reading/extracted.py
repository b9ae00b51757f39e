"""Documents that the stage `extract` read out of files, and the shelf of a source's files that a slice reads from.

A shelf is a group of files of a source that is no longer one of rows alone. Its documents (Parquet, in row groups) and
its files of rows, which are read as they are, are the members of one `Origin`, in the source's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.corpus.reading.batches import Batch, Unit, checked
from tasks.corpus.reading.fields import KeptFields
from tasks.corpus.reading.origins import Member, survey_file
from tasks.corpus.reading.parquet import read_footer

KIND = "extracted"
FILE = "file"
"""The field of a document's meta that says which file, and where in it, it was read out of."""
_WAITED_FOR = "extract"
"""Stands for the files of documents that are not made yet, in a plan."""


@dataclass(frozen=True)
class Shelf:
    """The members of one shelf. `extracted`: the part `documents` of `extract`; `rows`: files of rows by name.

    `waits`: bytes of text that are expected of an `extract` that is only planned.
    """

    extracted: Input | None
    rows: Mapping[str, Path]
    text_field: str = "text"
    waits: int | None = None
    paths: Mapping[str, Path] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        made = self.extracted
        own: dict[str, Path] = {}
        if made is not None and self.waits is None:
            own = dict(zip(made.files, made.paths, strict=True))
        elif made is not None:
            own = {_WAITED_FOR: made.root}
        object.__setattr__(self, "paths", {**own, **self.rows})

    def names(self) -> list[str]:
        """Files of documents, and then those of rows."""
        return list(self.paths)

    def survey(self, name: str) -> Member:
        """Kind, pieces and bytes of text."""
        if name in self.rows:
            return survey_file(self.rows[name], self.text_field)
        if self.waits is not None:
            return Member(KIND, (max(1, self.waits),))
        footer = read_footer(self.paths[name], "text")
        return Member(KIND, footer.text_bytes if footer and footer.text_bytes else (1,))


def read_extracted(unit: Unit, kept: KeptFields) -> Iterator[Batch]:
    """The documents of one row group from `unit.row` on. `file` of their meta always stays: it says where each is from."""
    assert isinstance(unit.path, Path)
    with pq.ParquetFile(unit.path) as file:
        if unit.piece >= file.num_row_groups:
            return
        table = file.read_row_group(unit.piece, columns=["text", "meta"])
    table = table.slice(unit.row)
    count = table.num_rows
    if not count:
        return
    metas = [orjson.loads(meta) for meta in table["meta"].to_pylist()]
    files = [str(meta.get(FILE)) for meta in metas]
    if kept.names is None:
        kept_metas = table["meta"].combine_chunks().cast(pa.large_string())
    else:
        few = [{FILE: file} | kept.of(meta) for file, meta in zip(files, metas, strict=True)]
        kept_metas = pa.array([orjson.dumps(meta).decode() for meta in few], pa.large_string())
    yield checked(
        (unit.row, count, np.arange(unit.row, unit.row + count, dtype=np.int64), None),
        table["text"].combine_chunks().cast(pa.large_string()),
        kept_metas,
        [],
        lambda row: files[row - unit.row],
    )
