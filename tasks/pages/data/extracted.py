"""What `extract` read out of files: kinds, what was lost, and samples before and after."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.documents.kinds import NAMES
from tasks.pages.blocks import Block, Heading, Quote, Table, Text
from tasks.pages.data.inputs import SliceParts
from tasks.pages.wording import words

_SAMPLES = 8
_NAMED = 6


@dataclass(frozen=True)
class KindRead:
    """Of one kind: files with documents, documents, pages, characters; files and entries that were lost, and pages."""

    kind: str
    files: int = 0
    documents: int = 0
    pages: int = 0
    characters: int = 0
    lost: int = 0
    lost_pages: int = 0


@dataclass(frozen=True)
class FileSample:
    """Some of a document. `before`: of its file, where that is a text. `said`: what the file says of itself."""

    place: str
    kind: str
    said: str
    characters: int
    pages: int
    before: str | None
    after: str


@dataclass(frozen=True)
class Extracted:
    """All shelves together."""

    files: int
    kinds: tuple[KindRead, ...]
    encodings: tuple[tuple[str, int], ...]
    pages_lost: tuple[tuple[str, int], ...]
    samples: tuple[FileSample, ...]


def extracted_of(slices: Sequence[SliceParts], excerpt: Callable[[str], str]) -> Extracted | None:
    """The facts; None where nothing was extracted. `excerpt` cuts a text, and masks it if the filter does."""
    made = [one.stages["extract"] for one in slices if "extract" in one.stages]
    if not made:
        return None
    kinds: dict[str, Counter[str]] = {}
    encodings, pages = Counter[str](), Counter[str]()
    samples: dict[str, FileSample] = {}
    for own in made:
        for kind, counts in own.stats["kinds"].items():
            kinds.setdefault(kind, Counter()).update(counts)
        encodings.update(own.stats["encodings"])
        pages.update(own.stats["pages_dropped_by_reason"])
        found = json.loads(own.samples.only().read_bytes()) if own.samples is not None else {}
        for kind, one in found.items():
            samples.setdefault(kind, _sample(kind, one, excerpt))
    ordered = sorted(kinds, key=lambda kind: (-kinds[kind]["characters"], -kinds[kind]["lost"], kind))
    return Extracted(
        files=sum(own.stats["files"] for own in made),
        kinds=tuple(KindRead(kind, **kinds[kind]) for kind in ordered),
        encodings=tuple(sorted(encodings.items(), key=lambda one: (-one[1], one[0]))),
        pages_lost=tuple(sorted(pages.items())),
        samples=tuple(samples[kind] for kind in ordered if kind in samples)[:_SAMPLES],
    )


def _sample(kind: str, one: dict[str, object], excerpt: Callable[[str], str]) -> FileSample:
    meta = one["meta"]
    assert isinstance(meta, dict)
    said = "; ".join(f"{name}: {value}" for name, value in meta.items())
    before = one["before"]
    return FileSample(
        str(one["place"]),
        kind,
        said,
        int(str(one["characters"])),
        int(str(one["pages"])),
        None if before is None else excerpt(str(before)),
        excerpt(str(one["after"])),
    )


def extracted_blocks(facts: Extracted) -> list[Block]:
    """The section."""
    head = ("kind", "files", "documents", "pages", "characters", "not read", "pages not read")
    rows = tuple(
        (
            NAMES.get(one.kind, one.kind),
            *(f"{n:,}" if n else "" for n in (one.files, one.documents, one.pages, one.characters)),
            *(f"{n:,}" if n else "" for n in (one.lost, one.lost_pages)),
        )
        for one in facts.kinds
    )
    documents = sum(one.documents for one in facts.kinds)
    told = f"{documents:,} documents came of {facts.files:,} files. An archive is one file; each entry counts by its kind."
    if facts.pages_lost:
        pages = ", ".join(f"{count:,} ({words(reason)})" for reason, count in facts.pages_lost)
        told += f" Pages of documents that were read, and that gave nothing: {pages}."
    if facts.encodings:
        named = ", ".join(f"{name} {count:,}" for name, count in facts.encodings[:_NAMED])
        more = f" and {len(facts.encodings) - _NAMED} more" if len(facts.encodings) > _NAMED else ""
        told += f" Encodings of texts: {named}{more}."
    blocks: list[Block] = [Heading(2, "What was read out of files"), Table(head, rows), Text(told, "note")]
    for one in facts.samples:
        blocks.append(Heading(3, f"{NAMES.get(one.kind, one.kind)}: {one.place}"))
        if one.before is not None and one.before != one.after:
            blocks.append(Quote("in the file", one.before))
        of = f" of {one.pages:,} page{'s' * (one.pages != 1)}" if one.pages else ""
        said = f"; {one.said}" if one.said else ""
        blocks.append(Quote(f"as it was read, {one.characters:,} characters{of}{said}", one.after))
    return blocks
