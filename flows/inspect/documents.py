"""What a folder of documents holds: kinds, pages, characters, languages, what would be lost and why, and samples."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.corpus.rules.language import model
from tasks.documents.document import Document, Lost
from tasks.documents.kinds import NAMES
from tasks.documents.limits import Limits
from tasks.documents.reader import read_files

SAMPLES = 3
_SAMPLE_CHARACTERS = 600
_FEWEST_CHARACTERS = 200
"""A shorter text is shown as a sample only where there is no longer one, and its language is not asked."""
_SURE = 0.4
_LANGUAGES = 12
_PLACES = 5
_RECORD = re.compile(r"#\d+$")


@dataclass
class Kind:
    """Of one kind: files with documents, documents, pages (of those that have some), characters, and what is lost."""

    files: int = 0
    documents: int = 0
    pages: int = 0
    characters: int = 0
    lost_files: int = 0
    lost_pages: int = 0


@dataclass
class Lack:
    """One reason: how many files and pages it takes, and some of them, each with its message."""

    files: int = 0
    pages: int = 0
    places: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Sample:
    """Some of a document: its beginning, or of a long one some of what comes after a third."""

    place: str
    kind: str
    meta: dict[str, str]
    text: str


@dataclass
class Found:
    """All of it. `files` and `bytes` are those on the disk; an archive is one. `rows`: files of JSON lines or Parquet."""

    files: int = 0
    bytes: int = 0
    kinds: dict[str, Kind] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    encodings: dict[str, int] = field(default_factory=dict)
    lost: dict[str, Lack] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def documents(self) -> int:
        return sum(kind.documents for kind in self.kinds.values())

    @property
    def characters(self) -> int:
        return sum(kind.characters for kind in self.kinds.values())

    @property
    def pages(self) -> int:
        return sum(kind.pages for kind in self.kinds.values())

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON, with the sums."""
        sums = {"documents": self.documents, "pages": self.pages, "characters": self.characters}
        return {**asdict(self), **sums}


def files_below(path: Path) -> Iterator[tuple[Path, str]]:
    """Every file of a folder, with its place in it, in alphabetical order, without hidden ones, pipes and devices."""
    if not path.is_dir():
        yield path, path.name
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                yield file, str(file.relative_to(path))


def inspect(
    path: Path,
    processes: int,
    limits: Limits | None = None,
    *,
    seen: Callable[[int, str], None] = lambda files, place: None,
    give: Callable[[Document], None] = lambda document: None,
) -> Found:
    """Read everything below a path. `seen` is told of each file, `give` gets each document."""
    found = Found()
    firsts: dict[str, Sample] = {}
    last: dict[str, str] = {}

    def paths() -> Iterator[tuple[Path, str]]:
        for file, place in files_below(path):
            found.files += 1
            found.bytes += file.stat().st_size
            yield file, place

    number = 0
    for place, one in read_files(paths(), processes, limits):
        if one is None:
            number += 1
            seen(number, place)
        elif isinstance(one, Document):
            _count(one, found.kinds.setdefault(one.kind, Kind()), found, last)
            _remember(one, firsts)
            give(one)
        elif one.kind == "rows":
            found.rows.append(one.place)
        else:
            _miss(one, found)
    found.kinds = dict(sorted(found.kinds.items(), key=lambda item: (-item[1].characters, item[0])))
    for counts in (found.languages, found.encodings):
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        counts.clear()
        counts.update(ordered)
    found.lost = dict(sorted(found.lost.items(), key=lambda item: (-item[1].files - item[1].pages, item[0])))
    found.samples = [firsts[kind] for kind in found.kinds if kind in firsts][:SAMPLES]
    return found


def _count(document: Document, kind: Kind, found: Found, last: dict[str, str]) -> None:
    file = _RECORD.sub("", document.place)
    kind.files += last.get(document.kind) != file
    last[document.kind] = file
    kind.documents += 1
    kind.pages += len(document.pages)
    kind.characters += len(document.text)
    language = language_of(document)
    found.languages[language] = found.languages.get(language, 0) + len(document.text)
    if encoding := document.meta.get("encoding"):
        found.encodings[encoding] = found.encodings.get(encoding, 0) + 1


def _miss(lost: Lost, found: Found) -> None:
    lack = found.lost.setdefault(lost.reason, Lack())
    kind = found.kinds.setdefault(lost.kind, Kind())
    if lost.page is None:
        lack.files += 1
        kind.lost_files += 1
    else:
        lack.pages += 1
        kind.lost_pages += 1
    if len(lack.places) < _PLACES:
        page = {"page": lost.page} if lost.page is not None else {}
        lack.places.append({"place": lost.place, **page, "message": lost.message})


def _remember(document: Document, firsts: dict[str, Sample]) -> None:
    """Keep some of the first document of each kind that is long enough."""
    before = firsts.get(document.kind)
    if before is None or (len(before.text) < _FEWEST_CHARACTERS < len(document.text)):
        text = document.text
        if len(text) > 6 * _SAMPLE_CHARACTERS:  # behind a title page and a table of contents
            begin = text.find("\n\n", len(text) // 3)
            text = "… " + text[begin + 2 :] if begin > 0 else text
        if len(text) > _SAMPLE_CHARACTERS:
            text = text[:_SAMPLE_CHARACTERS].rsplit(" ", 1)[0] + " …"
        firsts[document.kind] = Sample(document.place, document.kind, document.meta, text)


def language_of(document: Document) -> str:
    """Code of a document's language by its beginning, or `?` where fastText is not sure or the text is short."""
    text = " ".join(document.text[:4000].split())
    if len(text) < 40:
        return "?"
    (label,), (score,) = model().predict(text, k=1, threshold=0.0)
    return str(label).removeprefix("__label__") if score >= _SURE else "?"


# ── Shown ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shown(found: Found) -> list[Any]:
    """Tables and lines for a terminal (rich)."""
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    whole = f"{_counted(found.documents, 'document')}, {_counted(found.characters, 'character')}"
    parts.append(Text(f"{_counted(found.files, 'file')}, {_size(found.bytes)}: {whole}"))
    kinds = Table(title="kinds", title_justify="left")
    for name in ("kind", "files", "documents", "pages", "characters", "lost"):
        kinds.add_column(name, justify="left" if name == "kind" else "right")
    for name, kind in found.kinds.items():
        lost = ", ".join(
            _counted(count, what)
            for count, what in ((kind.lost_files, "file"), (kind.lost_pages, "page"))
            if count
        )
        counts = (kind.files, kind.documents, kind.pages, kind.characters)
        kinds.add_row(NAMES.get(name, name), *map(_number, counts), lost)
    if found.rows:
        kinds.add_row(NAMES["rows"], f"{len(found.rows):,}", "", "", "", "")
    if found.kinds or found.rows:
        parts.append(kinds)
    if found.rows:
        parts.append(Text("Rows are read by a run as they are: name their files in a source of their own."))
    if found.languages:
        letters = max(1, sum(found.languages.values()))
        shares = [
            f"{'unknown' if name == '?' else name} {_percent(count / letters)}"
            for name, count in found.languages.items()
        ]
        more = f" and {len(shares) - _LANGUAGES} more" if len(shares) > _LANGUAGES else ""
        parts.append(Text(f"languages, by characters: {', '.join(shares[:_LANGUAGES])}{more}"))
    if found.encodings:
        counted = ", ".join(f"{name} {count:,}" for name, count in found.encodings.items())
        parts.append(Text(f"encodings of texts: {counted}"))
    if found.lost:
        table = Table(title="what would be lost", title_justify="left")
        table.add_column("reason")
        table.add_column("count", justify="right")
        table.add_column("where", overflow="fold")
        for reason, lack in found.lost.items():
            told = [_counted(n, what) for n, what in ((lack.files, "file"), (lack.pages, "page")) if n]
            lines = []
            for place in lack.places:
                page = f", page {place['page']}" if "page" in place else ""
                lines.append(f"{escape(place['place'])}{page}: [dim]{escape(place['message'])}[/dim]")
            if others := lack.files + lack.pages - len(lack.places):
                lines.append(f"and {others:,} more")
            table.add_row(reason, "\n".join(told), "\n".join(lines))
        parts.append(table)
    for sample in found.samples:
        said = ", ".join(f"{key}: {value}" for key, value in sample.meta.items() if key != "encoding")
        parts.append(Text(f"{sample.place} ({NAMES[sample.kind]})", style="bold"))
        if said:
            parts.append(Padding(Text(said, style="dim"), (0, 2)))
        parts.append(Padding(Text(sample.text), (0, 2, 1, 2)))
    return parts


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _number(count: int) -> str:
    return f"{count:,}" if count else ""


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def _size(size: int) -> str:
    for unit, least in (("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size} bytes"
