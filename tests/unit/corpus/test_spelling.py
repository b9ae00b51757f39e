"""A question is found however it is spelled, and where its choices or its answer are printed below it."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tasks.corpus.benchmarks.spelling import joined_words, plain_words
from tests.support.corpus.quiz import FILLER, run_on
from tests.support.corpus.slices import dropped_in, texts_in

QUESTION = "Why does the café's definition of information about fluid nutrition differ from the one in Łódź's official one?"
ROW = {"question": QUESTION, "choices": ["a", "b"], "answer": 1}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "lost accents": lambda text: text.replace("é", "e").replace("Łódź", "Lodz"),
    "soft hyphens": lambda text: text.replace("ti", "t\u00adi").replace("on", "o\u00adn"),
    "zero width space": lambda text: text.replace("e", "e\u200b"),
    "zero width joiner": lambda text: text.replace("a", "a\u200d"),
    "word joiner": lambda text: text.replace("o", "o\u2060"),
    "byte order mark": lambda text: text.replace("i", "\ufeffi"),
    "direction marks": lambda text: text.replace(" ", " \u202a"),
    "variation selector": lambda text: text.replace("f", "f\ufe0f"),
    "combining overlay": lambda text: text.replace("u", "u\u0332"),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "bold letters": lambda text: "".join(chr(ord(c) + 0x1D41A - 97) if "a" <= c <= "z" else c for c in text),
    "bold capitals": lambda text: "".join(
        chr(ord(c) + 0x1D400 - 65) if "A" <= c <= "Z" else c for c in text.upper()
    ),
    "lengthened": lambda text: text.replace("a", "a\u0640\u0640"),
    "ligatures": lambda text: text.replace("ffi", "ﬃ").replace("fi", "ﬁ").replace("fl", "ﬂ"),
    "hyphenated": lambda text: text.replace("tion", "-\ntion"),
    "hyphenated, Windows": lambda text: text.replace("tion", "- \r\n    tion"),
    "hyphenated, U+2010": lambda text: text.replace("tion", "\u2010\ntion"),
    "hyphenated, soft": lambda text: text.replace("tion", "\u00ad\ntion"),
    "entities": lambda text: html.escape(text.replace("a", "&#97;")).replace("&amp;#97;", "&#97;"),
    "every letter an entity": lambda text: "".join(f"&#x{ord(sign):X};" for sign in text),
    "named entities": lambda text: (
        text.replace("é", "&eacute;").replace("'", "&rsquo;").replace(" ", "&nbsp;")
    ),
    "escaped twice": lambda text: html.escape(html.escape(text)),
    "tags in words": lambda text: re.sub(r"(\w{4})(\w{3})", r"\1<b>\2</b>", text),
    "links and styles": lambda text: re.sub(
        r"(\w{6,})", r'<a href="/w/x?y=1" class="l">\1</a><sup>[1]</sup>', text
    ).replace("<sup>[1]</sup>", ""),
    "lines of markup": lambda text: text.replace(" ", "<br/>\n").replace("fluid", "<p class=x>fluid</p>"),
    "comment": lambda text: text.replace("about ", "about<!-- not\nshown --> "),
    "emphasis in words": lambda text: re.sub(r"(\w{4})(\w{3})", r"\1**\2**", text),
    "line ends": lambda text: text.replace(" ", "\r\n"),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "typographic signs": lambda text: text.replace("'", "\u2019").replace(" ", " \u2013 "),
}


def test_a_question_is_found_in_every_spelling(tmp_path: Path) -> None:
    others = {name: change(QUESTION) for name, change in SPELLINGS.items()}
    assert QUESTION not in others.values()
    texts = [f"{name}: {FILLER} {other} {FILLER}" for name, other in others.items()]
    path, _ = run_on(tmp_path, texts, [ROW])
    assert texts_in(path) == []


def test_a_question_is_found_that_is_spelled_otherwise_itself(tmp_path: Path) -> None:
    lines = {
        "hyphenated",
        "hyphenated, Windows",
        "hyphenated, U+2010",
    }  # a question is not printed in columns
    rows = [{**ROW, "question": change(QUESTION)} for name, change in SPELLINGS.items() if name not in lines]
    _, stats = run_on(tmp_path, [FILLER, QUESTION], rows)
    assert stats.questions_found == {"quiz": len(rows)}


def test_a_hyphen_at_the_end_of_a_line_may_belong_to_the_word(tmp_path: Path) -> None:
    row = {**ROW, "question": QUESTION.replace("fluid nutrition", "well-known fluid nutrition")}
    _, stats = run_on(tmp_path, [row["question"].replace("well-known", "well-\nknown"), FILLER], [row])
    assert stats.documents_dropped == 1


def test_the_value_counts_places_of_one_spelling_only(tmp_path: Path) -> None:
    path, _ = run_on(tmp_path, [QUESTION.replace("official", "offi-\ncial")], [ROW])
    (row,) = dropped_in(path)
    assert row["value"] < len(QUESTION.split()) - 12 + 1


def test_joined_words_are_those_of_the_texts_with_a_hyphen_at_a_line_end() -> None:
    places, words = joined_words(pl.Series(["none", "one infor-\nmation", "self-\nKnown", "a - \nb"]))
    assert (places.tolist(), words.to_list()) == ([1], ["one information"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "&",
        "&amp",
        "a < b and c > d",
        "<",
        "<>",
        "&#99999999;",
        "&#xD800;",
        "*** ___",
        "\u00ad",
        "𝐀" * 3,
        "ß",
    ],
)
def test_any_text_has_words(text: str) -> None:
    given = pl.Series([text])
    (words,) = plain_words(given)
    assert given.to_list() == [text]
    assert words == words.lower() and not re.search(r"[^\w ]", words)


SHORT = "Which gas do plants take in?"
CHOICES = ["carbon dioxide", "pure nitrogen", "helium", "argon"]
PRINTED = (
    "A. carbon dioxide\nB. pure nitrogen\nC. helium\nD. argon",
    "(a) carbon dioxide (b) pure nitrogen (c) helium (d) argon",
    "1) carbon dioxide 2) pure nitrogen",
    "Choices:\n- carbon dioxide\n- pure nitrogen\n- helium",
    "Options: A: carbon dioxide B: pure nitrogen",
    "Answer: carbon dioxide",
    "A: Carbon dioxide",
    "The answer is carbon dioxide.",
    "Answer: (A) carbon dioxide",
    "carbon dioxide",
)


def test_a_short_question_is_found_beside_its_choices_or_its_answer(tmp_path: Path) -> None:
    row = {"question": SHORT, "choices": CHOICES, "answer": 0}
    alone = f"{SHORT} {FILLER}"
    path, stats = run_on(tmp_path, [alone, *(f"{FILLER} {SHORT}\n{below}" for below in PRINTED)], [row])
    assert (texts_in(path), stats.unchecked) == ([alone], {"quiz": 0})
