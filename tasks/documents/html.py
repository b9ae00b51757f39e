"""The main text of a web page, without menus, heads, feet and what else surrounds it; tables, lists and code kept readable.

libxml2 (lxml) makes a tree of any HTML. `_prune` takes away what is no text of the page: by element, by role, by the words
that authors use in classes and ids, and lists and tables that are nearly all links where no element says what the main part
is. Then the tree is walked once, into blocks.
"""

from __future__ import annotations

import re
from typing import Any

from lxml import etree

from tasks.documents.blocks import Blocks, lowered, raised
from tasks.documents.document import Draft, Unreadable
from tasks.documents.encodings import decoded
from tasks.documents.tidy import names, one_line, tidy

_NEVER = names(
    "script style noscript template svg canvas iframe object embed applet form button select input textarea option "
    "datalist nav dialog audio video source track map area base link meta title head progress meter frameset"
)
_SCRIPT_MATH = re.compile(r"math/(?:tex|asciimath)", re.I)
_ROLES = names("navigation banner contentinfo search complementary menu menubar dialog alert toolbar tablist")
_AROUND = re.compile(
    r"(?:^|[\s_-])(?:nav|navbar|navigation|navbox|navlinks?|menu|submenu|breadcrumbs?|sidebar|side-bar|footer|colophon|masthead|"
    r"site-header|page-header-actions|cookies?|consent|gdpr|advert(?:isement)?s?|ads?|adsense|sponsored|promo|social|share|sharing|"
    r"related|recommended|comments?|disqus|pagination|pager|paginator|toc|table-of-contents|skip(?:-link|-nav|link)?|newsletter|"
    r"subscribe|popup|modal|overlay|toolbar|widget|login|signin|search(?:-?box|-?form)?|editsection|noprint|printfooter|catlinks|"
    r"jump-link|interlanguage-links?|sr-only|screen-reader-text|visually-hidden|headerlink|hatnote|sistersitebox|mw-hidden-catlinks|"
    r"authority-control|metadata)(?:$|[\s_-])",
    re.I,
)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.I)
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_BLOCK = names(
    "p div section article main header footer aside figure figcaption blockquote address ul ol dl dt dd li table tbody "
    "thead tfoot tr td th caption pre hr center details summary fieldset legend body html h1 h2 h3 h4 h5 h6 hgroup menu"
)
_KEPT_HOLDERS = names("html body main article")
_MOST_LINKS = 0.6


def read_html(data: bytes, *, book: bool = False) -> Draft:
    """Read a page. `book`: a chapter of an e-book, where all is text. Raises Unreadable: empty."""
    text, encoding = decoded(data)
    root = _tree(text)
    if root is None:
        raise Unreadable("empty", "the page has no element")
    meta = {} if book else _meta(root)
    body = root if book else _main(root)
    blocks = Blocks()
    walk(body, blocks)
    return Draft((tidy(blocks.text()),), meta | {"encoding": encoding})


def _tree(text: str) -> Any:
    parser = etree.HTMLParser(
        encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True, huge_tree=True
    )
    try:
        return etree.fromstring(text.encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, ValueError):
        return None


def _meta(root: Any) -> dict[str, str]:
    found: dict[str, str] = {
        "language": root.get("lang") or root.get("{http://www.w3.org/XML/1998/namespace}lang") or ""
    }
    for element in root.iter("meta"):
        name = (element.get("name") or element.get("property") or element.get("itemprop") or "").lower()
        content = one_line(element.get("content"))
        if name in ("author", "article:author", "dc.creator", "citation_author") and not content.startswith(
            "http"
        ):
            found.setdefault("author", content)
        elif name in (
            "date",
            "article:published_time",
            "dc.date",
            "citation_publication_date",
            "datepublished",
        ):
            found.setdefault("date", content[:10])
        elif name == "og:title":
            found.setdefault("title", content)
    for element in root.iter("link"):
        if element.get("rel") == "canonical":
            found["url"] = (element.get("href") or "").strip()
    if not found.get("title"):
        found["title"] = one_line(root.findtext(".//title"))
    return found


# ── What is no text of the page ──────────────────────────────────────────────────────────────────────────────────────


def _main(root: Any) -> Any:
    """The part of a page that holds its text, pruned."""
    body = root.find("body")
    if body is None:
        body = root
    holders = [e for e in body.iter("main", "div", "section") if e.tag == "main" or e.get("role") == "main"]
    if not holders:
        articles = [e for e in body.iter("article") if not any(a.tag == "article" for a in e.iterancestors())]
        holders = articles if len(articles) == 1 else []
    chosen = holders[0] if len(holders) == 1 else body
    if chosen is not body and _length(chosen) * 4 < _length(body) and _length(chosen) < 500:
        chosen = body
    _prune(chosen, links=chosen is body)
    return chosen


def _prune(root: Any, *, links: bool) -> None:
    away = []
    for element in root.iter(etree.Element):
        tag = element.tag
        if element is root or tag in _KEPT_HOLDERS:
            continue
        attributes = element.attrib
        if tag in _NEVER:
            if tag == "script" and _SCRIPT_MATH.search(attributes.get("type", "")):
                continue
            if tag == "form" and _length(element) > 2000:  # some sites are one form
                continue
            away.append(element)
        elif (attributes and _around(tag, attributes)) or (tag == "a" and element.text in ("¶", "#", "§")):
            away.append(element)
        elif tag in ("header", "footer", "aside") and links and not _within_article(element):
            if tag != "header" or element.find(".//h1") is None:
                away.append(element)
        elif links and tag in ("ul", "ol", "table", "div", "p") and _mostly_links(element):
            away.append(element)
    for element in away:
        _drop(element)


def _around(tag: str, attributes: Any) -> bool:
    if "hidden" in attributes or attributes.get("aria-hidden") == "true":
        return True
    if attributes.get("role", "").lower() in _ROLES or _HIDDEN.search(attributes.get("style", "")):
        return True
    if tag in _HEADINGS:
        return False
    named = f"{attributes.get('class', '')} {attributes.get('id', '')}"
    return len(named) > 2 and tag not in ("code", "pre", "math") and _AROUND.search(named) is not None


def _within_article(element: Any) -> bool:
    return any(ancestor.tag in ("article", "main") for ancestor in element.iterancestors())


def _mostly_links(element: Any) -> bool:
    """Whether it is a menu: several links, and little text besides."""
    links = element.xpath("count(.//a[@href])")
    if links < 3 or (element.tag in ("div", "table") and links > 200):
        return False
    whole = _length(element)
    linked = sum(_length(link) for link in element.iter("a"))
    return linked > _MOST_LINKS * whole and whole < 80 * links and element.find(".//h1") is None


def _length(element: Any) -> int:
    """Letters of the text below an element."""
    return len(" ".join(etree.tostring(element, method="text", encoding="unicode", with_tail=False).split()))


def _drop(element: Any) -> None:
    """Remove an element; the text behind it stays."""
    parent = element.getparent()
    if parent is None:
        return
    if element.tail:
        before = element.getprevious()
        if before is not None:
            before.tail = (before.tail or "") + element.tail
        else:
            parent.text = (parent.text or "") + element.tail
        element.tail = None
    parent.remove(element)


# ── Into blocks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def walk(root: Any, blocks: Blocks) -> None:
    """Put the text below an element into blocks. Names may have a namespace, as in XHTML."""
    lists: list[
        int | None
    ] = []  # of each list that is open: the number of the last item, or None without numbers
    item = ""
    tight = False
    walker = etree.iterwalk(root, events=("start", "end"))
    for event, element in walker:
        tag = element.tag
        if not isinstance(tag, str):
            if event == "end":
                blocks.add(element.tail)
            continue
        if "}" in tag:
            tag = tag.rpartition("}")[2]
        if event == "start":
            if tag in _HEADINGS or tag in _BLOCK:
                if blocks.end(item, tight=tight):
                    item, tight = "", False
                if tag in ("ul", "ol", "menu"):
                    lists.append(0 if tag == "ol" else None)
                elif tag == "li":
                    number = None
                    if lists and lists[-1] is not None:
                        number = lists[-1] = lists[-1] + 1
                    item = "  " * max(0, len(lists) - 1) + (f"{number}. " if number is not None else "- ")
                    tight = len(lists) > 1 or _has_item_before(element)
                elif tag == "dd":
                    tight = True
                elif tag == "pre":
                    blocks.code("".join(element.itertext()), _language(element))
                    walker.skip_subtree()
                    continue
                elif tag == "table" and (rows := _rows(element)) is not None:
                    blocks.table(rows)
                    walker.skip_subtree()
                    continue
            elif tag == "br":
                blocks.add("\v")
            elif tag in ("sup", "sub"):
                text = "".join(element.itertext()).strip()
                blocks.add(_note(element, text) if tag == "sup" else lowered(text))
                walker.skip_subtree()
                continue
            elif tag == "math":
                blocks.add(_math(element))
                walker.skip_subtree()
                continue
            elif tag == "script":
                blocks.add(
                    f"${(element.text or '').strip()}$"
                    if _SCRIPT_MATH.search(element.get("type", ""))
                    else ""
                )
                walker.skip_subtree()
                continue
            elif tag in ("style", "rt", "rp", "title") or _is_page_number(element):
                walker.skip_subtree()
                continue
            blocks.add(element.text)
        else:
            if tag in _HEADINGS:
                blocks.heading(_HEADINGS[tag])
            elif tag in _BLOCK and tag not in ("pre",):
                if blocks.end(item, tight=tight):
                    item, tight = "", False
                if tag in ("ul", "ol", "menu") and lists:
                    lists.pop()
            if element is not root:
                blocks.add(element.tail)
    blocks.end(item, tight=tight)


def _is_page_number(element: Any) -> bool:
    """Whether it is the number of a page of the printed book."""
    said = (
        element.get("{http://www.idpf.org/2007/ops}type")
        or element.get("epub:type")
        or element.get("role")
        or ""
    )
    return "pagebreak" in said


def _has_item_before(element: Any) -> bool:
    before = element.getprevious()
    return before is not None and isinstance(before.tag, str) and before.tag.rpartition("}")[2] == "li"


def _note(element: Any, text: str) -> str:
    """A superscript; a mark of a note is left out."""
    if re.fullmatch(r"\[?(?:\d+|[a-z*†‡])\]?", text) and (
        "reference" in element.get("class", "")
        or element.find(".//{*}a") is not None
        or element.find(".//a") is not None
    ):
        return ""
    return raised(text)


def _math(element: Any) -> str:
    for note in element.iter("{*}annotation", "annotation"):
        if "tex" in note.get("encoding", "").lower():
            return f"${' '.join((note.text or '').split())}$"
    return " ".join("".join(element.itertext()).split())


def _language(element: Any) -> str:
    for one in (element, *element.iter("{*}code", "code")):
        found = re.search(r"(?:^|\s)(?:language|lang|highlight-source)-([\w+#-]+)", one.get("class", ""))
        if found:
            return found[1]
    return ""


def _rows(element: Any) -> list[list[str]] | None:
    """The cells of a table, or None where it only lays out a page."""
    if next(element.iterdescendants("table", "{*}table"), None) is not None:
        return None
    rows: list[list[str]] = []
    longest = 0
    for row in element.iter("tr", "{*}tr"):
        cells: list[str] = []
        for cell in row:
            if isinstance(cell.tag, str) and cell.tag.rpartition("}")[2] in ("td", "th"):
                text = " ".join(_cell(cell).split())
                longest = max(longest, len(text))
                cells.append(text)
                if (span := cell.get("colspan", "")).isdecimal():
                    cells.extend([""] * min(int(span) - 1, 50))
        if cells:
            rows.append(cells)
    full = max((sum(map(bool, row)) for row in rows), default=0)
    if full < 2 or longest > 1500:
        return None
    return rows


def _cell(cell: Any) -> str:
    parts: list[str] = []
    for event, element in etree.iterwalk(cell, events=("start", "end")):
        tag = element.tag if isinstance(element.tag, str) else ""
        if event == "start":
            if tag.rpartition("}")[2] in _BLOCK or tag == "br":
                parts.append(" ")
            if isinstance(element.tag, str):
                parts.append(element.text or "")
        elif element is not cell:
            parts.append((" " if tag.rpartition("}")[2] in _BLOCK else "") + (element.tail or ""))
    return "".join(parts)
