"""What a source's files are, before anything of them is read: rows, documents of some kind, or nothing that is read.

    rows        JSON lines and Parquet: ingest reads them as they are
    documents   every other kind that is read: `extract` makes text of them
    aside       images, recordings, databases, unknown bytes: named, and not read

A source whose files are all rows and plain texts is as it always was (`of_source` gives None): no `extract` is made for it.
Only the beginning of each file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from storage.errors import ConfigError
from tasks.corpus.reading import kinds as today
from tasks.corpus.reading.kinds import COMPRESSED_SUFFIXES, LINES_SUFFIXES, PARQUET_SUFFIXES, TEXT_SUFFIXES
from tasks.corpus.reading.origins import named_files, survey_file
from tasks.documents.document import Unreadable
from tasks.documents.kinds import ARCHIVES, kind_of, zip_kind
from tasks.documents.limits import HEAD_BYTES
from tasks.documents.packages import missing

T = TypeVar("T")
ROWS = "rows"
_TEXTS = frozenset(("text", "markdown", "table", "latex", "rst", "xml", ROWS))
"""Kinds that a file which should be rows of JSON, by its name, may seem to be where it is damaged or printed otherwise."""
_OF_SIZE = {
    "pdf": 0.06,
    "epub": 0.5,
    "docx": 0.3,
    "odt": 0.3,
    "pptx": 0.02,
    "odp": 0.02,
    "sheets": 0.8,
    "html": 0.3,
    "rtf": 0.3,
    "msg": 0.2,
    "notebook": 0.3,
    "jats": 0.6,
    "xml": 0.5,
    "wiki": 0.6,
    "warc": 0.15,
    "mbox": 0.4,
    "mail": 0.4,
    "zip": 1.0,
    "tar": 0.5,
    "gz": 1.5,
    "bz2": 2.0,
    "xz": 2.5,
    "zst": 1.5,
}
"""About how many bytes of text a byte of a kind gives; 1 for the others. It only decides how many files lie on a shelf."""


@dataclass(frozen=True)
class Aside:
    """Why a file is not read."""

    reason: str
    message: str


@dataclass(frozen=True)
class Listing:
    """The files of a source of documents, by name, in the order of its patterns."""

    paths: Mapping[str, Path]
    rows: Mapping[str, int]
    """Files of rows: about how many bytes of text each has."""
    kinds: Mapping[str, str]
    """Kind of each file of documents, as far as its beginning tells."""
    aside: Mapping[str, Aside]
    sizes: Mapping[str, int] = field(repr=False)
    """Bytes of each file on the disk."""

    @property
    def size(self) -> int:
        """About how many bytes of text all of it has."""
        return sum(self.rows.values()) + sum(map(self.estimate, self.kinds))

    def estimate(self, name: str) -> int:
        """About how many bytes of text a file gives."""
        if name in self.rows:
            return self.rows[name]
        if name in self.aside:
            return 0
        return max(1, round(self.sizes[name] * _OF_SIZE.get(self.kinds[name], 1.0)))


def of_source(source: str, patterns: tuple[str, ...], base: Path, text_field: str) -> Listing | None:
    """The files of a source of documents; None where there is nothing but rows and plain texts, or nothing that is read.

    Raises ConfigError if there are documents and the packages that read them are not installed, and for what has to be
    mended first: a pointer in place of data, a link to nothing, a file that may not be read.
    """
    paths = named_files(source, patterns, base)
    refused = {name: why for name, path in paths.items() if (why := _refusal(path)) is not None}
    if not refused:
        return None
    looked = {name: look(paths[name]) for name in refused}
    plain = {name for name in paths if name not in refused and suffix_of(paths[name]) in TEXT_SUFFIXES}
    if not any(isinstance(found, str) for found in looked.values()) and not plain:
        return None
    broken = {
        paths[name]: (what, way)
        for name, (what, way) in refused.items()
        if "pointer" in what or what.startswith("not readable")
    }
    if broken:
        raise today.unreadable(source, broken, len(paths), base)
    if absent := missing():
        name = next(name for name in refused)
        raise ConfigError(
            f"corpus.sources: {source}: {name} is {refused[name][0]}, and reading it needs {', '.join(absent)}: "
            "pip install 'onward[documents]'"
        )
    looked |= {name: look(paths[name]) for name in plain}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    rows, kinds, aside = {}, {}, {}
    for name, path in paths.items():
        found = looked.get(name)
        if found is None or found == ROWS:
            if not sizes[name]:
                aside[name] = Aside("empty", "the file is empty")
            else:
                rows[name] = sum(survey_file(path, text_field).estimates)
        elif isinstance(found, Aside):
            aside[name] = found
        else:
            kinds[name] = found
    return Listing(paths, rows, kinds, aside, sizes)


def look(path: Path) -> str | Aside:
    """The kind of a file by its beginning, or why it is not read. What a zip of office software holds is told too."""
    return _remembered(_look, path)


def _remembered(ask: Callable[[Path], T], path: Path) -> T:
    """Ask of a file what its first bytes say, once in a process as long as it does not change."""
    try:
        status = path.stat()
    except OSError:
        return ask(path)
    answer: T = _asked(ask, path, status.st_ino, status.st_size, status.st_mtime_ns)
    return answer


@lru_cache(maxsize=1 << 17)
def _asked(ask: Callable[[Path], Any], path: Path, *status: int) -> Any:
    return ask(path)


def _look(path: Path) -> str | Aside:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            kind = kind_of(head, whole=len(head) < HEAD_BYTES)
            if kind == "zip":
                file.seek(0)
                kind = zip_kind(file)
            elif kind == "ole":
                from tasks.documents.ole import ole_kind

                file.seek(0)
                kind = ole_kind(file)
    except Unreadable as error:
        return Aside(error.reason, error.message)
    except OSError as error:
        return Aside("unreadable", f"the file cannot be opened ({error.strerror or error})")
    suffix = suffix_of(path)
    if suffix in (*LINES_SUFFIXES, *PARQUET_SUFFIXES) and kind in _TEXTS:
        why = _refusal(path)
        return ROWS if why is None else Aside("not_read", f"it is {why[0]}: {why[1]}")
    if kind == ROWS and (why := _refusal(path)) is not None:
        return Aside("not_read", f"it is {why[0]}: {why[1]}")
    return kind


def suffix_of(path: Path) -> str:
    """The suffix in small letters; of a compressed file that which stands before."""
    names = [one.lower() for one in path.suffixes]
    while len(names) > 1 and names[-1] in COMPRESSED_SUFFIXES:
        names.pop()
    return names[-1] if names else ""


def _refusal(path: Path) -> tuple[str, str] | None:
    return _remembered(_refused, path)


def _refused(path: Path) -> tuple[str, str] | None:
    try:
        return today.refusal(path)
    except OSError as error:
        return f"not readable ({error.strerror or error})", "let this user read it"


def counted(listing: Listing) -> Iterator[tuple[str, int, int]]:
    """Each kind with its number of files and their bytes, the largest first; rows as one kind. Not what is set aside."""
    found: dict[str, tuple[int, int]] = {}
    for name, kind in (*((name, ROWS) for name in listing.rows), *listing.kinds.items()):
        files, size = found.get(kind, (0, 0))
        found[kind] = files + 1, size + listing.sizes[name]
    for kind, (files, size) in sorted(found.items(), key=lambda one: (-one[1][1], one[0])):
        yield kind, files, size


def is_container(kind: str) -> bool:
    """Whether a file of this kind may hold files of any kind."""
    return kind in (*ARCHIVES, "warc", "mbox", "mail", "msg")
