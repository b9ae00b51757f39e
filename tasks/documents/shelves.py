"""Which files of a source of documents are read together: shelves, each of about a slice of text.

A store remembers its shelves (`.cache/shelves.sqlite`), as it does what a branch of the hub meant. Files that came later
make shelves behind those that are there, so they cost only themselves, and what was read stays as it was. Without that
memory, or in another store, all files are put on shelves anew.

    files a b c d, first seen together      shelf 1: c a      shelf 2: d b
    e and f came later                      shelf 1: c a      shelf 2: d b      shelf 3: f e
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.corpus.reading.hub import Remembered
from tasks.corpus.reading.sources import IngestConfig, SourceConfig
from tasks.documents.folder import Listing, of_source

_MOST_FILES = 20_000
"""A shelf has no more files than this, however small they are."""


@dataclass(frozen=True)
class Shelves:
    """The shelves of a source, each with the names of its files. `gone`: files that were on one, and are not there now."""

    listing: Listing
    names: tuple[tuple[str, ...], ...]
    gone: tuple[str, ...] = ()

    def estimate(self, number: int) -> int:
        """About how many bytes of text the documents of a shelf have; rows are not counted. `number` counts from 0."""
        return sum(self.listing.estimate(name) for name in self.documents(number))

    def documents(self, number: int) -> tuple[str, ...]:
        """The files of a shelf that `extract` looks at, what is set aside among them."""
        return tuple(name for name in self.names[number] if name not in self.listing.rows)

    def rows(self, number: int) -> dict[str, Path]:
        """The files of rows of a shelf."""
        return {name: self.listing.paths[name] for name in self.names[number] if name in self.listing.rows}


def shelves_in(store: Path) -> Remembered:
    """The shelves that a store remembers."""
    return Remembered(
        store / ".cache" / "shelves.sqlite",
        "which says what files were read together",
        "they are then put on shelves anew",
    )


def shelves_of(
    config: IngestConfig, source: SourceConfig, base: Path, remembered: Remembered
) -> Shelves | None:
    """The shelves of a source; None where it is no source of documents (`of_source`, which says what it raises)."""
    if source.files is None:
        return None
    listing = of_source(source.name, source.files, base, source.text_field)
    if listing is None:
        return None
    question = json.dumps([source.name, list(source.files), config.order, config.seed, config.slice_bytes])
    known: list[list[str]] = []
    while (shelf := remembered.recall(question, str(len(known)))) is not None:
        known.append(shelf)
    while shelf := _next(config, listing, known):  # another run may be at the same: its shelf counts
        known.append(remembered.remember(shelf, question, str(len(known))))
    there = [tuple(name for name in shelf if name in listing.paths) for shelf in known]
    gone = tuple(name for shelf in known for name in shelf if name not in listing.paths)
    return Shelves(listing, tuple(shelf for shelf in there if shelf), gone)


def _next(config: IngestConfig, listing: Listing, known: Sequence[Sequence[str]]) -> list[str]:
    """The next shelf: files that are on none, of about `slice_bytes` of text, in the source's order."""
    placed = {name for shelf in known for name in shelf}
    shelf: list[str] = []
    size = 0
    for name in _ordered(config, [name for name in listing.paths if name not in placed]):
        shelf.append(name)
        size += listing.estimate(name)
        if size >= config.slice_bytes or len(shelf) >= _MOST_FILES:
            break
    return shelf


def _ordered(config: IngestConfig, names: Sequence[str]) -> list[str]:
    if config.order == "as_given":
        return list(names)

    def place(name: str) -> tuple[bytes, str]:
        text = json.dumps([config.seed, config.name, name])
        return hashlib.blake2b(text.encode(), digest_size=16).digest(), name

    return sorted(names, key=place)
