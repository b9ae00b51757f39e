"""XML from outside: no entities of its own, nothing fetched, bounded in depth and size."""

from __future__ import annotations

import re
import zipfile
from html.entities import html5
from typing import Any

from lxml import etree

from tasks.documents.document import Unreadable


def parse(data: bytes) -> Any:
    """The root of a document. Raises Unreadable: damaged."""
    parser = etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=True,
        recover=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        return etree.fromstring(_named(data), parser)
    except etree.XMLSyntaxError as error:
        raise Unreadable("damaged", f"its XML is not whole ({error})") from error


def _named(data: bytes) -> bytes:
    """Entities that HTML knows by name (`&nbsp;`), as numbers: what their DTD says of them is not read."""

    def numbered(found: re.Match[bytes]) -> bytes:
        name = found[1].decode("ascii")
        if name in ("amp", "lt", "gt", "quot", "apos") or f"{name};" not in html5:
            return found[0]
        return b"".join(b"&#%d;" % ord(letter) for letter in html5[f"{name};"])

    return data if b"<!ENTITY" in data else re.sub(rb"&([A-Za-z][A-Za-z0-9]*);", numbered, data)


def part(archive: zipfile.ZipFile, name: str, most: int, *, needed: bool = True) -> bytes:
    """A part of a zipped document, at most `most` bytes. Raises Unreadable: damaged, encrypted, too_large."""
    try:
        entry = archive.getinfo(name)
    except KeyError:
        if needed:
            raise Unreadable("damaged", f"it has no part {name}") from None
        return b""
    if entry.flag_bits & 1:
        raise Unreadable("encrypted", "it has a password")
    try:
        with archive.open(entry) as stream:
            data = stream.read(most + 1)
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise Unreadable("damaged", f"its part {name} is damaged ({error})") from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma", "_lzma"):
            raise Unreadable("damaged", f"its part {name} is damaged ({error})") from error
        raise
    if len(data) > most:
        raise Unreadable("too_large", f"its part {name} unpacks to more than {most:,} bytes")
    return data


def local(element: Any) -> str:
    """Name of an element without its namespace; empty for what is none."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(element: Any, name: str) -> str:
    """An attribute, whatever its namespace."""
    for key, value in element.attrib.items():
        if key.rpartition("}")[2] == name:
            return str(value)
    return ""


def core_meta(archive: zipfile.ZipFile, name: str, most: int) -> dict[str, str]:
    """Title, author, date and language, as Dublin Core says them in the properties of office documents."""
    from tasks.documents.tidy import one_line

    data = part(archive, name, most, needed=False)
    if not data:
        return {}
    names = {
        "title": "title",
        "creator": "author",
        "initial-creator": "author",
        "created": "date",
        "creation-date": "date",
        "date": "date",
        "language": "language",
    }
    meta: dict[str, str] = {}
    try:
        root = parse(data)
    except Unreadable:
        return {}
    for element in root.iter():
        if (key := names.get(local(element))) and key not in meta and (text := one_line(element.text)):
            meta[key] = text[:10] if key == "date" else text
    return meta
