"""What stands on a page is what was put there, as CommonMark (markdown-it) and an HTML parser read it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tasks.pages.blocks import Cell, Heading, Picture, Quote, Slot, Table, Text
from tasks.pages.html import html_of
from tasks.pages.markdown import fenced, markdown_of, plain

HOSTILE = "<script>alert(1)</script> | ```` | [x](javascript:alert(2)) <img src=x onerror=alert(3)> **b** __c__ &lt;"
SIGNS = st.text(alphabet="ab1 \\`*_~[]()<>!&#;:|/.\n-+=", max_size=30)


def read(markdown: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)


def words_of(tokens: list[Token]) -> list[str]:
    """The text of every paragraph, heading and cell; fails where anything in one is more than text, or HTML."""
    found = []
    for token in tokens:
        assert token.type != "html_block", token.content
        if token.type == "inline":
            children = token.children or []
            assert {child.type for child in children} <= {"text"}, token.content
            found.append("".join(child.content for child in children))
    return found


@settings(deadline=None)
@given(SIGNS, SIGNS)
@example(HOSTILE, HOSTILE)
@example("a__b_", "\\| \\\\| *")
@example("x](y) <a@b.c> <!-- -->", "&amp; &#65; ~~s~~")
def test_words_are_read_as_they_stand(one: str, two: str) -> None:
    table = Table(("head", "other"), ((f"x {one} x", Cell(f"y {two} y")),))
    [*_, first, second] = words_of(read(markdown_of([table])))
    assert [first, second] == [" ".join(f"{a} {b} {a}".split()) for a, b in (("x", one), ("y", two))]
    [title, text] = words_of(read(markdown_of([Heading(2, f"x {one} x"), Text(f"y {two} y")])))
    assert [title, text] == [first, second]


@settings(deadline=None)
@given(SIGNS)
@example("a\n```\n````text\n<script>")
def test_a_quote_is_read_as_it_stands(text: str) -> None:
    tokens = read(markdown_of([Quote("document 1", text), Text("after")]))
    [fence] = [token for token in tokens if token.type == "fence"]
    assert fence.content == f"{text}\n" and words_of(tokens) == ["document 1", "after"]


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a ```` b").split("\n")[0] == "`````text" and fenced("plain").startswith("```text\n")


@pytest.mark.parametrize(
    "text", ["acc_norm", "p < 0.001", "+2.3 [0.8, 3.9] points", "4 & 5", "±\xa01.5 % (of 3)", "a → b · C4's"]
)
def test_what_markdown_does_not_read_stays_readable_without_it(text: str) -> None:
    assert plain(text) == text


class Seen(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_html_shows_words_as_they_stand_wherever_they_are(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "one.svg").write_text('<?xml version="1.0"?>\n<svg viewBox="0 0 1 1"></svg>\n')
    cell = Cell(HOSTILE, "better", HOSTILE)
    blocks = [
        Heading(1, HOSTILE),
        Text(HOSTILE, "note"),
        Table((HOSTILE, "n"), ((HOSTILE,), (HOSTILE, cell))),
        Picture("one", HOSTILE),
        Quote(HOSTILE, HOSTILE),
        Slot("cost"),
    ]
    page = html_of(blocks, tmp_path)
    seen = Seen(page)
    assert seen.text.count(HOSTILE) == 11  # the title of the page too
    assert not {"script", "img", "b"} & {tag for tag, _ in seen.tags}
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    [drawn] = [attributes for tag, attributes in seen.tags if tag == "svg"]
    assert drawn["aria-label"] == HOSTILE and drawn["role"] == "img"
    assert "<!-- cost -->" in page and "<!-- cost -->" in markdown_of([Slot("cost")])


def test_columns_of_words_stand_on_the_left(tmp_path: Path) -> None:
    table = Table(("label", "n", "why"), (("part",), ("a", "1", "b")), notes=1)
    assert markdown_of([table]) == (
        "| label | n | why |\n| --- | ---: | --- |\n| **part** |  |  |\n| a | 1 | b |\n"
    )
    cells = [
        attributes.get("class") for tag, attributes in Seen(html_of([table], tmp_path)).tags if tag == "td"
    ]
    assert cells == [None, "l", None, "note"]
