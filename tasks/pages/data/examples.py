"""Short excerpts of documents for the data page: safe to show, with personal data masked if the filter masks it.

Text is masked before it is cut, so that no half of an address is left over.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.corpus.rules import pii
from tasks.pages.data.facts import Example, NearPair, ReasonExamples
from tasks.pages.data.measured import groups
from tasks.pages.data.tables import DocumentPlace, DroppedRow, Tables

LENGTH = 360
"""Characters of an excerpt."""
_READ = 20_000
"""Characters of a document that are read, around the shown place."""
_LINES = 10
_BEFORE = {"dedup": "ingest", "filter": "dedup", "decontaminate": "filter"}
"""The stage that made a stage's input documents."""
_BESIDE = ("held_out_overlap", "copy_after_filter")
"""Reasons whose detail is another document."""
_UNSEEN = ("Cc", "Cf", "Zl", "Zp")
"""Invisible Unicode categories that may have effects: controls, formats (directions, tags), separators."""


@dataclass(frozen=True)
class Reader:
    """Reads excerpts. `masked`: whether personal data is replaced, as in the filter."""

    tables: Tables
    masked: bool

    def of_reasons(self, wanted: Sequence[tuple[str, str]], each: int) -> tuple[ReasonExamples, ...]:
        """Examples for each (stage, reason) that has some.

        A row dropped by ingest has no text; a document with a benchmark's question is shown around it.
        """
        rows = [row for row in self.tables.examples(each) if (row.stage, row.reason) in wanted]
        texts = self._texts(rows)
        found: dict[tuple[str, str], list[Example]] = {pair: [] for pair in wanted}
        for row in rows:
            text = None if row.id is None else texts.get((row.stage, row.id))
            found[row.stage, row.reason].append(self._example(row, text))
        return tuple(
            ReasonExamples(stage, reason, tuple(examples))
            for (stage, reason), examples in found.items()
            if examples
        )

    def of_pairs(self, kept: Sequence[str], most: int) -> tuple[NearPair, ...]:
        """Near-duplicates beside the kept document, from their first difference on."""
        rows = [
            (row, row.id, row.detail)
            for row in self.tables.pairs(kept, most)
            if row.id is not None and row.detail is not None
        ]
        other = {_id_of(detail) for _, _, detail in rows}
        places = self.tables.find([own for _, own, _ in rows], "ingest", [row.slice for row, _, _ in rows])
        texts = self._read(places)
        texts |= self._read(self.tables.find(sorted(other - set(texts)), "dedup"))
        found = []
        for row, own, detail in rows:
            one, two = texts.get(own), texts.get(_id_of(detail))
            if one is None or two is None:
                continue
            start = _first_difference(one, two)
            found.append(
                NearPair(
                    id=str(own),
                    source=row.source,
                    kept=detail,
                    similarity=row.value or 0.0,
                    text=self.excerpt(one, start),
                    kept_text=self.excerpt(two, start),
                )
            )
        return tuple(found)

    def excerpt(self, text: str, start: int = 0, length: int = LENGTH) -> str:
        """A few lines of a text around a place, with marks where it was cut."""
        begin = max(start - 60, 0)
        if begin:  # start at the beginning of a word
            space = text.find(" ", begin, begin + 40)
            begin = space + 1 if space >= 0 else begin
        low, high = max(begin - _READ // 2, 0), begin + _READ // 2
        shown = text[low:high]
        if self.masked:  # with the text before it: an address may lie across the edge
            shown = pii.mask(shown)[0][len(pii.mask(text[low:begin])[0]) :]
        else:
            shown = shown[begin - low :]
        lines = [visible(line.rstrip()) for line in shown.split("\n") if line.strip()]
        cut = "\n".join(lines[:_LINES])
        if len(cut) > length:
            cut = cut[:length].rsplit(" ", 1)[0] if " " in cut[length // 2 : length] else cut[:length]
        more = len(lines) > _LINES or len(cut) < len("\n".join(lines)) or high < len(text)
        return ("… " if begin else "") + cut + (" …" if more else "")

    def _example(self, row: DroppedRow, text: str | None) -> Example:
        said = row.detail or ""
        start = _place_of(said, text) if text is not None and row.reason == "benchmark_overlap" else 0
        said = f"beside document {said}" if row.reason in _BESIDE else said
        return Example(
            id=None if row.id is None else str(row.id),
            source=row.source,
            value=row.value,
            detail=visible(pii.mask(said)[0] if self.masked else said)[:LENGTH],
            characters=None if text is None else len(text),
            text=None if text is None else self.excerpt(text, start),
        )

    def _texts(self, rows: Sequence[DroppedRow]) -> dict[tuple[str, int], str]:
        found: dict[tuple[str, int], str] = {}
        for stage, before in _BEFORE.items():
            own = [(row.id, row.slice) for row in rows if row.stage == stage and row.id is not None]
            places = self.tables.find([one for one, _ in own], before, [number for _, number in own])
            found |= {(stage, one): text for one, text in self._read(places).items()}
        return found

    def _read(self, places: Mapping[int, DocumentPlace]) -> dict[int, str]:
        found: dict[int, str] = {}
        for path in sorted({place.path for place in places.values()}):
            own = sorted((place.row, one) for one, place in places.items() if place.path == path)
            rows = np.array([row for row, _ in own], np.int64)
            texts = [text for table in groups(path, rows, ["text"]) for text in table["text"].to_pylist()]
            found |= {one: text for (_, one), text in zip(own, texts, strict=True)}
        return found


def visible(text: str) -> str:
    """The text with a dot for each invisible character, except line ends and tabs."""
    if text.isprintable():
        return text
    return "".join(
        "·" if sign not in "\n\t" and unicodedata.category(sign) in _UNSEEN else sign for sign in text
    )


def _id_of(kept: str) -> int:
    """The id of a kept document as a dropped row names it: `id of source`."""
    return int(kept.split(" ", 1)[0])


def _first_difference(one: str, two: str) -> int:
    low, high = 0, min(len(one), len(two))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one.startswith(two[:middle]) else (low, middle - 1)
    return low


def _place_of(detail: str, text: str) -> int:
    """Where the found words begin; `detail` is `benchmark:row words`."""
    words = detail.split(" ")[1:]
    match = re.search(r"[\W_]+".join(map(re.escape, words)), text, re.IGNORECASE) if words else None
    return match.start() if match else 0
