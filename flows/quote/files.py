"""The files of sources of documents, for a person: kinds, how many there are, how large, and what is set aside.

Only the beginning of each file was looked at, so scans and passwords are not told here: `onward inspect` reads all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flows.quote.table import bytes_text
from tasks.documents.folder import Listing, counted
from tasks.documents.kinds import NAMES
from tasks.documents.shelves import Shelves

_NAMED = 3


def files_text(shelves: Mapping[str, Shelves]) -> Iterator[str]:
    """Lines for each source: its files by kind, and one line for each reason for which some are set aside."""
    for source, found in shelves.items():
        yield from listing_text(source, found.listing)


def listing_text(source: str, listing: Listing) -> Iterator[str]:
    """The lines of one source."""
    size = sum(listing.sizes.values())
    kinds = [f"{NAMES[kind]} {files:,} ({bytes_text(own)})" for kind, files, own in counted(listing)]
    yield f"{source}: {len(listing.paths):,} files, {bytes_text(size)}: {', '.join(kinds) or 'nothing that is read'}"
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, aside in listing.aside.items():
        reasons.setdefault((aside.reason, aside.message), []).append(name)
    for (reason, message), names in sorted(reasons.items(), key=lambda one: (-len(one[1]), one[0])):
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        yield f"{source}: set aside {len(names):,} ({reason}: {message}): {', '.join(names[:_NAMED])}{more}"
