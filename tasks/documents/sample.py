"""A look at a folder of documents before a run: what kinds it holds, how much text that is, and some documents of it.

Every file's beginning is looked at, and some files of each kind are read. Nothing is written.
"""

from __future__ import annotations

import glob
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from tasks.corpus.reading.patterns import matches
from tasks.corpus.reading.sample import Folder, field_of, texts_of
from tasks.documents.document import Document
from tasks.documents.folder import Listing, counted, of_source
from tasks.documents.kinds import NAMES
from tasks.documents.limits import Limits
from tasks.documents.reader import Reader

_OF_A_KIND = 12
"""Files of each kind that are read."""
_DOCUMENTS = 400
_OF_A_FILE = 60
"""Documents of one file: a dump or a table has many."""
_TEXT_OF_A_FILE = 3_000_000
_PATIENCE_SECONDS = 20.0


def look_into_documents(folder: Path, seed: int = 0) -> Folder | None:
    """As `look_into` does for a folder of rows and texts; None where the folder is such a one, or holds nothing to read.

    Raises ConfigError if the packages that read documents are not installed.
    """
    start = glob.escape(str(folder.resolve()))
    if not matches(f"{start}/**", Path("/")).files:
        return None
    listing = of_source(folder.name, (f"{start}/**",), Path("/"), "text")
    if listing is None:
        return None
    rows = [listing.paths[name] for name in listing.rows]
    text_field = field_of(rows) if rows else "text"
    if text_field != "text":
        listing = of_source(folder.name, (f"{start}/**",), Path("/"), text_field) or listing
    found = _Read(listing, seed)
    texts = [*found.texts, *(texts_of(rows, text_field, seed)[0] if rows else [])]
    size = sum(listing.rows.values()) + found.size
    mean = sum(len(text.encode()) for text in texts) / max(1, len(texts))
    refused: dict[tuple[str, str], list[Path]] = {}
    for name, aside in listing.aside.items():
        refused.setdefault((aside.reason, aside.message), []).append(folder.resolve() / name)
    return Folder(
        patterns=["**"],
        files=len(listing.rows) + len(listing.kinds),
        size=size,
        text_field=text_field,
        texts=texts,
        documents=found.documents + round(sum(listing.rows.values()) / mean if mean else 0),
        refused={
            why: [folder / path.relative_to(folder.resolve()) for path in paths]
            for why, paths in refused.items()
        },
        notes=tuple(_notes(listing, found)),
    )


class _Read:
    """Some files of each kind, read. `size` and `documents` are of all files, as estimated from these."""

    def __init__(self, listing: Listing, seed: int) -> None:
        rng = random.Random(seed)
        of_kind: dict[str, list[str]] = defaultdict(list)
        for name, kind in listing.kinds.items():
            of_kind[kind].append(name)
        self.texts: list[str] = []
        self.lost: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        size = documents = 0.0
        with Reader(replace(Limits(), silence_seconds=_PATIENCE_SECONDS)) as reader:
            for _, names in sorted(of_kind.items()):
                chosen = rng.sample(sorted(names), min(_OF_A_KIND, len(names)))
                given = estimated = count = 0
                for name in chosen:
                    text, number, whole = self._file(reader, listing.paths[name], name, len(of_kind))
                    expected = listing.estimate(name)
                    # of a long file only the beginning is read
                    given += text if whole else max(text, expected)
                    count += number if whole else max(number, round(number * expected / max(1, text)))
                    estimated += expected
                all_of_it = sum(map(listing.estimate, names))
                size += all_of_it * given / max(1, estimated)
                documents += len(names) * count / len(chosen)
        self.size, self.documents = round(size), round(documents)

    def _file(self, reader: Reader, path: Path, name: str, kinds: int) -> tuple[int, int, bool]:
        """Bytes of text and documents of a file, and whether all of it was read."""
        size = count = 0
        for found in reader.read(path, name):
            if not isinstance(found, Document):
                self.lost[found.reason] += 1
                self.examples.setdefault(found.reason, found.place)
                continue
            size += len(found.text.encode())
            count += 1
            if len(self.texts) < _DOCUMENTS * kinds:
                self.texts.append(found.text)
            if count >= _OF_A_FILE or size >= _TEXT_OF_A_FILE:
                return size, count, False
        return size, count, True


def _notes(listing: Listing, found: _Read) -> list[str]:
    kinds = ", ".join(f"{NAMES[kind]} {files:,}" for kind, files, _ in counted(listing))
    notes = [f"kinds: {kinds}"] if kinds else []
    if found.lost:
        lost = ", ".join(
            f"{reason} {count:,} ({found.examples[reason]})" for reason, count in found.lost.most_common(4)
        )
        notes.append(f"of a sample, not read: {lost}; onward inspect names all")
    return notes
