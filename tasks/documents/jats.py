"""Articles of journals in JATS, and XML of whatever vocabulary."""

from __future__ import annotations

from typing import Any

from lxml import etree

from tasks.documents.blocks import Blocks, lowered, raised
from tasks.documents.document import Draft
from tasks.documents.tidy import names, one_line, tidy
from tasks.documents.xml import local, parse

_UNSAID = names(
    "ref-list journal-meta article-id permissions pub-date contrib-group author-notes kwd-group object-id self-uri counts "
    "history aff graphic media"
)
_BLOCKS = names(
    "p title sec abstract disp-quote fig table-wrap caption list list-item def-item boxed-text disp-formula fn app ack "
    "body front back subtitle article-title"
)


def read_jats(data: bytes) -> Draft:
    """Title, abstract, body and notes; references, marks of references and what surrounds the article are left out."""
    root = parse(data)
    meta = {
        "title": _first(root, "article-title"),
        "author": ", ".join(
            filter(
                None,
                (
                    _name(one)
                    for one in root.iter("{*}contrib")
                    if one.get("contrib-type", "author") == "author"
                ),
            )
        ),
        "date": _date(root),
        "language": root.get("{http://www.w3.org/XML/1998/namespace}lang", ""),
    }
    blocks = Blocks()
    if meta["title"]:
        blocks.add(meta["title"])
        blocks.heading(1)
    for element in root.iter("{*}article-meta", "{*}body", "{*}back"):
        for part in element.iterchildren("{*}abstract") if local(element) == "article-meta" else [element]:
            _walk(part, blocks)
    return Draft((tidy(blocks.text()),), meta)


def _first(root: Any, name: str) -> str:
    found = next(root.iter(f"{{*}}{name}"), None)
    return one_line("".join(found.itertext())) if found is not None else ""


def _date(root: Any) -> str:
    found = next(root.iter("{*}pub-date"), None)
    parts = [_first(found, part) for part in ("year", "month", "day")] if found is not None else []
    return "-".join(part.zfill(2) for part in parts if part)


def _name(contributor: Any) -> str:
    return " ".join(filter(None, (_first(contributor, "given-names"), _first(contributor, "surname"))))


def _walk(root: Any, blocks: Blocks) -> None:
    depth = 1
    item = ""
    walker = etree.iterwalk(root, events=("start", "end"))
    for event, element in walker:
        name = local(element)
        if event == "start":
            if (
                name in _UNSAID
                or (name == "xref" and element.get("ref-type") in ("bibr", "fn", "aff"))
                or name == "label"
            ):
                walker.skip_subtree()
                continue
            if name in _BLOCKS and blocks.end(item):
                item = ""
            if name == "sec":
                depth += 1
            elif name == "list-item":
                item = "- "
            elif name == "table":
                rows = [
                    [
                        " ".join("".join(cell.itertext()).split())
                        for cell in row
                        if local(cell) in ("td", "th")
                    ]
                    for row in element.iter("{*}tr")
                ]
                blocks.table(rows)
                walker.skip_subtree()
                continue
            elif name in ("sup", "sub"):
                text = "".join(element.itertext())
                blocks.add(raised(text) if name == "sup" else lowered(text))
                walker.skip_subtree()
                continue
            elif name == "alternatives":
                tex = next(element.iter("{*}tex-math"), None)
                if tex is not None:
                    blocks.add(" ".join((tex.text or "").split()))
                    walker.skip_subtree()
                    continue
            elif name == "break":
                blocks.add("\v")
            blocks.add(element.text)
        else:
            if name == "title" and local(element.getparent()) in ("sec", "abstract", "app", "ack"):
                blocks.heading(max(2, depth))
            elif name in _BLOCKS and blocks.end(item):
                item = ""
            if name == "sec":
                depth -= 1
            if element is not root:
                blocks.add(element.tail)
    blocks.end(item)


def read_xml(data: bytes) -> Draft:
    """XML of an unknown vocabulary: the text of each element that has some, in lines."""
    root = parse(data)
    blocks = Blocks()
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if isinstance(element.tag, str):
            if event == "start":
                mixed = element.text and element.text.strip()
                if not mixed:
                    blocks.end()
                blocks.add(element.text)
            else:
                if element is root or not (element.tail or "").strip():
                    blocks.end()
                blocks.add(element.tail if element is not root else None)
    return Draft((tidy(blocks.text()),))
