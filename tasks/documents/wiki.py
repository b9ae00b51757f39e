"""Dumps of MediaWiki: each page of an article's name space a document, templates out, links as their text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from lxml import etree

from tasks.documents.document import Draft, Unreadable
from tasks.documents.limits import Limits
from tasks.documents.tidy import table, tidy
from tasks.documents.xml import local

_AWAY = re.compile(
    r"<!--.*?-->|<ref\b[^>/]*/>|<ref\b[^>]*>.*?</ref>|<(gallery|timeline|imagemap|score|graph|mapframe|templatestyles)\b[^>]*>.*?</\1>|__[A-Z]+__",
    re.S | re.I,
)
_MATH = re.compile(r"<math\b[^>]*>(.*?)</math>", re.S | re.I)
_ATTRIBUTES = re.compile(r"(?:[a-z]+ ?= ?\"?[\w%#;: -]*\"? *)+\|?", re.I)
_LIST = re.compile(r"^([*#;:]+)[ \t]*", re.M)
_MEDIA = re.compile(
    r"^\s*(?:file|image|category|datei|bild|kategorie|fichier|catégorie|archivo|imagen|categoría|файл|изображение|категория|картинка)\s*:",
    re.I,
)


def read_wiki(file: BinaryIO, limits: Limits) -> Iterator[tuple[str, Draft | Unreadable]]:
    """Each article of a dump as it comes: its title, its text, its day. Redirects, talk and templates are passed over."""
    language = ""
    events = etree.iterparse(
        file, events=("start", "end"), resolve_entities=False, no_network=True, huge_tree=True, load_dtd=False
    )
    number = 0
    try:
        for event, element in events:
            name = local(element)
            if event == "start":
                if name == "mediawiki":
                    language = element.get("{http://www.w3.org/XML/1998/namespace}lang", "")
                continue
            if name != "page":
                continue
            number += 1
            said = {local(child): child for child in element.iter()}
            title = (said["title"].text or "") if "title" in said else ""
            space = (said["ns"].text or "0") if "ns" in said else "0"
            text = (said["text"].text or "") if "text" in said else ""
            stamp = (said["timestamp"].text or "")[:10] if "timestamp" in said else ""
            article = (
                space.strip() == "0" and "redirect" not in said and not re.match(r"\s*#\w+\s*\[\[", text)
            )
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
            if article and text.strip():
                if len(text) > limits.text_bytes:
                    yield (
                        str(number),
                        Unreadable("text_too_long", "its source is longer than the longest document"),
                    )
                    continue
                body = plain(text)
                meta = {"title": title, "date": stamp, "language": language}
                yield str(number), Draft((tidy(f"# {title}\n\n{body}") if body else "",), meta)
    except etree.XMLSyntaxError as error:
        yield str(number + 1), Unreadable("damaged", f"the dump ends early or is damaged ({error})")


def plain(text: str) -> str:
    """Text of a page in MediaWiki's markup."""
    import mwparserfromhell

    formulas: list[str] = []

    def keep(found: re.Match[str]) -> str:
        formulas.append(f"${' '.join(found[1].split())}$")
        return f"\ue000{len(formulas) - 1}\ue001"

    text = _AWAY.sub("", _MATH.sub(keep, text))
    shown = _shown(mwparserfromhell.parse(text, skip_style_tags=True), 0)
    shown = re.sub(r"'{2,5}", "", shown)
    shown = re.sub(r"^[ \t]+", "", shown, flags=re.M)
    shown = _LIST.sub(
        lambda found: "  " * (len(found[1]) - 1) + ("- " if found[1][-1] in "*#" else ""), shown
    )
    shown = re.sub("\ue002(\\d)", lambda found: "#" * int(found[1]) + " ", shown)
    shown = re.sub("\ue000(\\d+)\ue001", lambda found: formulas[int(found[1])], shown)
    shown = re.sub(r" ?\( ?[;,]? ?\)", "", shown)  # what a template said
    shown = re.sub(r"\n{3,}", "\n\n", shown)
    return _without_empty_sections(shown).strip()


def _shown(code: Any, depth: int) -> str:
    """Text of a parsed piece: of links what is shown, of templates nothing."""
    from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink

    if depth > 40 or code is None:
        return ""
    parts: list[str] = []
    for node in code.nodes:
        if isinstance(node, Text):
            parts.append(str(node.value))
        elif isinstance(node, Wikilink):
            if not _MEDIA.match(str(node.title)):
                parts.append(
                    _shown(node.text if node.text is not None else node.title, depth + 1).removeprefix(":")
                )
        elif isinstance(node, ExternalLink):
            parts.append(
                _shown(
                    node.title if node.title is not None else (None if node.brackets else node.url), depth + 1
                )
            )
        elif isinstance(node, Heading):
            parts.append(f"\n\n\ue002{node.level}{_shown(node.title, depth + 1).strip()}\n\n")
        elif isinstance(node, HTMLEntity):
            parts.append(node.normalize() or "")
        elif isinstance(node, Tag):
            parts.append(_tag(node, depth))
    return "".join(parts)


def _tag(node: Any, depth: int) -> str:
    name = str(node.tag).strip().lower()
    if name == "table":
        rows = [
            [_unsaid(_shown(cell.contents, depth + 1).strip()) for cell in _tags(row.contents, ("td", "th"))]
            for row in _tags(node.contents, ("tr",))
        ]
        first = [_shown(cell.contents, depth + 1) for cell in _tags(node.contents, ("td", "th"))]
        return f"\n\n{table([first, *rows] if first else rows)}\n\n"
    if name in ("ref", "references", "gallery", "style", "script"):
        return ""
    if name == "br":
        return "\n"
    if name in ("li", "dd", "dt", "hr"):  # the signs of a list, which stand at the beginning of a line
        return (
            str(node.wiki_markup or "")
            if node.wiki_markup and name != "hr"
            else _shown(node.contents, depth + 1)
        )
    return _shown(node.contents, depth + 1)


def _unsaid(cell: str) -> str:
    """A cell, empty where it holds attributes alone: its text came from a template."""
    return "" if _ATTRIBUTES.fullmatch(cell) else cell


def _tags(code: Any, names: tuple[str, ...]) -> list[Any]:
    from mwparserfromhell.nodes import Tag

    if code is None:
        return []
    return [node for node in code.nodes if isinstance(node, Tag) and str(node.tag).strip().lower() in names]


def _without_empty_sections(text: str) -> str:
    """Headings with nothing below them go, as of sections that held references only."""
    lines = text.split("\n")
    kept: list[str] = []
    for at, line in enumerate(lines):
        if line.startswith("#"):
            level = len(line) - len(line.lstrip("#"))
            after = next((other for other in lines[at + 1 :] if other.strip()), "")
            if not after or (after.startswith("#") and len(after) - len(after.lstrip("#")) <= level):
                continue
        kept.append(line)
    return "\n".join(kept)
