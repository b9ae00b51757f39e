"""Office documents that are XML in a zip: DOCX, PPTX, ODT and ODP.

Headings, lists, tables and notes are kept. Left out are heads and feet (parts of their own), deleted text of tracked
changes, comments, and tables of contents.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from tasks.documents.blocks import Blocks, lowered, raised
from tasks.documents.document import Draft, Unreadable
from tasks.documents.tidy import names, tidy
from tasks.documents.xml import attribute, core_meta, local, parse, part

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_SKIPPED = names(
    "del moveFrom instrText delText Fallback sdtPr rPr pPr sectPr tblPr tblGrid trPr tcPr commentReference annotationRef "
    "bookmarkStart proofErr fldData"
)


# ── DOCX ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_docx(file: BinaryIO, most: int) -> Draft:
    """Read a Word document. Raises Unreadable: damaged, encrypted, too_large."""
    with zipfile.ZipFile(file) as archive:
        name = _main_part(archive, most, "word/document.xml")
        folder = posixpath.dirname(name)
        body = parse(part(archive, name, most))
        word = _Word(archive, folder, most)
        blocks = Blocks()
        for element in body:
            word.blocks(element, blocks)
        for notes in ("footnotes.xml", "endnotes.xml"):
            data = part(archive, f"{folder}/{notes}", most, needed=False)
            for note in parse(data) if data else ():
                if attribute(note, "type") not in (
                    "separator",
                    "continuationSeparator",
                    "continuationNotice",
                ):
                    word.blocks(note, blocks)
        return Draft((tidy(blocks.text()),), core_meta(archive, "docProps/core.xml", most))


def _main_part(archive: zipfile.ZipFile, most: int, usual: str) -> str:
    data = part(archive, "_rels/.rels", most, needed=False)
    for relation in parse(data) if data else ():
        if relation.get("Type", "").endswith("/officeDocument"):
            return str(relation.get("Target", usual)).lstrip("/")
    return usual


class _Word:
    """Styles and numbering of a Word document, and the way through its body."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, most: int) -> None:
        self.levels: dict[str, int] = {}
        self.listed: dict[str, tuple[str, int]] = {}
        self.contents: set[str] = set()
        self.formats: dict[tuple[str, int], str] = {}
        self._count: dict[tuple[str, int], int] = {}
        if data := part(archive, f"{folder}/styles.xml", most, needed=False):
            self._styles(parse(data))
        if data := part(archive, f"{folder}/numbering.xml", most, needed=False):
            self._numbering(parse(data))

    def _styles(self, root: Any) -> None:
        based: dict[str, str] = {}
        for style in root.iter(f"{_W}style"):
            key = style.get(f"{_W}styleId", "")
            name = style.find(f"{_W}name")
            called = (name.get(f"{_W}val", "") if name is not None else "").lower()
            outline = style.find(f"{_W}pPr/{_W}outlineLvl")
            if found := re.fullmatch(r"heading (\d)", called):
                self.levels[key] = int(found[1])
            elif called == "title":
                self.levels[key] = 1
            elif (
                outline is not None and (level := outline.get(f"{_W}val", "9")).isdecimal() and int(level) < 9
            ):
                self.levels[key] = int(level) + 1
            if re.fullmatch(r"toc \d|table of figures", called):
                self.contents.add(key)
            numbering = style.find(f"{_W}pPr/{_W}numPr")
            if numbering is not None:
                self.listed[key] = _listed(numbering)
            parent = style.find(f"{_W}basedOn")
            if parent is not None:
                based[key] = parent.get(f"{_W}val", "")
        for key in based:
            at, seen = key, {key}
            while at in based and based[at] not in seen:
                at = based[at]
                seen.add(at)
                for table in (self.levels, self.listed):
                    if key not in table and at in table:
                        table[key] = table[at]  # type: ignore[index,assignment]

    def _numbering(self, root: Any) -> None:
        abstract: dict[str, dict[int, str]] = {}
        for one in root.iter(f"{_W}abstractNum"):
            levels = {}
            for level in one.iter(f"{_W}lvl"):
                kind = level.find(f"{_W}numFmt")
                levels[_number(level.get(f"{_W}ilvl"))] = kind.get(f"{_W}val", "") if kind is not None else ""
            abstract[one.get(f"{_W}abstractNumId", "")] = levels
        for one in root.iter(f"{_W}num"):
            reference = one.find(f"{_W}abstractNumId")
            key = reference.get(f"{_W}val", "") if reference is not None else ""
            for level, kind in abstract.get(key, {}).items():
                self.formats[one.get(f"{_W}numId", ""), level] = kind

    def blocks(self, element: Any, blocks: Blocks) -> None:
        """Put what is below an element into blocks, without recursion over text."""
        waiting: list[Any] = [element]
        while waiting:
            one = waiting.pop()
            name = local(one)
            if name == "p":
                self._paragraph(one, blocks)
            elif name == "tbl":
                self._table(one, blocks)
            elif name not in _SKIPPED:
                waiting.extend(reversed(list(one)))

    def _paragraph(self, paragraph: Any, blocks: Blocks) -> None:
        properties = paragraph.find(f"{_W}pPr")
        style = prefix = ""
        listed: tuple[str, int] | None = None
        level = 0
        if properties is not None:
            found = properties.find(f"{_W}pStyle")
            style = found.get(f"{_W}val", "") if found is not None else ""
            numbering = properties.find(f"{_W}numPr")
            listed = _listed(numbering) if numbering is not None else self.listed.get(style)
            level = self.levels.get(style, 0)
            outline = properties.find(f"{_W}outlineLvl")
            if not level and outline is not None and (said := _number(outline.get(f"{_W}val"), 9)) < 9:
                level = said + 1
        if style in self.contents:
            return
        inner: list[Any] = []
        text = "".join(_runs(paragraph, inner))
        blocks.add(text)
        if level and text.strip():
            blocks.heading(level)
        elif listed is not None and listed[0] != "0" and text.strip():
            number, depth = listed
            kind = self.formats.get((number, depth), "bullet")
            first = (number, depth) not in self._count
            if kind in ("decimal", "decimalZero", "lowerLetter", "upperLetter", "lowerRoman", "upperRoman"):
                self._count[number, depth] = self._count.get((number, depth), 0) + 1
                prefix = f"{self._count[number, depth]}. "
            else:
                self._count[number, depth] = 1
                prefix = "- "
            for key in [key for key in self._count if key[0] == number and key[1] > depth]:
                del self._count[key]
            blocks.end("  " * min(depth, 8) + prefix, tight=not first or depth > 0)
        else:
            blocks.end()
        for box in inner:
            self.blocks(box, blocks)

    def _table(self, table: Any, blocks: Blocks) -> None:
        rows: list[list[str]] = []
        nested = next(table.iterdescendants(f"{_W}tbl"), None) is not None
        longest = 0
        for row in table.iterchildren(f"{_W}tr", f"{_W}sdt"):
            cells: list[str] = []
            for cell in row.iter(f"{_W}tc"):
                text = " ".join("".join(_runs(p, [])).replace("\v", " ") for p in cell.iter(f"{_W}p"))
                merged = cell.find(f"{_W}tcPr/{_W}vMerge")
                cells.append("" if merged is not None and merged.get(f"{_W}val") != "restart" else text)
                longest = max(longest, len(text))
                span = cell.find(f"{_W}tcPr/{_W}gridSpan")
                cells.extend([""] * min(_number(span.get(f"{_W}val"), 1) - 1, 50) if span is not None else [])
            rows.append(cells)
        if nested or longest > 1500 or max((len(row) for row in rows), default=0) < 2:
            for cell in table.iter(f"{_W}tc"):
                if next(cell.iterdescendants(f"{_W}tbl"), None) is None:
                    self.blocks(cell, blocks)
        else:
            blocks.table(rows)


def _listed(numbering: Any) -> tuple[str, int]:
    number, level = numbering.find(f"{_W}numId"), numbering.find(f"{_W}ilvl")
    return (
        number.get(f"{_W}val", "0") if number is not None else "0",
        _number(level.get(f"{_W}val")) if level is not None else 0,
    )


def _number(text: str | None, otherwise: int = 0) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 6 else otherwise


def _runs(element: Any, inner: list[Any]) -> Iterator[str]:
    """Text of a paragraph. Paragraphs within it, as of a text box, are put into `inner`."""
    for child in element:
        name = local(child)
        if name == "t":
            yield child.text or ""
        elif name in ("tab", "ptab"):
            yield " "
        elif name in ("br", "cr"):
            yield "\v" if attribute(child, "type") in ("", "textWrapping") else " "
        elif name == "noBreakHyphen":
            yield "-"
        elif name == "sym":
            yield ""
        elif name in ("oMath", "oMathPara"):
            yield f" {formula(child)} "
        elif name == "r":
            properties = child.find(f"{_W}rPr/{_W}vertAlign")
            text = "".join(_runs(child, inner))
            place = properties.get(f"{_W}val") if properties is not None else ""
            yield raised(text) if place == "superscript" else lowered(text) if place == "subscript" else text
        elif name in ("txbxContent",):
            inner.append(child)
        elif name not in _SKIPPED:
            yield from _runs(child, inner)


def formula(element: Any) -> str:
    """A formula of Word in one line: `(a)/(b)`, `x^2`, `a_i`, `√(x)`."""
    parts: list[str] = []
    for child in element:
        name = local(child)
        sides = {
            local(side): formula(side)
            for side in child
            if local(side) in ("num", "den", "e", "sup", "sub", "deg", "fName", "lim")
        }
        if name == "t":
            parts.append(child.text or "")
        elif name == "f":
            parts.append(f"{_grouped(sides.get('num', ''))}/{_grouped(sides.get('den', ''))}")
        elif name in ("sSup", "sSub", "sSubSup"):
            down = f"_{_grouped(sides['sub'])}" if "sub" in sides else ""
            up = f"^{_grouped(sides['sup'])}" if "sup" in sides else ""
            parts.append(f"{sides.get('e', '')}{down}{up}")
        elif name == "rad":
            parts.append(f"{sides.get('deg', '')}√{_grouped(sides.get('e', ''))}")
        elif name == "nary":
            sign = next((attribute(one, "val") for one in child.iter(f"{_M}chr")), "∫")
            parts.append(
                f"{sign}_{_grouped(sides.get('sub', ''))}^{_grouped(sides.get('sup', ''))} {sides.get('e', '')}"
            )
        elif name == "d":
            inner = ", ".join(formula(side) for side in child if local(side) == "e")
            parts.append(f"({inner})")
        elif name == "func":
            parts.append(f"{sides.get('fName', '')} {sides.get('e', '')}")
        elif not name.endswith("Pr"):
            parts.append(formula(child))
    return "".join(parts)


def _grouped(text: str) -> str:
    return text if len(text) <= 1 or text.isalnum() else f"({text})"


# ── PPTX ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_pptx(file: BinaryIO, most: int) -> Draft:
    """Read slides in their order, each a page, with the speaker's notes behind it."""
    with zipfile.ZipFile(file) as archive:
        main = _main_part(archive, most, "ppt/presentation.xml")
        relations = _relations(archive, main, most)
        rels = [
            next((v for k, v in one.attrib.items() if "relationships" in k), "")
            for one in parse(part(archive, main, most)).iter("{*}sldId")
        ]
        slides = [relations[key][1] for key in rels if key in relations] or [
            target for kind, target in relations.values() if kind == "slide"
        ]
        pages = []
        for name in slides:
            data = part(archive, name, most, needed=False)
            if not data:
                pages.append("")
                continue
            blocks = Blocks()
            _slide(parse(data), blocks)
            for kind, target in _relations(archive, name, most).values():
                notes = part(archive, target, most, needed=False) if kind == "notesSlide" else b""
                if notes:
                    _slide(parse(notes), blocks, notes=True)
            pages.append(tidy(blocks.text()))
        meta = core_meta(archive, "docProps/core.xml", most)
    if not any(pages):
        raise Unreadable("no_text", "the slides have no text")
    return Draft(tuple(pages), meta, paged=True)


def _relations(archive: zipfile.ZipFile, name: str, most: int) -> dict[str, tuple[str, str]]:
    """Of each relation of a part: what it is, and the part that it leads to."""
    folder = posixpath.dirname(name)
    data = part(archive, f"{folder}/_rels/{posixpath.basename(name)}.rels", most, needed=False)
    found = {}
    for one in parse(data) if data else ():
        if one.get("TargetMode") != "External":
            target = one.get("Target", "")
            target = (
                target.lstrip("/")
                if target.startswith("/")
                else posixpath.normpath(posixpath.join(folder, target))
            )
            found[one.get("Id", "")] = (one.get("Type", "").rpartition("/")[2], target)
    return found


def _slide(root: Any, blocks: Blocks, *, notes: bool = False) -> None:
    for shape in root.iter("{*}sp", "{*}graphicFrame"):
        place = next(shape.iter("{*}ph"), None)
        kind = place.get("type", "body") if place is not None else ""
        if kind in ("sldNum", "dt", "ftr", "hdr", "sldImg") or (notes and kind != "body"):
            continue
        tables = list(shape.iter("{*}tbl"))
        for table in tables:
            blocks.table([[_drawn(cell) for cell in row.iter("{*}tc")] for row in table.iter("{*}tr")])
        if tables:
            continue
        first = True
        for paragraph in shape.iter("{*}p"):
            text = _drawn_paragraph(paragraph)
            if not text.strip():
                continue
            blocks.add(text)
            if kind in ("title", "ctrTitle"):
                blocks.heading(2)
            elif kind in ("body", "") and not notes and place is not None:
                properties = next(paragraph.iterchildren("{*}pPr"), None)
                depth = _number(properties.get("lvl")) if properties is not None else 0
                blocks.end("  " * depth + "- ", tight=not first)
            else:
                blocks.end(tight=not first)
            first = False


def _drawn(element: Any) -> str:
    return " ".join(_drawn_paragraph(paragraph) for paragraph in element.iter("{*}p"))


def _drawn_paragraph(paragraph: Any) -> str:
    parts = []
    for one in paragraph.iter("{*}t", "{*}br"):
        parts.append("\v" if local(one) == "br" else one.text or "")
    return "".join(parts)


# ── ODT, ODP ─────────────────────────────────────────────────────────────────────────────────────────────────────────

_UNSAID = names(
    "table-of-content alphabetical-index illustration-index tracked-changes annotation annotation-end sequence-decls "
    "bookmark forms variable-decls user-field-decls notes-configuration header footer"
)


def read_odf(file: BinaryIO, most: int) -> Draft:
    """Read a text or slides of OpenDocument; slides are pages."""
    with zipfile.ZipFile(file) as archive:
        if b"encryption-data" in part(archive, "META-INF/manifest.xml", most, needed=False):
            raise Unreadable("encrypted", "the document has a password")
        body = next(parse(part(archive, "content.xml", most)).iter("{*}body"), None)
        if body is None:
            raise Unreadable("damaged", "the document has no body")
        slides = list(body.iter("{*}page"))
        pages = []
        for root in slides or [body]:
            blocks, notes = Blocks(), list[Any]()
            _odf(root, blocks, notes, depth=0, level=0)
            for note in notes:
                _odf(note, blocks, [], depth=0, level=0)
            pages.append(tidy(blocks.text()))
        meta = core_meta(archive, "meta.xml", most)
    return Draft(tuple(pages), meta, paged=bool(slides))


def _odf(root: Any, blocks: Blocks, notes: list[Any], *, depth: int, level: int) -> None:
    if level > 100:
        raise Unreadable("damaged", "its elements are nested too deep")
    first = True
    for element in root:
        name = local(element)
        if name in ("h", "p"):
            blocks.add("".join(_spans(element, notes)))
            if name == "h":
                blocks.heading(_number(attribute(element, "outline-level"), 1))
            elif depth:
                said = blocks.end(
                    "  " * (depth - 1) + ("- " if first else "  "),
                    tight=attribute(root, "continues") == "" and _later(root),
                )
                first = first and not said
            else:
                blocks.end()
        elif name == "list":
            _odf(element, blocks, notes, depth=depth + 1, level=level + 1)
        elif name == "table":
            rows = []
            for row in element.iter("{*}table-row"):
                cells = []
                for cell in row:
                    if local(cell) in ("table-cell", "covered-table-cell"):
                        text = " ".join("".join(_spans(p, notes)) for p in cell.iter("{*}p", "{*}h"))
                        cells += [text] * min(
                            _number(attribute(cell, "number-columns-repeated"), 1), 50 if text else 1
                        )
                rows.append(cells)
            blocks.table(rows)
        elif name not in _UNSAID:
            _odf(element, blocks, notes, depth=depth, level=level + 1)


def _later(item: Any) -> bool:
    before = item.getprevious()
    nested = item.getparent() is not None and any(local(a) == "list-item" for a in item.iterancestors())
    return (before is not None and local(before) == "list-item") or nested


def _spans(element: Any, notes: list[Any]) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        name = local(child)
        if name == "s" or name == "tab":
            yield " "
        elif name == "line-break":
            yield "\v"
        elif name == "note":
            notes.extend(child.iter("{*}note-body"))
        elif name == "frame":
            notes.extend(child.iter("{*}text-box"))
        elif name and name not in _UNSAID:
            yield from _spans(child, notes)
        yield child.tail or ""
