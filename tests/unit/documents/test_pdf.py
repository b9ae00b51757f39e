"""PDF: reading order, running heads, cut words, paragraphs; files with pages written by hand."""

from __future__ import annotations

import pytest

from tasks.documents.document import Unreadable
from tasks.documents.pdf import CUT, Line, joined_words, lines_of, paragraphs, pdf_date, read_pdf
from tests.support.papers import pdf

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "and",
    "runs",
    "far",
    "away",
    "from",
    "here",
    "again",
]


def column(x: float, top: float, words: str, count: int) -> list[tuple[float, float, str]]:
    return [(x, top - 14 * n, f"{words} {n} " + " ".join(WORDS[:6])) for n in range(count)]


def test_lines_of_a_paragraph_are_joined_and_paragraphs_are_not():
    lines = [
        "A first line that is as long as the others of it are here",
        "and a second line that is as long as the others of it,",
        "then an end.",
    ]
    placed = [(72.0, 700 - 14.0 * n, text) for n, text in enumerate(lines)]
    after = [(72.0, 640.0, "Another paragraph.")]
    (page,) = read_pdf(pdf([placed + after])).pages
    assert page == " ".join(lines) + "\n\nAnother paragraph."


def test_short_lines_stay_lines():
    poem = ["Short line", "And another that is quite a bit longer than it", "Short again", "End"]
    (page,) = read_pdf(pdf([[(72.0, 700 - 14.0 * n, text) for n, text in enumerate(poem)]])).pages
    assert page.split("\n") == poem


def test_columns_drawn_line_by_line_are_read_one_after_the_other():
    left, right = column(60, 700, "left", 12), column(320, 700, "right", 12)
    mixed = [piece for pair in zip(left, right, strict=True) for piece in pair]
    (page,) = read_pdf(pdf([mixed], 9)).pages
    assert page.index("left 11") < page.index("right 0")


def test_a_title_above_two_columns_comes_first():
    left, right = column(60, 660, "left", 12), column(320, 660, "right", 12)
    mixed = [piece for pair in zip(left, right, strict=True) for piece in pair]
    (page,) = read_pdf(pdf([[(200.0, 720.0, "A title in the middle of the page"), *mixed]], 9)).pages
    assert page.index("title") < page.index("left 0") < page.index("left 11") < page.index("right 0")


def test_heads_feet_and_page_numbers_go_and_text_stays():
    pages = [
        [
            (72.0, 760.0, f"A Book of Things {n}"),
            *column(72, 600, f"page {'abcdef'[n]}", 8),
            (300.0, 30.0, str(n + 7)),
        ]
        for n in range(5)
    ]
    found = read_pdf(pdf(pages)).pages
    assert not any("Book of Things" in page for page in found)
    assert all(
        page.startswith(f"page {'abcdef'[n]} 0") and page.endswith("over") for n, page in enumerate(found)
    )


def test_a_word_cut_at_the_end_of_a_line_is_one_word():
    lines = [
        (72.0, 700.0, "This is a line of the text in which one word is hyphen-"),
        (72.0, 686.0, "ated, as it is at the end of lines in many books."),
    ]
    (page,) = read_pdf(pdf([lines])).pages
    assert "word is hyphenated, as it is" in page


@pytest.mark.parametrize(
    ("text", "joined"),
    [
        (f"infor{CUT}mation", "information"),
        (f"well-known here, and well{CUT}known there", "well-known here, and well-known there"),
        (f"Anglo{CUT}Saxon", "Anglo-Saxon"),
        (
            f"a machine and some learning: machine{CUT}learning",
            "a machine and some learning: machine-learning",
        ),
        (f"end{CUT}\fing", "ending\f"),
    ],
)
def test_a_hyphen_stays_where_the_document_has_it(text, joined):
    assert joined_words(text) == joined


def test_pages_without_text_are_named():
    draft = read_pdf(pdf([[(72.0, 700.0, "Some text")], []], images=True))
    assert draft.without_text == (2,)
    with pytest.raises(Unreadable, match="images, as of a scan") as told:
        read_pdf(pdf([[]], images=True))
    assert told.value.reason == "no_text"


@pytest.mark.parametrize("data", [b"%PDF-1.7\n", b"%PDF-1.7\n" + bytes(range(256)) * 20])
def test_what_is_no_pdf_is_damaged(data):
    with pytest.raises(Unreadable) as told:
        read_pdf(data)
    assert told.value.reason == "damaged"


def test_dates():
    assert pdf_date("D:20170102030405Z") == "2017-01-02"
    assert pdf_date("yesterday") == ""


def test_words_of_scripts_from_right_to_left_are_turned_where_they_were_drawn_from_the_left():
    """Boxes as pdfium gives them: each letter right of the one before it, brackets as they are drawn."""
    drawn = "ב()א רג"

    def box(at: int) -> tuple[float, float, float, float]:
        return 10.0 * at, 10.0 * at + 9, 0.0, 10.0

    (line,) = lines_of(drawn, box)
    assert line.text == "גר א()ב"


def test_a_line_of_a_script_from_right_to_left_begins_at_the_right():
    first = Line("אבגד הוז חטי", 100, 500, 90, 100)
    second = Line("כל מנ", 400, 500, 76, 86)
    assert paragraphs([first, second]) == "אבגד הוז חטי כל מנ"


def test_lines_around_a_middle_are_no_paragraphs_of_their_own():
    title = [
        Line("A Title That Is Long Enough For", 100, 500, 90, 100),
        Line("Two Lines", 250, 350, 76, 86),
        Line("by", 290, 310, 62, 72),
    ]
    assert paragraphs(title) == "A Title That Is Long Enough For Two Lines\nby"
