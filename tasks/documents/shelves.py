"""Which files of a source of documents are read together: shelves, each of about a slice of text.

A store remembers its shelves (`shelves.sqlite`), as it does what a branch of the hub meant. Files that came later make
shelves behind those that are there, so they cost only themselves, and what was read stays as it was. Without that memory,
or in another store, all files are put on shelves anew. A plan looks at shelves and fixes none.

Each project directory has its own, as patterns are relative to it. One that has none takes over those of another
directory, if all their files are here: a project that was moved keeps what it has.

    files a b c d, first seen together      shelf 1: c a      shelf 2: d b
    e and f came later                      shelf 1: c a      shelf 2: d b      shelf 3: f e
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.corpus.reading.hub import Remembered
from tasks.corpus.reading.sources import IngestConfig, SourceConfig
from tasks.documents.folder import Listing, of_source

_MOST_FILES = 20_000
"""A shelf has no more files than this, however small they are."""
_BASES = ""
"""Stands in place of a directory for the list of those that have shelves."""


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
        store / "shelves.sqlite",
        "which says what files were read together",
        "they are then put on shelves anew",
    )


def shelves_of(
    config: IngestConfig, source: SourceConfig, base: Path, remembered: Remembered, *, fix: bool = True
) -> Shelves | None:
    """The shelves of a source; None where it is no source of documents (`of_source`, which says what it raises).

    `fix`: new shelves are remembered; without it, they are what they would be.
    """
    if source.files is None:
        return None
    listing = of_source(source.name, source.files, base, source.text_field)
    if listing is None:
        return None
    question = json.dumps([source.name, list(source.files), config.order, config.seed, config.slice_bytes])
    here = str(base.absolute())
    known: list[list[str]] = _series(remembered, question, here)

    def add(shelf: list[str]) -> None:
        """Another run may be at the same: its shelf counts."""
        known.append(remembered.remember(shelf, question, here, str(len(known))) if fix else shelf)

    if not known:
        moved = _of_another_base(remembered, question, listing)
        if fix:
            _note(remembered, question, here)
        for shelf in moved:
            placed = {name for other in known for name in other}
            if left := [name for name in shelf if name not in placed]:
                add(left)
    while shelf := _next(config, listing, known):
        add(shelf)
    there = [tuple(name for name in shelf if name in listing.paths) for shelf in known]
    gone = tuple(name for shelf in known for name in shelf if name not in listing.paths)
    return Shelves(listing, tuple(shelf for shelf in there if shelf), gone)


def _series(remembered: Remembered, question: str, of: str) -> list[Any]:
    """The answers that were remembered one after another."""
    found: list[Any] = []
    while (answer := remembered.recall(question, of, str(len(found)))) is not None:
        found.append(answer)
    return found


def _note(remembered: Remembered, question: str, here: str) -> None:
    """Remember a directory as one that has shelves."""
    bases = _series(remembered, question, _BASES)
    while here not in bases:
        bases.append(remembered.remember(here, question, _BASES, str(len(bases))))


def _of_another_base(remembered: Remembered, question: str, listing: Listing) -> list[list[str]]:
    """The most shelves of another directory of which every file is here too; none if there are no such."""
    found: list[list[list[str]]] = [
        _series(remembered, question, base) for base in _series(remembered, question, _BASES)
    ]
    whole = [
        shelves for shelves in found if all(name in listing.paths for shelf in shelves for name in shelf)
    ]
    return max(whole, key=lambda shelves: sum(map(len, shelves)), default=[])


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
