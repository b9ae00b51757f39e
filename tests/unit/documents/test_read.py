"""From bytes to documents: archives in archives, limits, and what is damaged, each with its place and reason."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from dataclasses import asdict

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.documents.document import REASONS, Document, Lost
from tasks.documents.kinds import ARCHIVES, NAMES
from tasks.documents.limits import Limits
from tasks.documents.read import EXTRACTORS, extractor_version, read
from tasks.documents.worker import put
from tests.support.papers import docx, epub, pdf, word, zipped

SMALL = Limits(file_bytes=200_000, unpacked_bytes=1_000_000, depth=5, entries=50, text_bytes=100_000)


def found(data: bytes, limits: Limits = SMALL) -> list[Document | Lost]:
    return list(read(io.BytesIO(data), "f", limits))


def texts(data: bytes) -> dict[str, str]:
    return {one.place: one.text for one in found(data) if isinstance(one, Document)}


def fates(data: bytes, limits: Limits = SMALL) -> list[tuple[str, str]]:
    return [(one.place, one.reason if isinstance(one, Lost) else "read") for one in found(data, limits)]


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def test_archives_in_archives_are_opened_and_each_entry_has_its_place():
    inner = zipped({"a.txt": "first words", "deep/b": docx(word("second words"))})
    data = gzip.compress(
        tarred({"x.zip": inner, "c.xz": lzma.compress(b"third words"), "d": bz2.compress(b"fourth words")})
    )
    assert texts(data) == {
        "f!x.zip!a.txt": "first words",
        "f!x.zip!deep/b": "second words",
        "f!c.xz": "third words",
        "f!d": "fourth words",
    }
    assert texts(zstandard.compress(data)) == texts(data)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_members_one_after_another_are_one_file(compress):
    parts = [b"first words " * 9_000, b"second words " * 9_000]
    whole = b"".join(map(compress, parts))
    (document,) = read(io.BytesIO(whole), "f", Limits())
    assert isinstance(document, Document) and document.text == b"".join(parts).decode().rstrip()


def test_pages_are_places_in_the_text():
    (book,) = found(epub(["<p>one</p>", "", "<p>two</p>"]))
    assert isinstance(book, Document)
    assert [(page.number, book.text[page.begin : page.end]) for page in book.pages] == [
        (1, "one"),
        (3, "two"),
    ]
    assert book.meta == {"title": "A book", "author": "Ann", "language": "en"}


def test_the_same_bytes_give_the_same_documents():
    data = zipped({"a": pdf([[(72, 700, "words")]]), "b": "<p>x</p><p>y</p>", "c": "a,b\n1,2\n3,4\n"})
    assert found(data) == found(data)


def _nested(depth: int) -> bytes:
    data = b"words"
    for _ in range(depth):
        data = zipped({"n": data})
    return data


def _encrypted() -> bytes:
    data = bytearray(zipped({"a": "words", "b": "more"}))
    with zipfile.ZipFile(io.BytesIO(bytes(data))) as archive:
        local = archive.getinfo("a").header_offset
    data[local + 6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


BROKEN = {
    "a zip with a password for one of its files": (_encrypted(), [("f!a", "encrypted"), ("f!b", "read")]),
    "a zip cut short": (zipped({"a": "words" * 500})[:80], [("f", "damaged")]),
    "a gz cut short": (gzip.compress(bytes(range(97, 123)) * 7000)[:-30], [("f", "damaged")]),
    "a gz with a byte changed": (gzip.compress(b"words " * 999)[:-6] + b"\0\0\0\0\0\0", [("f", "damaged")]),
    "an xz cut short": (lzma.compress(b"words " * 999)[:-20], [("f", "damaged")]),
    "a zst cut short": (zstandard.compress(bytes(range(97, 123)) * 999)[:-9], [("f", "damaged")]),
    "a bz2 cut short": (bz2.compress(b"words " * 999)[:-9], [("f", "damaged")]),
    "a tar cut short": (
        tarred({"a": b"words", "b": b"x" * 5000})[:2000],
        [("f!a", "read"), ("f!b", "damaged"), ("f", "damaged")],
    ),
    "zips in zips, too deep": (_nested(7), [("f!n!n!n!n!n!n", "too_deep")]),
    "a file that unpacks to too much": (gzip.compress(bytes(300_000)), [("f", "empty")]),
    "a file that unpacks to too much text": (gzip.compress(b"word " * 60_000), [("f", "too_large")]),
    "a bomb of many files": (
        zipped({str(n): b"word " * 39_000 for n in range(9)}),
        [*((f"f!{n}", "text_too_long") for n in range(5)), ("f!5", "expands_too_much")],
    ),
    "too many files": (
        zipped({f"{n:03}": "x" for n in range(60)}),
        [*((f"f!{n:03}", "read") for n in range(49)), ("f!049", "too_many")],
    ),
    "a text that is too long": (b"words " * 20_000, [("f", "text_too_long")]),
    "a docx without its document": (zipped({"[Content_Types].xml": "", "word/x": ""}), [("f", "damaged")]),
    "a docx whose XML is cut": (docx(word("x") + "<w:p>"), [("f", "damaged")]),
    "a docx without text": (docx(word(" ")), [("f", "empty")]),
    "a book that is locked": (epub(["<p>x</p>"], locked=True), [("f", "encrypted")]),
    "a book without text": (epub(["<img src=x>"]), [("f", "no_text")]),
    "XML with an entity that grows": (
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]><a><d>&c;</d></a>',
        [("f", "empty")],
    ),
    "XML with a file of the machine": (
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a><d>&b;</d></a>',
        [("f", "empty")],
    ),
    "a pdf cut short": (pdf([[(72, 700, "some words")]])[:90], [("f", "damaged")]),
    "a notebook cut short": (b'{"cells": [{"cell_type": "code", "source": "x"', [("f", "damaged")]),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(40), [("f", "image")]),
    "an Outlook message cut short": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), [("f", "damaged")]),
    "nothing": (b"", [("f", "empty")]),
    "a page without text": (b"<html><body><img src=x></body></html>", [("f", "empty")]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_has_its_fate(name):
    data, expected = BROKEN[name]
    assert fates(data) == expected
    assert {reason for _, reason in expected} <= {*REASONS, "read"}


def test_reading_goes_on_behind_the_entries_that_are_passed_over():
    data = zipped({"a": "one", "b": zipped({"c": "two"}), "d": "three"})
    seen: list[tuple[int, str]] = []
    everything = list(
        read(io.BytesIO(data), "f", SMALL, alive=lambda entry, place: seen.append((entry, place)))
    )
    assert [place for _, place in seen] == ["f", "f!a", "f!b", "f!b!c", "f!d"]
    for entry, place in seen:
        rest = list(read(io.BytesIO(data), "f", SMALL, skip=entry))
        assert rest == [one for one in everything if [p for _, p in seen].index(one.place) >= entry], place


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [
            docx(word("words")),
            epub(["<p>x</p>"]),
            pdf([[(72, 700, "words")]]),
            gzip.compress(tarred({"a": b"words"})),
        ]
    ),
    st.data(),
)
def test_any_damage_gives_documents_or_reasons(data, choice):
    place = choice.draw(st.integers(0, len(data) - 1))
    changed = bytearray(data)
    changed[place] = choice.draw(st.integers(0, 255))
    cut = choice.draw(st.integers(place, len(data)))
    for one in found(bytes(changed[:cut])):
        assert isinstance(one, Document) or one.reason in REASONS


def test_every_kind_has_a_name():
    assert {*EXTRACTORS, *ARCHIVES, "rows", "other", "empty"} == {*NAMES}


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_every_extractor_says_its_version(kind):
    assert extractor_version(kind).startswith(f"{kind} ")


def test_names_and_texts_that_are_of_no_encoding_lose_nothing_else():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for name in ("a.txt", "caf\udce9.txt", "z.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 5
            archive.addfile(entry, io.BytesIO(b"words"))
    answers = io.BytesIO()
    path_of = {"f!a.txt", "f!caf\ufffd.txt", "f!z.txt"}
    assert set(texts(out.getvalue())) == path_of
    for one in found(out.getvalue()):
        put(answers, {"document": asdict(one)})
    said = list[str]()
    list(read(io.BytesIO(out.getvalue()), "f", SMALL, alive=lambda _, place: said.append(place)))
    assert path_of <= set(said)
    book = b'{"nbformat": 4, "metadata": {}, "cells": []}'
    mail = (
        b"From: a@b.c\nTo: d@e.f\nSubject: caf\xe9\nDate: Mon, 1 Jan 2024 00:00:00 +0000\nMIME-Version: 1.0\n"
        b'Content-Type: multipart/mixed; boundary="x"\n\n--x\n\nwords\n--x\n'
        b'Content-Disposition: attachment; filename="caf\xe9.txt"\n\nothers\n--x--\n'
    )
    for data in (mail, book, zipped({"caf\u00e9": mail})):
        for one in found(data):
            put(answers, {"found": asdict(one)})


@pytest.mark.parametrize(
    "data",
    [
        zipped({}),
        zipped({"__MACOSX/._a": "x"}),
        tarred({}),
        b"<mediawiki><page><title>A</title><ns>0</ns><redirect title='B'/>"
        b"<revision><text>x</text></revision></page></mediawiki>",
    ],
)
def test_what_holds_nothing_has_a_fate(data: bytes):
    assert fates(data) == [("f", "empty")]
    assert ("f!a", "empty") in fates(zipped({"a": data, "b": "words"}))
    assert not list(read(io.BytesIO(data), "f", SMALL, skip=1)), "it was told before"
