"""E-books: the chapters of the spine in their order, each as a page."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import unquote

from tasks.documents.document import Draft, Unreadable
from tasks.documents.html import read_html
from tasks.documents.tidy import one_line
from tasks.documents.xml import local, parse, part

_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
"""Ways to make fonts unusable elsewhere, which leave the text as it is."""


def read_epub(file: BinaryIO, most: int, alive: Callable[[], None]) -> Draft:
    """Read a book; at most `most` bytes of each part. Raises Unreadable: encrypted, damaged, no_text."""
    with zipfile.ZipFile(file) as archive:
        if b"EncryptedData" in (locks := part(archive, "META-INF/encryption.xml", most, needed=False)):
            for element in parse(locks).iter("{*}EncryptionMethod"):
                if element.get("Algorithm") not in _FONTS:
                    raise Unreadable("encrypted", "the book is protected against copying")
        container = parse(part(archive, "META-INF/container.xml", most))
        root = next((e.get("full-path") for e in container.iter("{*}rootfile")), None)
        if not root:
            raise Unreadable("damaged", "the book does not say where its contents are")
        package = parse(part(archive, root, most))
        base = posixpath.dirname(root)
        meta: dict[str, str] = {}
        items: dict[str, tuple[str, str]] = {}
        spine: list[str] = []
        for element in package.iter():
            name = local(element)
            if name in ("title", "language", "date") and element.text:
                meta.setdefault(name, one_line(element.text)[: 10 if name == "date" else None])
            elif name == "creator" and element.text:
                meta["author"] = (
                    f"{meta['author']}, {one_line(element.text)}"
                    if "author" in meta
                    else one_line(element.text)
                )
            elif name == "item":
                items[element.get("id", "")] = (element.get("href", ""), element.get("properties", ""))
            elif name == "itemref":
                spine.append(element.get("idref", ""))
        pages: list[str] = []
        for reference in spine:
            href, properties = items.get(reference, ("", ""))
            if not href or "nav" in properties.split():
                continue
            where = posixpath.normpath(posixpath.join(base, unquote(href.split("#")[0])))
            data = part(archive, where, most, needed=False)
            pages.append(read_html(data, book=True).pages[0] if data.strip() else "")
            alive()
    if not any(pages):
        raise Unreadable("no_text", "the book has no text in its chapters")
    return Draft(tuple(pages), meta, paged=True)
