"""The blocks of a page: headings, paragraphs, tables, figures and quotes. How they are written is decided elsewhere."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell of a table. `tone` is better, worse, same or warn, and colours it in HTML; `below` is a smaller
    second line.
    """

    text: str
    tone: str = ""
    below: str = ""


Row = tuple[Cell | str, ...]
"""Cells from left to right. A string is a cell with only its text."""


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
    """A table. The first `labels` columns and the last `notes` columns hold words, the others numbers.

    A row of one cell is a heading inside the table.
    """

    head: tuple[str, ...]
    rows: tuple[Row, ...]
    labels: int = 1
    notes: int = 0

    def is_text(self, place: int) -> bool:
        """Whether a column holds words, which are aligned left."""
        return place < self.labels or place >= len(self.head) - self.notes


@dataclass(frozen=True)
class Picture:
    """A figure in `figures/`, by name."""

    name: str
    caption: str


@dataclass(frozen=True)
class Quote:
    """A document's text, unchanged, with a line that names the document."""

    label: str
    text: str


@dataclass(frozen=True)
class Slot:
    """A named place that is filled when the page is published. Until then it is invisible."""

    name: str

    @property
    def mark(self) -> str:
        """The marker of the place, the same in Markdown and HTML."""
        return f"<!-- {self.name} -->"


Block = Heading | Text | Table | Picture | Quote | Slot
