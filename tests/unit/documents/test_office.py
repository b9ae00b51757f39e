"""Office documents, books, mail and the rest: what is kept of each."""

# ruff: noqa: E501 (sources of documents)

from __future__ import annotations

import io

import pytest

from tasks.documents.document import Document
from tasks.documents.read import read
from tests.support.papers import docx, word, zipped

_NUMBERS = (
    '<w:abstractNum w:abstractNumId="0"><w:lvl w:ilvl="0"><w:numFmt w:val="decimal"/></w:lvl></w:abstractNum>'
    '<w:abstractNum w:abstractNumId="1"><w:lvl w:ilvl="0"><w:numFmt w:val="bullet"/></w:lvl>'
    '<w:lvl w:ilvl="1"><w:numFmt w:val="bullet"/></w:lvl></w:abstractNum>'
    '<w:num w:numId="1"><w:abstractNumId w:val="0"/></w:num><w:num w:numId="2"><w:abstractNumId w:val="1"/></w:num>'
)


def one(data: bytes | str) -> Document:
    (found,) = read(io.BytesIO(data if isinstance(data, bytes) else data.encode()), "f")
    assert isinstance(found, Document), found
    return found


def item(text: str, number: int, level: int = 0) -> str:
    numbering = f'<w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="{number}"/></w:numPr>'
    return f"<w:p><w:pPr>{numbering}</w:pPr><w:r><w:t>{text}</w:t></w:r></w:p>"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (word("H", "Heading1") + word("p") + word("S", "Heading2"), "# H\n\np\n\n## S"),
        (item("a", 1) + item("b", 1), "1. a\n2. b"),
        (item("a", 2) + item("b", 2, 1) + item("c", 2), "- a\n  - b\n- c"),
        (
            f"<w:tbl><w:tr><w:tc>{word('A')}</w:tc><w:tc>{word('B')}</w:tc></w:tr><w:tr><w:tc>{word('1')}</w:tc><w:tc>{word('2')}</w:tc></w:tr></w:tbl>",
            "| A | B |\n| --- | --- |\n| 1 | 2 |",
        ),
        (
            "<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>",
            "new",
        ),
        ("<w:p><w:r><w:t>a</w:t><w:br/><w:t>b</w:t></w:r></w:p>", "a\nb"),
        (
            '<w:p><w:r><w:t>x</w:t></w:r><w:r><w:rPr><w:vertAlign w:val="superscript"/></w:rPr><w:t>2</w:t></w:r></w:p>',
            "x²",
        ),
        ("<w:p><w:r><w:instrText>PAGEREF x</w:instrText><w:t>seen</w:t></w:r></w:p>", "seen"),
    ],
)
def test_word(body, text):
    found = one(docx(body, _NUMBERS))
    assert (found.kind, found.text, found.meta) == ("docx", text, {"title": "A title", "author": "Jo Doe"})


def test_slides_are_pages():
    shape = '<p:sp><p:nvSpPr><p:ph type="{}"/></p:nvSpPr><p:txBody><a:p><a:t>{}</a:t></a:p></p:txBody></p:sp>'
    slide = (
        '<p:sld xmlns:p="p" xmlns:a="a">'
        + shape.format("title", "Title {0}")
        + shape.format("body", "Point {0}")
        + shape.format("sldNum", "7")
        + "</p:sld>"
    )
    relation = '<Relationship Id="r{0}" Type="http://x/slide" Target="slides/s{0}.xml"/>'
    found = one(
        zipped(
            {
                "[Content_Types].xml": "<Types/>",
                "ppt/presentation.xml": '<p:p xmlns:p="p" xmlns:r="http://x/relationships"><p:sldId id="9" r:id="r2"/><p:sldId id="8" r:id="r1"/></p:p>',
                "ppt/_rels/presentation.xml.rels": f"<R>{relation.format(1)}{relation.format(2)}</R>",
                "ppt/slides/s1.xml": slide.format(1),
                "ppt/slides/s2.xml": slide.format(2),
            }
        )
    )
    assert found.text == "## Title 2\n\n- Point 2\n\n## Title 1\n\n- Point 1"
    assert [page.number for page in found.pages] == [1, 2]


def test_open_document():
    content = (
        '<o:d xmlns:o="o" xmlns:t="t" xmlns:b="b"><o:body><o:text><t:h t:outline-level="2">H</t:h><t:p>a<t:s/>b<t:tab/>c<t:line-break/>d</t:p>'
        "<t:list><t:list-item><t:p>x</t:p><t:list><t:list-item><t:p>y</t:p></t:list-item></t:list></t:list-item><t:list-item><t:p>z</t:p></t:list-item></t:list>"
        "<b:table><b:table-row><b:table-cell><t:p>A</t:p></b:table-cell><b:table-cell><t:p>B</t:p></b:table-cell></b:table-row></b:table></o:text></o:body></o:d>"
    )
    found = one(zipped({"mimetype": "application/vnd.oasis.opendocument.text", "content.xml": content}))
    assert (found.kind, found.text) == ("odt", "## H\n\na b c\nd\n\n- x\n  - y\n- z\n\n| A | B |")


RTF = r"{\rtf1\ansi{\info{\title A note}}\b Bold\b0  caf\'e9 and \u8212? more\par Second}"
NOTEBOOK = (
    '{"nbformat": 4, "metadata": {"language_info": {"name": "python"}}, "cells": [{"cell_type": "markdown", "source": ["# T\\n", "[x](http://y)"]},'
    '{"cell_type": "code", "source": "print(1)", "outputs": [{"text": ["1\\n"]}]}]}'
)
LATEX = r"""\documentclass{article}\newcommand{\us}{We}
\title{A \emph{title}}\begin{document}\maketitle % a comment
\section{One}\label{s} \us\ say caf\'e ``so''~\cite{x}, that is 5\% of $x^2$.
\begin{itemize}\item a \item b\end{itemize}
\begin{equation}y = 1\label{e}\end{equation}
\begin{verbatim}
% code
\end{verbatim}
\end{document}"""
RST = "Title\n=====\n\nSee :ref:`here <x>` and `a link <http://y>`_.\n\n.. note:: Mind this.\n\n.. code-block:: py\n\n   a = 1\n\nPart\n----\n\nExample::\n\n    b\n"
MARKDOWN = "---\ntitle: T\nauthor: [A, B]\n---\n\n# H\n\nA [link](http://x.y 'z') and ![image](i.png)<br>.\n\n```\n[kept](as it is)\n```\n\n[n]: http://x\n"
JATS = (
    '<?xml version="1.0"?><!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "j.dtd"><article xml:lang="en"><front><article-meta><title-group><article-title>A study</article-title>'
    "</title-group><contrib-group><contrib contrib-type='author'><name><surname>Doe</surname><given-names>Jo</given-names></name></contrib></contrib-group>"
    "<pub-date><year>2020</year></pub-date><abstract><p>Short.</p></abstract></article-meta></front><body><sec><title>Methods</title>"
    "<p>We did <xref ref-type='bibr'>1</xref>it.</p></sec></body><back><ref-list><ref>Gone</ref></ref-list></back></article>"
)
MAIL = (
    "From: Jo Doe <jo@x.y>\nTo: a@b\nSubject: =?utf-8?q?Caf=C3=A9?=\nDate: Thu, 2 Jan 2020 10:00:00 +0000\n"
    "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\nna=EFve\n"
)


@pytest.mark.parametrize(
    ("data", "kind", "text", "meta"),
    [
        (RTF, "rtf", "Bold café and — more\n\nSecond", {"title": "A note"}),
        (NOTEBOOK, "notebook", "# T\nx\n\n```python\nprint(1)\n```\n\n```\n1\n```", {"title": "T"}),
        (
            LATEX,
            "latex",
            "# A title\n\n## One\n\nWe say café “so” , that is 5% of $x^2$.\n\n- a\n- b\n\n$$y = 1$$\n\n```\n% code\n```",
            {"title": "A title"},
        ),
        (
            RST,
            "rst",
            "# Title\n\nSee here and a link.\n\nMind this.\n\n```py\na = 1\n```\n\n## Part\n\nExample:\n\n```\nb\n```",
            {"title": "Title"},
        ),
        (
            MARKDOWN,
            "markdown",
            "# H\n\nA link and .\n\n```\n[kept](as it is)\n```",
            {"title": "T", "author": "A, B"},
        ),
        (
            JATS,
            "jats",
            "# A study\n\nShort.\n\n## Methods\n\nWe did it.",
            {"title": "A study", "author": "Jo Doe", "date": "2020", "language": "en"},
        ),
        (
            "<?xml version='1.0'?><!DOCTYPE a SYSTEM 'a.dtd'><a><b>caf&eacute;&nbsp;&amp; more</b></a>",
            "xml",
            "café & more",
            {},
        ),
        ("<?xml version='1.0'?><a><b>one</b><b>t<i>w</i>o</b></a>", "xml", "one\n\ntwo", {}),
        ("a;b\n1;x y\n3;4\n", "table", "| a | b |\n| --- | --- |\n| 1 | x y |\n| 3 | 4 |", {}),
    ],
)
def test_texts_of_many_kinds(data, kind, text, meta):
    found = one(data)
    assert (found.kind, found.text) == (kind, text)
    assert {key: value for key, value in found.meta.items() if key != "encoding"} == meta


def test_a_table_with_a_column_of_texts_is_a_document_a_row():
    data = 'id,text\n1,"A sentence that is long enough, with a comma."\n2,"Another sentence that is long enough to count."\n'
    found = [x for x in read(io.BytesIO(data.encode()), "f") if isinstance(x, Document)]
    assert [(x.place, x.meta["id"]) for x in found] == [("f#1", "1"), ("f#2", "2")]
    assert found[0].text == "A sentence that is long enough, with a comma."


def test_mail_and_mailboxes():
    (single,) = read(io.BytesIO(MAIL.encode()), "f")
    assert isinstance(single, Document)
    assert (single.text, single.meta) == (
        "# Café\n\nnaïve",
        {"title": "Café", "author": "Jo Doe", "date": "2020-01-02"},
    )
    box = "".join(f"From jo@x Thu Jan  2 10:00:00 2020\n{MAIL}\n" for _ in range(3))
    assert [(x.place, x.kind) for x in read(io.BytesIO(box.encode()), "f")] == [
        (f"f#{n}", "mbox") for n in (1, 2, 3)
    ]


def test_a_dump_of_a_wiki():
    page = "<page><title>{}</title><ns>{}</ns><revision><timestamp>2020-01-02T03:04:05Z</timestamp><text>{}</text></revision></page>"
    source = (
        "{{Box|x=1}}'''Bold''' [[Link|shown]] and [http://x y].&lt;ref&gt;gone&lt;/ref&gt;\n\n== Part ==\n* a\n** b\n\n"
        "{|\n! A !! B\n|-\n| 1 || 2\n|}\n\n== Notes ==\n[[Category:X]]"
    )
    dump = (
        "<mediawiki xml:lang='en'>"
        + page.format("One", 0, source)
        + page.format("Talk", 1, "x")
        + page.format("Two", 0, "#REDIRECT [[One]]")
        + "</mediawiki>"
    )
    (found,) = read(io.BytesIO(dump.encode()), "f")
    assert isinstance(found, Document)
    assert (
        found.text
        == "# One\n\nBold shown and y.\n\n## Part\n\n- a\n  - b\n\n| A | B |\n| --- | --- |\n| 1 | 2 |"
    )
    assert (found.place, found.meta) == ("f#1", {"title": "One", "date": "2020-01-02", "language": "en"})


def _record(kind: str, payload: bytes, extra: str = "") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://x.y/\r\nWARC-Date: 2020-01-02T03:04:05Z\r\n{extra}Content-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload + b"\r\n\r\n"


def test_web_archives():
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html><body><p>A page</p></body></html>"
    gone = b"HTTP/1.1 404 Not Found\r\n\r\nno"
    http = "Content-Type: application/http; msgtype=response\r\n"
    data = (
        _record("warcinfo", b"x")
        + _record("response", page, http)
        + _record("response", gone, http)
        + _record("conversion", b"A text")
    )
    found = list(read(io.BytesIO(data), "f"))
    assert [(x.place, getattr(x, "text", None) or getattr(x, "reason", None)) for x in found] == [
        ("f#1", "A page"),
        ("f#2", "other_answer"),
        ("f#3", "A text"),
    ]
    assert isinstance(found[0], Document) and found[0].meta["url"] == "http://x.y/"
