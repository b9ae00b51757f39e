"""What is read out of a file: documents with their pages, and what was lost."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

REASONS = {
    "crashed": "the program that reads it ended without an answer",
    "damaged": "its bytes are not what the format asks for",
    "empty": "no visible character",
    "encrypted": "it opens with a password only",
    "expands_too_much": "it unpacks to more than is allowed",
    "image": "an image; text in images is not recognised",
    "no_text": "a page without text: a scan, or an image",
    "no_column": "a table without a column that the template names",
    "not_read": "a known kind that is not read",
    "other_answer": "an answer of a web server that is no page",
    "text_too_long": "longer than the longest document",
    "timed_out": "nothing came within the time limit",
    "too_deep": "archives within archives, beyond the limit",
    "too_large": "larger than what is read at once",
    "too_many": "more files or documents in one file than is allowed",
    "too_much_memory": "reading it takes more memory than is allowed",
    "unknown": "none of the known kinds",
    "unreadable": "the file cannot be opened",
}
"""Why something is not read, each with what it means."""


_HALF = re.compile("[\ud800-\udfff]")


class Unreadable(Exception):
    """A file or a part of it cannot be read. `reason` is one of `REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Page:
    """A page, slide, sheet or chapter: its number from 1 on, and where its text lies in that of the document."""

    number: int
    begin: int
    end: int


@dataclass(frozen=True)
class Document:
    """A text. `place`: the file, and where in it (`books.zip!one.pdf`, `mail.mbox#3`).

    `meta`: what the file says of it (`title`, `author`, `date`, `language`, `url`), and the `encoding` of a text file.
    """

    place: str
    kind: str
    text: str
    pages: tuple[Page, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """What could not be read: a file, or the page `page` of one. `message`: a sentence for who looks for it."""

    place: str
    kind: str
    reason: str
    message: str
    page: int | None = None


@dataclass(frozen=True)
class Columns:
    """What of a table's rows is text: the column `text`, or a template with columns in braces."""

    text: str = "text"
    template: str | None = None


ANY = Columns()
"""Nothing is asked for: the column is told by its name or its cells."""


@dataclass(frozen=True)
class Draft:
    """A document as an extractor gives it: pages of text to be joined, and the numbers of those that have none."""

    pages: tuple[str, ...]
    meta: dict[str, str] = field(default_factory=dict)
    paged: bool = False
    without_text: tuple[int, ...] = ()
    separator: str = "\n\n"


def written(text: str) -> str:
    """A text with U+FFFD for each half of a pair, as stands for a byte that is of no encoding: it can be written as UTF-8,
    and has as many characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _HALF.sub("\ufffd", text)
    return text


def as_document(draft: Draft, place: str, kind: str) -> Document:
    """Join the pages; each keeps its place in the text."""
    parts: list[str] = []
    pages: list[Page] = []
    at = 0
    for number, text in enumerate(draft.pages, 1):
        if not text:
            continue
        if parts:
            parts.append(draft.separator)
            at += len(draft.separator)
        parts.append(text)
        pages.append(Page(number, at, at + len(text)))
        at += len(text)
    meta = {key: value for key, value in draft.meta.items() if value}
    return Document(place, kind, "".join(parts), tuple(pages) if draft.paged else (), meta)
