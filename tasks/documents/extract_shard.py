"""One shard of `extract`, in a worker: some files become a file of documents, and a table of what became of each.

The files are read by a process that this worker starts (`reader`). Memory holds one row group of documents.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.atomic import sha256_file
from storage.errors import StageFailed
from tasks.documents.document import ANY, Columns, Document, Lost
from tasks.documents.encodings import decoded
from tasks.documents.limits import Limits
from tasks.documents.reader import Reader

DOCUMENTS_FILE = "documents.parquet"
FATES_FILE = "fates.parquet"
SAMPLES_FILE = "samples.json"
DOCUMENTS = pa.schema([("text", pa.large_string()), ("meta", pa.large_string())])
FATES = pa.schema(
    [
        ("file", pa.string()),  # its name in the source
        ("place", pa.string()),  # the file, or where in it: books.zip!one.pdf, mail.mbox#3
        ("kind", pa.string()),
        ("page", pa.int32()),  # null: the whole document, or all that was lost
        ("begin", pa.int64()),  # characters of the document's text
        ("end", pa.int64()),
        ("reason", pa.string()),  # null: it was read
        ("message", pa.string()),
    ]
)
_GROUP_BYTES = 8_000_000
_GROUP_ROWS = 8192
_GROUP_FATES = 100_000
_SAMPLE_CHARACTERS = 900
_SAMPLE_HEAD = 65_536
_SAMPLE_BEFORE = 160
_WRITTEN = frozenset(
    (
        "html",
        "rtf",
        "notebook",
        "markdown",
        "latex",
        "rst",
        "jats",
        "xml",
        "table",
        "wiki",
        "mbox",
        "mail",
        "text",
    )
)
"""Kinds whose bytes are a text, which a sample can show beside what came out."""


@dataclass(frozen=True)
class SourceFile:
    """A file: its name in the source, where it lies, and what it was when the shelf was planned; `sha256` None: not
    compared."""

    name: str
    path: str
    bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class ExtractJob:
    """Files that are read one after another."""

    source: str
    files: tuple[SourceFile, ...]
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    columns: Columns = ANY


def read_shard(job: ExtractJob, directory: Path) -> dict[str, Any]:
    """Read the files of a job into `DOCUMENTS_FILE`, with `FATES_FILE` and `SAMPLES_FILE` beside it. Returns counts.

    Raises StageFailed, which passes, if a file is not as it was when the shelf was planned, or the system cannot read it.
    """
    with _Writer(directory) as writer, Reader(job.limits, 2, job.columns) as reader:
        for file in job.files:
            _check_unchanged(file)
            writer.begin(file)
            for found in reader.read(Path(file.path), file.name):
                if isinstance(found, Document):
                    writer.add(found)
                elif (
                    found.reason == "unreadable"
                ):  # of the system, and not of its bytes, under which it would stay
                    raise StageFailed(
                        f"extract: {file.path}: {found.message}; the next start tries again", passing=True
                    )
                else:
                    writer.lose(found)
            _check_contents(file)
    return writer.counts()


def _check_unchanged(file: SourceFile) -> None:
    try:
        same = Path(file.path).stat().st_size == file.bytes
    except OSError:
        same = False
    if not same:
        raise _changed(file)


def _check_contents(file: SourceFile) -> None:
    """What was read stands under the digest of the file: an edit meanwhile must not."""
    try:
        same = file.sha256 is None or sha256_file(Path(file.path)) == file.sha256
    except OSError:
        same = False
    if not same:
        raise _changed(file)


def _changed(file: SourceFile) -> StageFailed:
    return StageFailed(
        f"extract: {file.path} has changed since it was looked at; the next start looks again", passing=True
    )


class _Writer:
    """Writes documents in row groups of about `_GROUP_BYTES` of text, and counts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: SourceFile | None = None
        self._texts: list[str] = []
        self._metas: list[str] = []
        self._fates: list[dict[str, Any]] = []
        self._pending = self._bytes = self._documents = self._pages = 0
        self._dropped: Counter[str] = Counter()
        self._pages_dropped: Counter[str] = Counter()
        self._encodings: Counter[str] = Counter()
        self._kinds: dict[str, Counter[str]] = {}
        self._seen: set[tuple[str, str]] = set()
        self._samples: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> _Writer:
        self._out = pq.ParquetWriter(self._directory / DOCUMENTS_FILE, DOCUMENTS, compression="zstd")
        self._told = pq.ParquetWriter(self._directory / FATES_FILE, FATES, compression="zstd")
        return self

    def __exit__(self, *_: object) -> None:
        if self._texts or not self._documents:
            self._flush()
        self._tell()
        self._out.close()
        self._told.close()
        text = json.dumps(self._samples, ensure_ascii=False)
        (self._directory / SAMPLES_FILE).write_text(text, encoding="utf-8")

    def begin(self, file: SourceFile) -> None:
        """What follows is of this file."""
        self._file = file

    def add(self, document: Document) -> None:
        """A document, with its pages."""
        assert self._file is not None
        counts = self._kinds.setdefault(document.kind, Counter())
        if (document.kind, self._file.name) not in self._seen:
            self._seen.add((document.kind, self._file.name))
            counts["files"] += 1
        counts["documents"] += 1
        counts["pages"] += len(document.pages)
        counts["characters"] += len(document.text)
        if encoding := document.meta.get("encoding"):
            self._encodings[encoding] += 1
        meta: dict[str, Any] = {"file": document.place, "kind": document.kind}
        meta |= {f"{key}_" if key in meta else key: value for key, value in document.meta.items()}
        if document.pages:
            meta.setdefault("pages", len(document.pages))
        self._texts.append(document.text)
        self._metas.append(json.dumps(meta, ensure_ascii=False))
        size = len(document.text.encode())
        self._fate(document.place, document.kind, None, 0, len(document.text))
        for page in document.pages:
            self._fate(document.place, document.kind, page.number, page.begin, page.end)
        self._documents, self._pages = self._documents + 1, self._pages + len(document.pages)
        self._bytes, self._pending = self._bytes + size, self._pending + size
        self._show(document)
        if self._pending >= _GROUP_BYTES or len(self._texts) >= _GROUP_ROWS:
            self._flush()

    def lose(self, lost: Lost) -> None:
        """A file, an entry or a page that cannot be read."""
        counts = self._kinds.setdefault(lost.kind, Counter())
        if lost.page is None:
            self._dropped[lost.reason] += 1
            counts["lost"] += 1
        else:
            self._pages_dropped[lost.reason] += 1
            counts["lost_pages"] += 1
        self._fate(lost.place, lost.kind, lost.page, None, None, lost.reason, lost.message)

    def counts(self) -> dict[str, Any]:
        """All that was counted, as JSON."""
        return {
            "documents": self._documents,
            "rows": self._documents,
            "bytes": self._bytes,
            "pages": self._pages,
            "dropped": dict(self._dropped),
            "pages_dropped": dict(self._pages_dropped),
            "kinds": {kind: dict(counts) for kind, counts in self._kinds.items()},
            "encodings": dict(self._encodings),
        }

    def _fate(
        self,
        place: str,
        kind: str,
        page: int | None,
        begin: int | None,
        end: int | None,
        reason: str | None = None,
        message: str | None = None,
    ) -> None:
        assert self._file is not None
        values = (self._file.name, place, kind, page, begin, end, reason, message)
        self._fates.append(dict(zip(FATES.names, values, strict=True)))
        if len(self._fates) >= _GROUP_FATES:
            self._tell()

    def _flush(self) -> None:
        table = pa.table([self._texts, self._metas], schema=DOCUMENTS)
        self._out.write_table(table, row_group_size=max(1, table.num_rows))
        self._texts, self._metas, self._pending = [], [], 0

    def _tell(self) -> None:
        self._told.write_table(pa.Table.from_pylist(self._fates, schema=FATES))
        self._fates = []

    def _show(self, document: Document) -> None:
        """Keep the beginning of the first longer document of each kind, and of its file where that is a text."""
        assert self._file is not None
        known = self._samples.get(document.kind)
        whole = document.kind in _WRITTEN and document.place == self._file.name
        if len(document.text) < _SAMPLE_CHARACTERS // 3:
            return
        if known is not None and (known["before"] is not None or not whole):
            return
        before = None
        if whole:
            try:
                with Path(self._file.path).open("rb") as file:
                    text, _ = decoded(file.read(_SAMPLE_HEAD))
            except OSError as error:
                raise _changed(self._file) from error
            begin = _beginning(text, document.text)
            before = text[begin : begin + _SAMPLE_CHARACTERS]
        self._samples[document.kind] = {
            "place": document.place,
            "characters": len(document.text),
            "pages": len(document.pages),
            "meta": {key: str(value)[:200] for key, value in list(document.meta.items())[:8]},
            "before": before,
            "after": document.text[:_SAMPLE_CHARACTERS],
        }


def _beginning(written: str, read: str) -> int:
    """Where in a file to begin to show it: a little before the first line that was read."""
    line = next((line.strip("#*-> \t") for line in read.split("\n") if line.strip("#*-> \t")), "")
    found = written.find(line[:40]) if line else -1
    return max(0, found - _SAMPLE_BEFORE)
