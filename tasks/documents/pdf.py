"""Text of a PDF: lines of pdfium in reading order, without running heads and page numbers, as paragraphs.

1. pdfium gives the characters of a page in the order drawn, with line ends and spaces where it sees them. `lines_of` cuts
   them into lines with a box each, and into two where a line jumps over a gutter.
2. Most programs draw column after column, so that order stands. Where the lines of columns alternate, `in_columns` puts
   them in order.
3. `without_running` takes away what stands at the edge of many pages: heads, feet and page numbers.
4. `paragraphs` joins lines: a new paragraph begins after a wider space, at an indentation or in another size; a line ends
   where the next word had found room in it.
5. `joined_words` decides for each word cut at a line end whether its hyphen stays, by the document's other words.
"""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from tasks.documents.document import Draft, Unreadable
from tasks.documents.tidy import one_line, tidy

CUT = "\ufffe"
"""pdfium's sign for a hyphen at which a word was cut; here also for words cut between columns and pages."""
_TOKEN = re.compile(rf"[^\s{CUT}]+")
_LINE = re.compile(rf"[^\r\n{CUT}]+{CUT}?")
_RTL = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_BRACKETS = str.maketrans("()[]{}<>«»", ")(][}{><»«")
"""pdfium gives brackets as they are drawn, which is mirrored among letters from right to left."""
_LAM_ALEF = re.compile("ا([أإآ])(ل)")
"""The article before such a letter, whose ligature pdfium turns round."""
_NUMBER = re.compile(
    r"(?:page|seite|página|стр\.?)?[\s\-–—.\[(|]*(?:\d{1,4}|[ivxlcdm]{1,7})[\s\-–—.\])|]*(?:(?:of|von|de|/)\s*\d{1,4})?",
    re.I,
)
_DIGITS = re.compile(r"\d+|\b[ivxlcdm]+\b", re.I)
_BULLET = re.compile(r"(?:[•◦▪‣●○■–—*\-]|\(?(?:\d{1,2}|[a-z]|[ivx]{1,4})[.)]|\d+(?:\.\d+)+)\s")
_LEADER = re.compile(r"(?:\.\s?){5,}\s*\S{1,6}$")
_END = (".", "!", "?", ":", ";", "”", '"', "’", ")", "]", "。", "؟")
_BUCKET = 12.0
_EDGE = 0.14
"""Running heads and feet stand in this share of the page's height at its top and bottom."""


@dataclass(frozen=True)
class Line:
    """Text in a box, in points from the lower left corner. `size`: the height of its letters' boxes."""

    text: str
    left: float
    right: float
    bottom: float
    top: float

    @property
    def size(self) -> float:
        return self.top - self.bottom


def read_pdf(data: bytes, alive: Callable[[], None] = lambda: None) -> Draft:
    """Read all pages. `alive` is called after each. Raises Unreadable: encrypted, damaged, no_text."""
    import pypdfium2.raw as raw

    raw.FPDF_InitLibrary()
    document = raw.FPDF_LoadMemDocument64(data, len(data), None)
    if not document:
        if raw.FPDF_GetLastError() in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY):
            raise Unreadable("encrypted", "the PDF opens with a password only")
        raise Unreadable("damaged", "pdfium cannot open the PDF")
    try:
        pages: list[tuple[list[Line], float]] = []
        without: list[int] = []
        for index in range(raw.FPDF_GetPageCount(document)):
            lines, height, blank = _page(raw, document, index)
            pages.append((lines, height))
            if not lines and not blank:
                without.append(index + 1)
            alive()
        meta = {
            "title": _meta(raw, document, b"Title"),
            "author": _meta(raw, document, b"Author"),
            "date": pdf_date(_meta(raw, document, b"CreationDate")),
        }
    finally:
        raw.FPDF_CloseDocument(document)
    if not any(lines for lines, _ in pages):
        what = "its pages are images, as of a scan" if without else "it has no page with anything on it"
        raise Unreadable("no_text", f"the PDF has no text: {what}")
    return Draft(texts_of(pages), meta, paged=True, without_text=tuple(without))


def texts_of(pages: list[tuple[list[Line], float]]) -> tuple[str, ...]:
    """Text of each page, from its lines in the order drawn and its height."""
    ordered = [(in_columns(lines), height) for lines, height in pages]
    marked = [paragraphs(lines) for lines in without_running(ordered)]
    for before, (index, after) in zip(marked, enumerate(marked[1:], 1), strict=False):
        if re.search(r"\w[-‐]$", before) and re.match(r"[^\W\d_]", after) and after[0].islower():
            marked[index - 1] = before[:-1] + CUT
    whole = joined_words("\f".join(marked))
    return tuple(tidy(text) for text in whole.split("\f"))


# ── Lines ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _page(raw: Any, document: Any, index: int) -> tuple[list[Line], float, bool]:
    """Lines of a page, its height, and whether nothing is on it."""
    page = raw.FPDF_LoadPage(document, index)
    if not page:
        return [], 0.0, False
    try:
        text = raw.FPDFText_LoadPage(page)
        if not text:
            return [], 0.0, False
        try:
            rectangle = raw.FS_RECTF()
            place, pointer = raw.FPDFText_GetLooseCharBox, ctypes.byref(rectangle)
            turn = raw.FPDFPage_GetRotation(page)

            def box(at: int) -> tuple[float, float, float, float]:
                place(text, at, pointer)
                left, right, bottom, top = rectangle.left, rectangle.right, rectangle.bottom, rectangle.top
                if turn == 1:
                    return bottom, top, -right, -left
                if turn == 2:
                    return -right, -left, -top, -bottom
                if turn == 3:
                    return -top, -bottom, left, right
                return left, right, bottom, top

            lines = lines_of(_characters(raw, text), box)
        finally:
            raw.FPDFText_ClosePage(text)
        return lines, float(raw.FPDF_GetPageHeightF(page)), raw.FPDFPage_CountObjects(page) == 0
    finally:
        raw.FPDF_ClosePage(page)


def _characters(raw: Any, text: Any) -> str:
    """All characters of a page, so that the place of each is its number in pdfium."""
    count = max(0, raw.FPDFText_CountChars(text))
    buffer = (ctypes.c_ushort * (2 * count + 2))()
    given = raw.FPDFText_GetText(text, 0, count, buffer)
    found = bytes(buffer)[: 2 * max(0, given - 1)].decode("utf-16-le", "replace")
    if len(found) == count:
        return found
    return "".join(chr(raw.FPDFText_GetUnicode(text, at) or 32) for at in range(count))


def lines_of(characters: str, box: Callable[[int], tuple[float, float, float, float]]) -> list[Line]:
    """Lines of a page. `box`: left, right, bottom and top of the character at a place."""
    lines: list[Line] = []
    for found in _LINE.finditer(characters):
        words: list[tuple[str, tuple[float, float, float, float], bool]] = []
        for token in _TOKEN.finditer(characters, found.start(), found.end()):
            first = box(token.start())
            last = box(token.end() - 1) if token.end() - token.start() > 1 else first
            word, mirrored = token[0], False
            if not word.isascii() and _RTL.search(word):
                mirrored = first[0] <= last[0]  # equal: letters that stand for one drawing
                word = (word[::-1] if mirrored and len(word) > 1 else word).translate(_BRACKETS)
                word = _LAM_ALEF.sub(r"ا\2\1", word)
            edges = (min(first[0], last[0]), max(first[1], last[1]), first[2], first[3])
            words.append((word, edges, mirrored))
        if not words:
            continue
        start = 0
        for at in range(1, len(words) + 1):
            if at == len(words) or _jumps(words[at - 1][1], words[at][1]):
                lines.append(_line(words[start:at], found[0].endswith(CUT) and at == len(words)))
                start = at
    return lines


def _jumps(before: tuple[float, float, float, float], after: tuple[float, float, float, float]) -> bool:
    """Whether a word stands so far behind the one before it that it belongs to another column."""
    height = max(before[3] - before[2], 4.0)
    return after[0] - before[1] > 1.6 * height


def _line(words: list[tuple[str, tuple[float, float, float, float], bool]], cut: bool) -> Line:
    order = words[::-1] if sum(mirrored for _, _, mirrored in words) * 2 > len(words) else words
    boxes = [edges for _, edges, _ in words]
    return Line(
        " ".join(word for word, _, _ in order) + (CUT if cut else ""),
        min(edges[0] for edges in boxes),
        max(edges[1] for edges in boxes),
        median(edges[2] for edges in boxes),
        median(edges[3] for edges in boxes),
    )


# ── Reading order ────────────────────────────────────────────────────────────────────────────────────────────────────


def in_columns(lines: list[Line]) -> list[Line]:
    """The lines as they are, or column by column where the order drawn goes to and fro between columns of prose."""
    beside = [
        (before, after)
        for before, after in pairwise(lines)
        if after.left >= before.right and abs(after.bottom - before.bottom) < before.size / 2
    ]
    prose = [pair for pair in beside if min(len(pair[0].text), len(pair[1].text)) >= 20]
    if len(prose) < 4 or len(prose) * 2 < len(beside):
        return _rejoined(lines)
    return list(_cut(sorted(lines, key=lambda line: (-line.top, line.left)), 0))


def _rejoined(lines: list[Line]) -> list[Line]:
    """What was cut at a wide space of one line, as of a table or a formula, is one line again."""
    joined: list[Line] = []
    for line in lines:
        last = joined[-1] if joined else None
        if (
            last is not None
            and not last.text.endswith(CUT)
            and line.left >= last.right
            and (abs(line.bottom - last.bottom) < last.size / 2)
        ):
            joined[-1] = replace(last, text=f"{last.text} {line.text}", right=line.right)
        else:
            joined.append(line)
    return joined


def _cut(lines: list[Line], depth: int) -> Iterator[Line]:
    """Recursive X-Y cut (Nagy and Seth 1984): lines that a gutter divides, by columns; what is between, as it is."""
    if len(lines) < 2 or depth > 8:
        yield from lines
        return
    at = 0
    while at < len(lines):
        best = 0
        end = at
        gutter = 0.0
        spans: list[tuple[float, float]] = []
        for index in range(at, len(lines)):
            spans = _merged([*spans, (lines[index].left, lines[index].right)])
            if len(spans) > 1:
                best, gutter = index + 1, spans[0][1]
            elif best or (index > at and lines[index].bottom < lines[at].bottom - lines[at].size / 2):
                break
            end = index
        if best - at >= 2:
            band = lines[at:best]
            yield from _cut([line for line in band if line.left < gutter], depth + 1)
            yield from _cut([line for line in band if line.left >= gutter], depth + 1)
            at = best
        else:
            yield lines[at]
            at = max(at + 1, min(end, at + 1))


def _merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for left, right in sorted(spans):
        if merged and left <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(right, merged[-1][1]))
        else:
            merged.append((left, right))
    return merged


# ── Running heads ────────────────────────────────────────────────────────────────────────────────────────────────────


def without_running(pages: list[tuple[list[Line], float]]) -> list[list[Line]]:
    """Lines of each page without numbers, and without what is alike, but for numbers, at one height of several pages."""
    if len(pages) < 2:
        return [lines for lines, _ in pages]
    edges = [_at_edges(lines, height) for lines, height in pages]
    alike = Counter(key for lines in edges for key in {_key(line) for line in lines})
    heights = Counter(
        height for lines in edges for height in {round(line.bottom / 3) for line in lines if _numbered(line)}
    )
    enough = 2 if len(pages) == 2 else 3
    often = max(4, len(pages) // 4)
    kept = []
    for (lines, _), outer in zip(pages, edges, strict=True):
        away = {
            id(line)
            for line in outer
            if alike[_key(line)] >= enough
            or _NUMBER.fullmatch(line.text.strip())
            or (
                _numbered(line)
                and sum(heights[round(line.bottom / 3) + near] for near in (-1, 0, 1)) >= often
            )
        }
        kept.append([line for line in lines if id(line) not in away])
    return kept


def _at_edges(lines: list[Line], height: float) -> list[Line]:
    """At most the two highest and the two lowest lines, if they stand near the page's edges."""
    if not lines:
        return []
    by_height = sorted(lines, key=lambda line: line.bottom)
    low, high = by_height[0].bottom, by_height[-1].top
    span = max(height, high - low)
    top = max(high, low + span) if height <= 0 else (height if high <= height else high)
    bottom = 0.0 if low >= 0 else low
    return [
        *(line for line in by_height[-2:] if line.bottom > top - _EDGE * span),
        *(line for line in by_height[:2] if line.top < bottom + _EDGE * span),
    ]


def _key(line: Line) -> tuple[str, int]:
    return _DIGITS.sub("#", line.text.lower()), round(line.bottom / 6)


def _numbered(line: Line) -> bool:
    """Whether a number stands at one end of a short line, as in heads with the name of the chapter."""
    words = line.text.split()
    return len(line.text) < 90 and len(words) > 1 and (words[0].isdigit() or words[-1].isdigit())


# ── Paragraphs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def paragraphs(lines: list[Line]) -> str:
    """Lines as text: a space, a line end or a blank line between two of them."""
    if not lines:
        return ""
    lines = [_turned(line) for line in lines]
    pitches = [
        round(before.bottom - after.bottom, 1)
        for before, after in pairwise(lines)
        if 0 < before.bottom - after.bottom < 3 * before.size
    ]
    pitch = median(pitches) if pitches else 1.2 * lines[0].size
    widest = max(line.right - line.left for line in lines)
    edges = _edges(lines)
    parts = [lines[0].text]
    for at in range(1, len(lines)):
        before, line = lines[at - 1], lines[at]
        between = _between(lines, at, pitch, widest, edges)
        if between == " " and re.search(r"\w[-‐]$", before.text):
            if line.text[:1].islower():
                parts[-1] = parts[-1][:-1] + CUT
            elif line.text[:1].isalnum():  # a name or a number, with its hyphen
                between = ""
        if parts[-1].endswith(CUT):
            between = "" if line.text[:1].isalnum() else "\n"
        parts += (between, line.text)
    return "".join(parts)


def _turned(line: Line) -> Line:
    """A line of a script from right to left, in a mirror: it begins where others end."""
    letters = sum(map(str.isalpha, line.text))
    if 2 * len(_RTL.findall(line.text)) <= letters or not letters:
        return line
    return replace(line, left=-line.right, right=-line.left)


def _edges(lines: list[Line]) -> dict[int, float]:
    """For each left edge, in steps of `_BUCKET`: the right edge that four fifths of the lines there do not pass."""
    buckets: dict[int, list[float]] = {}
    for line in lines:
        for near in (-1, 0, 1):
            buckets.setdefault(int(line.left // _BUCKET) + near, []).append(line.right)
    return {
        left: sorted(rights)[len(rights) * 4 // 5] if len(rights) > 4 else float("-inf")
        for left, rights in buckets.items()
    }


def _between(lines: list[Line], at: int, pitch: float, widest: float, edges: dict[int, float]) -> str:
    before, line = lines[at - 1], lines[at]
    down = before.bottom - line.bottom
    apart = 1.45 if line.right < 0 and before.right < 0 else 1.16  # Arabic letters' boxes differ much
    if not 1 / apart < line.size / max(before.size, 0.1) < apart:
        return "\n\n"
    elsewhere = (
        down < -0.5 * before.size
        or abs(line.left - before.left) > 0.5 * (before.right - before.left) + 4 * line.size
    )
    if elsewhere:  # the next column
        ended = before.text.rstrip().endswith(_END) or not (
            _goes_on(line.text) or before.text.endswith((",", CUT))
        )
        return "\n\n" if ended and not _fills(lines, at, edges) else " " if not ended else "\n\n"
    if down > 1.35 * max(pitch, 1.05 * before.size):
        return "\n\n"
    if _BULLET.match(line.text) or _LEADER.search(before.text):
        return "\n"
    middle = (line.left + line.right - before.left - before.right) / 2
    if abs(middle) < 0.4 * line.size < abs(line.left - before.left):  # lines around a middle, as of a title
        width = before.right - before.left
        widest = max(one.right - one.left for one in lines)
        return (
            " "
            if width > max(0.6 * widest, line.right - line.left) and not before.text.endswith(_END)
            else "\n"
        )
    if line.left > before.left + 0.8 * line.size and not _BULLET.match(before.text):
        return "\n\n"
    return " " if _fills(lines, at, edges) else "\n"


def _goes_on(text: str) -> bool:
    """Whether a line begins in the middle of a sentence, or in a script without capitals."""
    return text[:1].isalpha() and not text[0].isupper()


def _fills(lines: list[Line], at: int, edges: dict[int, float]) -> bool:
    """Whether the first word of `line` had no room at the end of the line before it.

    The right edge is where other lines of the column end. Where none ends there, as in a poem's longest line, only what
    begins with a small letter goes on.
    """
    before, line = lines[at - 1], lines[at]
    letter = (line.right - line.left) / max(len(line.text), 1)
    rights = [before.right, edges[int(before.left // _BUCKET)]]
    for step in (-1, 1):
        last = before
        for near in reversed(lines[max(0, at - 10) : at - 1]) if step < 0 else lines[at : at + 8]:
            away = abs(near.bottom - last.bottom)
            if abs(near.left - before.left) > 1.8 * before.size or away > 1.8 * before.size or away < 1:
                break
            rights.append(near.right)
            last = near
    right = max(rights)
    room = right - before.right
    word = line.text.split(" ", 1)[0]
    if room >= letter * (len(word) + 1) + 0.3 * before.size:
        return False
    return _goes_on(line.text) or any(right - other < 9 * letter + before.size for other in rights[1:])


def joined_words(text: str) -> str:
    """Words cut at a line end, in one: with their hyphen where the document has them so elsewhere, or before a capital."""
    if CUT not in text:
        return text
    whole_words = re.sub(rf"\w+{CUT}\s*\w+", " ", text)
    known = Counter(word.lower() for word in re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", whole_words))

    def decide(found: re.Match[str]) -> str:
        before, gap, after = found[1], found[2], found[3]
        whole, apart = (before + after).lower(), f"{before}-{after}".lower()
        words = min(len(before), len(after)) > 3 and known[before.lower()] and known[after.lower()]
        hyphen = known[apart] > known[whole] or (words and not known[whole]) or not after[:1].islower()
        return f"{before}{'-' if hyphen else ''}{after}" + ("\f" if "\f" in gap else "")

    return re.sub(rf"(\w+){CUT}(\s*)(\w+)", decide, text).replace(CUT, "-")


def _meta(raw: Any, document: Any, name: bytes) -> str:
    size = raw.FPDF_GetMetaText(document, name, None, 0)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    raw.FPDF_GetMetaText(document, name, buffer, size)
    return one_line(buffer.raw[: size - 2].decode("utf-16-le", "replace"))


def pdf_date(text: str) -> str:
    """`D:20170102…` as `2017-01-02`; empty if it is none."""
    found = re.match(r"(?:D:)?(\d{4})(\d{2})?(\d{2})?", text)
    return "-".join(part for part in found.groups() if part) if found else ""
