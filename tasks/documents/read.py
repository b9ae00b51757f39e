"""From an open file to its documents, whatever it is: the one way in.

1. The kind is told by the bytes (`kinds`). An archive is opened, and each of its entries begins here again.
2. The extractor of the kind makes drafts of the bytes.
3. A draft with text is a `Document`; everything else is a `Lost` with its reason. Nothing else ends the reading.

The order is that of the bytes, and the same bytes always give the same documents.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import BinaryIO

from tasks.documents import archives
from tasks.documents.document import ANY, Columns, Document, Draft, Lost, Unreadable, as_document, written
from tasks.documents.kinds import ARCHIVES, NAMES, STREAMED, kind_of, zip_kind
from tasks.documents.limits import HEAD_BYTES, Limits


@dataclass(frozen=True)
class Extractor:
    """How a kind is read. `version` is raised when its output changes; `packages`: what its output depends on besides."""

    function: str
    version: int
    packages: tuple[str, ...] = ()
    needs: str = "data"
    """What it is called with: `data`, `zip` (a file, and the limit of a part) or `stream` (a file that is read forward)."""


EXTRACTORS = {
    "text": Extractor("plain.read_text", 1, ("chardet",)),
    "markdown": Extractor("plain.read_markdown", 1, ("chardet",)),
    "table": Extractor("plain.read_table", 1, ("chardet",), "table"),
    "notebook": Extractor("plain.read_notebook", 1, ("chardet",)),
    "html": Extractor("html.read_html", 1, ("lxml", "chardet")),
    "pdf": Extractor("pdf.read_pdf", 1, ("pypdfium2",), "pdf"),
    "epub": Extractor("epub.read_epub", 1, ("lxml", "chardet"), "epub"),
    "docx": Extractor("office.read_docx", 1, ("lxml",), "zip"),
    "pptx": Extractor("office.read_pptx", 1, ("lxml",), "zip"),
    "odt": Extractor("office.read_odf", 1, ("lxml",), "zip"),
    "odp": Extractor("office.read_odf", 1, ("lxml",), "zip"),
    "sheets": Extractor("sheets.read_sheets", 1, ("python-calamine", "olefile"), "zip"),
    "rtf": Extractor("rtf.read_rtf", 1, ("striprtf",)),
    "msg": Extractor("ole.read_msg", 1, ("olefile", "lxml", "chardet"), "zip"),
    "latex": Extractor("latex.read_latex", 1, ("chardet",)),
    "rst": Extractor("rst.read_rst", 1, ("chardet",)),
    "jats": Extractor("jats.read_jats", 1, ("lxml", "chardet")),
    "xml": Extractor("jats.read_xml", 1, ("lxml", "chardet")),
    "wiki": Extractor("wiki.read_wiki", 1, ("lxml", "mwparserfromhell", "chardet"), "stream"),
    "warc": Extractor("warc.read_warc", 1, ("warcio", "chardet"), "stream"),
    "mbox": Extractor("mail.read_mbox", 1, ("lxml", "chardet"), "stream"),
    "mail": Extractor("mail.read_mail", 1, ("lxml", "chardet"), "stream"),
}


@cache
def extractor_version(kind: str) -> str:
    """What the documents of a kind depend on besides the bytes: `pdf 1, pypdfium2 5.15.2`."""
    one = EXTRACTORS[kind]
    return ", ".join((f"{kind} {one.version}", *(f"{name} {version(name)}" for name in one.packages)))


@cache
def _function(name: str) -> Callable[..., Draft | Iterator[Draft]]:
    module, function = name.split(".")
    found: Callable[..., Draft | Iterator[Draft]] = getattr(
        import_module(f"tasks.documents.{module}"), function
    )
    return found


class _TooMuch(Unreadable):
    """A limit of the whole file: nothing more of it is read."""


@dataclass
class _Reading:
    limits: Limits
    alive: Callable[[int, str], None]
    skip: int
    columns: Columns = ANY
    entries: int = 0
    unpacked: int = 0
    place: str = ""
    closed: bool = field(default=False)

    def enter(self, place: str) -> bool:
        """Count an entry; whether it is to be read."""
        self.entries += 1
        self.place = place = written(place)
        if self.entries > self.limits.entries:
            raise _TooMuch(
                "too_many", f"the file holds more than {self.limits.entries:,} entries; the rest is not read"
            )
        self.alive(self.entries, place)
        return self.entries > self.skip

    def still(self) -> None:
        self.alive(self.entries, self.place)

    def count(self, size: int) -> None:
        self.unpacked += size
        if self.unpacked > self.limits.unpacked_bytes:
            raise _TooMuch(
                "expands_too_much",
                f"the file unpacks to more than {self.limits.unpacked_bytes:,} bytes; the rest is not read",
            )


def read(
    file: BinaryIO,
    place: str,
    limits: Limits | None = None,
    *,
    alive: Callable[[int, str], None] = lambda entries, place: None,
    skip: int = 0,
    columns: Columns = ANY,
) -> Iterator[Document | Lost]:
    """Documents of a file that can be sought in, and what is lost of it.

    `place` is how the file is called; entries of archives get `place!name`, records of dumps `place#number`. `alive` is
    called with the number and place of each entry before it is read, and now and then while it is; the first `skip`
    entries are passed over. `columns`: what of a table is text. Raises nothing for what is in the file; OSError where it
    cannot be read.
    """
    reading = _Reading(limits or Limits(), alive, skip, columns)
    try:
        for found in _entry(file, place, 0, reading, {}):
            yield _as_written(found)
    except _TooMuch as error:
        yield Lost(reading.place, "other", error.reason, error.message)


def _entry(
    file: BinaryIO, place: str, depth: int, reading: _Reading, meta: dict[str, str]
) -> Iterator[Document | Lost]:
    """One file, at whatever depth."""
    wanted = reading.enter(place)
    kind = "other"
    try:
        if depth > reading.limits.depth:
            raise Unreadable(
                "too_deep", f"archives lie in archives {reading.limits.depth} deep; this one is not opened"
            )
        head = file.read(HEAD_BYTES)
        kind = kind_of(head, whole=len(head) < HEAD_BYTES)
        source: BinaryIO
        if depth == 0 and file.seekable():
            file.seek(0)
            source = file
        elif kind in STREAMED:
            source = io.BufferedReader(archives.Counted(_Joined(head, file).read, lambda size: None), 1 << 16)
        else:
            source = io.BytesIO(_whole(head, file, reading.limits))
        if kind == "zip":
            kind = zip_kind(source)
            source.seek(0)
        elif kind == "ole":
            from tasks.documents.ole import ole_kind

            kind = ole_kind(source)
            source.seek(0)
        if kind == "rows":
            raise Unreadable(
                "not_read", "rows of JSON or Parquet are read by a source of their own, not as documents"
            )
        before = reading.entries
        if kind in ARCHIVES:
            yield from _archive(kind, source, place, depth, reading)
        elif wanted or kind in STREAMED:
            yield from _documents(kind, source, place, depth, reading, meta)
        if wanted and reading.entries == before and (kind in ARCHIVES or kind in STREAMED):
            yield Lost(place, kind, "empty", f"the {NAMES[kind]} holds nothing that is read")
    except _TooMuch:
        raise
    except Unreadable as error:
        if wanted:
            yield Lost(place, "empty" if error.reason == "empty" else kind, error.reason, error.message)
    except MemoryError:
        if wanted:
            yield Lost(place, kind, "too_much_memory", "reading it takes more memory than is allowed")
    except RecursionError:
        if wanted:
            yield Lost(place, kind, "damaged", f"the {NAMES.get(kind, kind)} is nested too deep")
    except Exception as error:  # whatever a library raises for bytes that nobody foresaw
        if isinstance(error, OSError) and depth == 0 and kind == "other":
            raise
        if wanted:
            told = f"{type(error).__name__}: {error}"[:300]
            yield Lost(place, kind, "damaged", f"the {NAMES.get(kind, kind)} cannot be read ({told})")


def _archive(
    kind: str, file: BinaryIO, place: str, depth: int, reading: _Reading
) -> Iterator[Document | Lost]:
    if kind == "zip":
        for name, opened in archives.zip_entries(file):
            inner = f"{place}!{name}"
            if isinstance(opened, Unreadable):
                if reading.enter(inner):
                    yield Lost(inner, "other", opened.reason, opened.message)
                continue
            try:
                stream = opened(reading.count)
            except archives.DAMAGE as error:
                if reading.enter(inner):
                    yield Lost(inner, "other", "damaged", f"the file in the zip cannot be unpacked ({error})")
                continue
            with stream:
                yield from _entry(stream, inner, depth + 1, reading, {})
    elif kind == "tar":
        for name, entry in archives.tar_entries(_counted(file, depth, reading)):
            yield from _entry(entry, f"{place}!{name}", depth + 1, reading, {})
    else:
        yield from _entry(archives.unpacked(kind, file, reading.count), place, depth + 1, reading, {})


def _counted(file: BinaryIO, depth: int, reading: _Reading) -> BinaryIO:
    """A tar at the top unpacks to what it is; deeper ones are counted where they are unpacked."""
    return file


def _documents(
    kind: str, file: BinaryIO, place: str, depth: int, reading: _Reading, meta: dict[str, str]
) -> Iterator[Document | Lost]:
    extractor = EXTRACTORS[kind]
    function = _function(extractor.function)
    if extractor.needs == "stream":
        yield from _records(kind, function, file, place, depth, reading)
        return
    if extractor.needs == "zip":
        drafts = function(file, reading.limits.file_bytes)
    elif extractor.needs == "epub":
        drafts = function(file, reading.limits.file_bytes, reading.still)
    elif extractor.needs == "table":
        drafts = function(_whole(b"", file, reading.limits), reading.columns)
    elif extractor.needs == "pdf":
        drafts = function(_whole(b"", file, reading.limits), reading.still)
    else:
        drafts = function(_whole(b"", file, reading.limits))
    if isinstance(drafts, Draft):
        yield from _finished(drafts, place, kind, reading.limits, meta)
    else:
        number = 0
        for number, draft in enumerate(drafts, 1):
            yield from _finished(draft, f"{place}#{number}", kind, reading.limits, meta)
        if not number:
            yield Lost(place, kind, "empty", f"the {NAMES[kind]} has a head, and no row below it")


def _records(
    kind: str, function: Callable[..., object], file: BinaryIO, place: str, depth: int, reading: _Reading
) -> Iterator[Document | Lost]:
    """Records of a dump: drafts, or bytes of whatever kind with what is known of them, or why one cannot be read."""
    found: Iterator[tuple[str, Draft | Unreadable | tuple[bytes, dict[str, str]]]] = function(
        file, reading.limits
    )  # type: ignore[assignment]
    for name, record in found:
        inner = f"{place}#{name}"
        if isinstance(record, tuple):
            yield from _entry(io.BytesIO(record[0]), inner, depth + 1, reading, record[1])
        elif reading.enter(inner):
            if isinstance(record, Unreadable):
                yield Lost(inner, kind, record.reason, record.message)
            else:
                yield from _finished(record, inner, kind, reading.limits, {})


def _finished(
    draft: Draft, place: str, kind: str, limits: Limits, meta: dict[str, str]
) -> Iterator[Document | Lost]:
    document = as_document(draft, place, kind)
    if meta:
        document = replace(document, meta={**document.meta, **meta})
    for page in draft.without_text:
        yield Lost(place, kind, "no_text", "the page is an image, as of a scan: it has no text", page)
    if not document.text.strip():
        yield Lost(place, kind, "empty", f"the {NAMES[kind]} has no visible character")
    elif (
        len(document.text) > limits.text_bytes // 4
        and len(document.text.encode("utf-8", "replace")) > limits.text_bytes
    ):
        yield Lost(
            place, kind, "text_too_long", f"its text is longer than {limits.text_bytes:,} bytes: split it"
        )
    else:
        yield document


def _as_written(found: Document | Lost) -> Document | Lost:
    """Without what no text can hold: names in archives, and what a library gives, may have bytes of no encoding."""
    if isinstance(found, Lost):
        return replace(found, place=written(found.place), message=written(found.message))
    meta = {written(key): written(value) for key, value in found.meta.items()}
    return replace(found, place=written(found.place), text=written(found.text), meta=meta)


def _whole(head: bytes, file: BinaryIO, limits: Limits) -> bytes:
    """All bytes of a file that is read as a whole."""
    rest = file.read(max(0, limits.file_bytes - len(head)) + 1)
    if len(head) + len(rest) > limits.file_bytes:
        raise Unreadable(
            "too_large", f"it is larger than {limits.file_bytes:,} bytes, the most that is read as a whole"
        )
    return head + rest if head else rest


class _Joined:
    """What was read of a file already, and then the rest of it."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head, self._file = head, file

    def read(self, size: int) -> bytes:
        if self._head:
            found, self._head = self._head[:size], self._head[size:]
            return found
        return self._file.read(size)
