"""A kind is told by what is in a file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile

import pytest
import zstandard

from tasks.documents.document import Unreadable
from tasks.documents.kinds import kind_of, zip_kind
from tests.support.papers import docx, epub, pdf, word, zipped


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return out.getvalue()


def named(one: bytes | str) -> str:
    """A test is called by what it expects: compressed bytes hold the time, and each process would call it otherwise."""
    return one if isinstance(one, str) else "bytes"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (pdf([[(72, 700, "x")]]), "pdf"),
        (b"  \n<!DOCTYPE html><p>x", "html"),
        (b"<?xml version='1.0'?><html xmlns='http://www.w3.org/1999/xhtml'/>", "html"),
        (b"<div><p>a piece</p></div>", "html"),
        (b"<mediawiki xml:lang='en'><page/></mediawiki>", "wiki"),
        (
            b"<?xml version='1.0'?><!DOCTYPE article PUBLIC '-//NLM//DTD JATS'><article><front/></article>",
            "jats",
        ),
        (b"<?xml version='1.0'?><thing><a>1</a></thing>", "xml"),
        (b"{\\rtf1\\ansi x}", "rtf"),
        (b"WARC/1.0\r\n", "warc"),
        (b'{"cells": [], "metadata": {}, "nbformat": 4}', "notebook"),
        (b'{"text": "a"}\n{"text": "b"}\n', "rows"),
        (b"PAR1xx", "rows"),
        (b"\\documentclass{article}\n\\begin{document}\\section{x}\\end{document}", "latex"),
        (b"Title\n=====\n\n.. note:: x\n\nSee :ref:`y`.\n", "rst"),
        (b"---\ntitle: x\n---\n\ntext\n", "markdown"),
        (b"# Title\n\nSome [link](http://x.y) here.\n", "markdown"),
        (b"# a comment\nimport os\n\n# [x](y)\ndef f(a):\n    return a\n", "text"),
        (b"# settings\na: 1\nb:\n  - c: 2\n", "text"),
        (b"name,age\nann,3\nbob,4\n", "table"),
        (b"name\tage\nann\t3\n", "table"),
        (b"From a@b Thu Jan  1 00:00:00 2020\nSubject: x\n\nhi\n", "mbox"),
        (b"From: a@b\nTo: c@d\nSubject: x\n\nhi\n", "mail"),
        (
            b"Plain words, with a comma in them.\nAnd more words, as people write.\nThen, an end to it.\n",
            "text",
        ),
        ("Ünïcode".encode("utf-16"), "text"),
        (gzip.compress(b"x"), "gz"),
        (bz2.compress(b"x"), "bz2"),
        (lzma.compress(b"x"), "xz"),
        (zstandard.compress(b"x"), "zst"),
        (b"BZh is how this text begins\n", "text"),
        (tarred(), "tar"),
        (zipped({"a": "b"}), "zip"),
    ],
    ids=named,
)
def test_kinds(data, kind):
    assert kind_of(data, whole=True) == kind


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (docx(word("x")), "docx"),
        (epub(["x"]), "epub"),
        (zipped({"[Content_Types].xml": "", "ppt/presentation.xml": ""}), "pptx"),
        (zipped({"[Content_Types].xml": "", "xl/workbook.xml": ""}), "sheets"),
        (zipped({"mimetype": "application/vnd.oasis.opendocument.text"}), "odt"),
        (zipped({"a.txt": ""}), "zip"),
    ],
    ids=named,
)
def test_a_zip_is_told_by_what_it_holds(data, kind):
    assert zip_kind(io.BytesIO(data)) == kind


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \n\0\n", "empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image"),
        (b"Rar!\x1a\x07\0xx", "not_read"),
        (b"SQLite format 3\0" + bytes(50), "not_read"),
        (bytes(range(256)) * 4, "unknown"),
        (b"".join(bytes((n * 37 % 256, n % 3)) for n in range(600)), "unknown"),
    ],
    ids=named,
)
def test_what_is_not_read_has_a_reason(data, reason):
    with pytest.raises(Unreadable) as told:
        kind_of(data, whole=True)
    assert told.value.reason == reason
