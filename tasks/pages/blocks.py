"""What a page is made of: headings, paragraphs, tables, figures and quotes, without a word on how they are written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `tone` is better, worse, same or warn, and colours it in HTML; `below` is a smaller line."""

    text: str
    tone: str = ""
    below: str = ""


Row = tuple[Cell | str, ...]
"""Cells from left to right; a string is a cell that is nothing but its text."""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1, 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `role` is findings, note or warning."""

    text: str
    role: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first `labels` columns are words, and the others numbers but for the last `notes`.

    A row of one cell is a heading inside it.
    """

    head: tuple[str, ...]
    rows: tuple[Row, ...]
    labels: int = 1
    notes: int = 0

    def is_text(self, place: int) -> bool:
        """Whether a column holds words, which stand on the left."""
        return place < self.labels or place >= len(self.head) - self.notes


@dataclass(frozen=True)
class Picture:
    """A figure of `figures/`, by name."""

    name: str
    caption: str


@dataclass(frozen=True)
class Quote:
    """Text of a document as it stands there, with a line that says which."""

    label: str
    text: str


@dataclass(frozen=True)
class Slot:
    """Where something is put when the page is published, by name; nothing is seen of it before."""

    name: str

    @property
    def mark(self) -> str:
        """What stands there in Markdown and HTML alike."""
        return f"<!-- {self.name} -->"


Block = Heading | Text | Table | Picture | Quote | Slot
