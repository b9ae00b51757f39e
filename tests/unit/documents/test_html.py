"""HTML: main text without menus; lists, tables, code and mathematics readable."""

# ruff: noqa: E501 (sources of documents)

from __future__ import annotations

import pytest

from tasks.documents.html import read_html

MENU = "<nav><ul><li><a href=/>Home</a><li><a href=/b>Blog</a></ul></nav>"


def text_of(body: str, head: str = "") -> str:
    return read_html(f"<html><head>{head}</head><body>{body}</body></html>".encode()).pages[0]


@pytest.mark.parametrize(
    "around",
    [
        MENU,
        "<div class='site-header'><a href=/>Brand</a></div>",
        "<div id='sidebar'>Brand and more</div>",
        "<div role=navigation>Brand</div>",
        "<footer>Brand 2020</footer>",
        "<div class='cookie-consent'>Brand uses cookies</div>",
        "<p style='display: none'>Brand</p>",
        "<script>var Brand = 1</script><style>.Brand{}</style>",
        "<ul><li><a href=1>Brand one</a><li><a href=2>Home</a><li><a href=3>Blog</a></ul>",
        "<form><input value=Brand><select><option>Brand</select></form>",
    ],
)
def test_what_surrounds_the_text_goes(around):
    text = text_of(f"{around}<h1>Title</h1><p>Some words of text.</p>{around}")
    assert text == "# Title\n\nSome words of text."


def test_the_main_part_keeps_its_lists_of_links():
    links = "<ul><li><a href=1>One</a><li><a href=2>Two</a><li><a href=3>Three</a></ul>"
    assert text_of(f"{MENU}<main><p>See:</p>{links}</main>") == "See:\n\n- One\n- Two\n- Three"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<ul><li>a<ul><li>b</ul><li><p>c</p></ul>", "- a\n  - b\n- c"),
        ("<ol><li>a<li>b</ol>", "1. a\n2. b"),
        ("<table><tr><th>A<th>B<tr><td>1<td>x|y</table>", "| A | B |\n| --- | --- |\n| 1 | x\\|y |"),
        ("<table><tr><td><p>One</p><table><tr><td>x<td>y</table></table>", "One\n\n| x | y |"),
        ("<pre><code class=language-py>a:\n    b\n</code></pre>", "```py\na:\n    b\n```"),
        ("<p>x<sup>2</sup> and H<sub>2</sub>O<br>line</p>", "x² and H₂O\nline"),
        ("<p>a<sup class=reference><a href=#1>[1]</a></sup> b</p>", "a b"),
        (
            "<p>a <math><mi>x</mi><annotation encoding='application/x-tex'>x^2</annotation></math></p>",
            "a $x^2$",
        ),
        ("<p>caf&eacute; &amp; ﬁne\u00ad</p>", "café & fine"),
        ("<h2>H<a href=#h>¶</a></h2><p>p", "## H\n\np"),
        ("<h2>H</h2>loose<p>p", "## H\n\nloose\n\np"),
        ("<dl><dt>t<dd>d</dl>", "t\nd"),
    ],
)
def test_blocks(body, text):
    assert text_of(body) == text


def test_what_a_page_says_of_itself():
    head = "<title> A  page </title><meta name=author content='Jo Doe'><meta property='article:published_time' content='2020-01-02T03:04'>"
    meta = read_html(f"<html lang=de><head>{head}</head><body><p>x".encode()).meta
    assert meta == {
        "language": "de",
        "title": "A page",
        "author": "Jo Doe",
        "date": "2020-01-02",
        "encoding": "utf-8",
    }


def test_the_encoding_is_that_of_its_head():
    assert read_html("<meta charset=shift_jis><p>名前".encode("cp932")).pages[0] == "名前"


def test_a_thousand_open_elements_are_read():
    assert "deep" in text_of("<div>" * 1_000 + "deep")
