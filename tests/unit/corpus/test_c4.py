"""C4's rules and FineWeb's against the published rules written plainly, one document after the other."""

from __future__ import annotations

import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.filter import FilterConfig, judge
from tasks.corpus.rules import c4, fineweb
from tasks.corpus.rules.english import SENTENCE_ENDS, TERMINALS
from tasks.corpus.rules.rule import TextBatch
from tasks.corpus.rules.spacy_words import cut

C4_ONLY = {"language": "any", "gopher": False, "fineweb": False, "pii": "off"}
FINEWEB_ONLY = {"language": "any", "gopher": False, "c4": False, "pii": "off"}
PROSE = "It was a dark night. The wind blew hard. Nobody was out. A dog barked. Then all was still."


def plain_sentences(line: str) -> int:
    count, ended, tokens = 0, False, re.findall(r"[^\W_]+|[^\w\s]|_", line)
    for token in tokens:
        if token in SENTENCE_ENDS:
            ended = True
        elif ended and re.fullmatch(r"\w+", token):
            count, ended = count + 1, False
    return count + 1  # spaCy counts a line of nothing but spaces, which citations leave, as one too


def plain_c4(text: str, curly: bool = True, end: bool = False) -> str | None:
    """datatrove's C4QualityFilter (`filters/c4_filters.py`), from its documentation; None: dropped."""
    sentences, kept = 0, []
    for line in (line.strip() for line in text.splitlines()):
        words = line.split()
        if any(len(word) > 1000 for word in words):
            continue
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
        if end and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        if len(words) < 3:
            continue
        if "lorem ipsum" in line.lower():
            return None
        if "javascript" in line.lower():
            continue
        if curly and "{" in line:
            return None
        if any(phrase in line.lower() for phrase in c4.POLICY):
            continue
        sentences += plain_sentences(line)
        kept.append(line)
    return "\n".join(kept).strip() if sentences >= 5 else None


def plain_fineweb(text: str) -> bool:
    """datatrove's FineWebQualityFilter (`filters/fineweb_quality_filter.py`), from its documentation."""
    ends = re.split(r"(\r\n|[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029])", text)  # all rules see even lines
    text = "".join("\n" if number % 2 else part.rstrip() for number, part in enumerate(ends[:-1])) + ends[-1]
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return False
    if sum(line.endswith(tuple(TERMINALS)) for line in lines) / len(lines) < 0.12:
        return False
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return False
    again = [line for i, line in enumerate(lines) if line in lines[:i]]
    if sum(map(len, again)) / len(text.replace("\n", "")) > 0.01:
        return False
    return text.count("\n") / sum(len(cut(piece)) for piece in text.split()) <= 0.3


def c4_of(texts: list[str], **keys: object) -> list[str | None]:
    made = judge(pl.Series(texts, dtype=pl.String), None, FilterConfig(**(C4_ONLY | keys)).families())
    kept = iter(made.texts.to_list())
    return [next(kept) if failed < 0 else None for failed in made.failed]


LINES = st.sampled_from(
    [
        "",
        " ",
        "One two",
        "A line of words.",
        "  Two sentences. Here they are!  ",
        'He said "no." Then he left',
        "More and more...",
        "See this [12] and that [edit] here [citation needed].",
        "[1] [2] [3]",
        "Words at the end [4][5]",
        "Please enable JavaScript now.",
        "We value your Privacy Policy here.",
        "This site uses cookies. Really.",
        "Lorem IPSUM dolor sit",
        "x { y } z",
        "{ one",
        "Long " + "a" * 1001 + " word here.",
        "Fits " + "é" * 1000 + " word here.",
        "Tab\there\xa0and\u2003there. Yes.",
        "Привет мир это проза。 Да!",
    ]
)
BREAKS = st.sampled_from(["\n", "\n", "\n\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
TEXTS = st.lists(st.tuples(LINES, BREAKS), max_size=12).map(lambda parts: "".join(a + b for a, b in parts))


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXTS, max_size=5), st.booleans(), st.booleans())
def test_c4_is_that_of_one_line_after_the_other(texts: list[str], curly: bool, end: bool) -> None:
    made = c4_of(texts, c4_curly_brackets=curly, c4_end_punctuation=end)
    assert made == [plain_c4(text, curly, end) for text in texts]


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXTS, max_size=5))
def test_fineweb_is_that_of_one_line_after_the_other(texts: list[str]) -> None:
    made = judge(pl.Series(texts, dtype=pl.String), None, FilterConfig(**FINEWEB_ONLY).families())
    assert [bool(failed < 0) for failed in made.failed] == [plain_fineweb(text) for text in texts]
    assert made.texts.to_list() == [
        text for text, failed in zip(texts, made.failed, strict=True) if failed < 0
    ]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (None, PROSE),
        ("c4_lorem_ipsum", PROSE + "\nThen comes Lorem ipsum dolor."),
        ("c4_curly_brackets", PROSE + "\nfor x in { a b }"),
        ("c4_too_few_sentences", "One sentence is here. Two are here. Three. Four."),
    ],
)
def test_a_text_fails_the_rule_that_it_is_made_for(rule: str | None, text: str) -> None:
    config = FilterConfig(**C4_ONLY)
    (failed,) = judge(pl.Series([text]), None, config.families()).failed
    assert (config.rules()[failed].name if failed >= 0 else None) == rule


def test_lines_that_are_cut_are_counted_by_rule_in_kept_texts_alone() -> None:
    texts = [PROSE + "\nBack to top\nHome\nYour browser needs JavaScript here", "Short line\nHome\nNo"]
    made = judge(pl.Series(texts), None, FilterConfig(**C4_ONLY).families())
    assert made.texts.to_list() == [PROSE + "\nBack to top"]
    assert made.edits == {
        "c4_long_words": 0,
        "c4_short_lines": 1,
        "c4_javascript_lines": 1,
        "c4_policy_lines": 0,
    }


def test_what_was_cut_from_texts_that_a_later_family_drops_is_not_counted() -> None:
    kept = PROSE + "\nHome"
    listed = "\n".join(["This line stands here twice and more, word for word, as in a menu."] * 6) + "\nHome"
    both = FilterConfig(**{**C4_ONLY, "fineweb": True})
    made = judge(pl.Series([kept, listed]), None, both.families())
    assert made.texts.to_list() == [PROSE]
    assert both.rules()[made.failed[1]].name.startswith("fineweb_")
    assert made.edits["c4_short_lines"] == 1


def test_a_line_threshold_can_be_moved_or_left_out() -> None:
    text = PROSE + "\nBack home"
    assert c4_of([text]) == [PROSE]
    assert c4_of([text], thresholds={"c4_short_lines": 2}) == [text]
    assert c4_of([text], thresholds={"c4_short_lines": None, "c4_too_few_sentences": None}) == [text]


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("fineweb_no_lines", "a\n \n\nb", 2),
        ("fineweb_lines_without_end", "a.\nb\nc！\n\nd", 0.5),
        ("fineweb_short_lines", "é" * 30 + "\n" + "b" * 31, 0.5),
        ("fineweb_duplicate_line_characters", "abc\nabc\nde", 3 / 8),
        ("fineweb_newlines_per_word", "a\nb\nc d", 0.5),
    ],
)
def test_fineweb_measures_by_hand(rule: str, text: str, expected: float) -> None:
    (chosen,) = [one for one in fineweb.RULES if one.name == rule]
    values, _ = chosen.measure(TextBatch(pl.Series([text])))
    assert values[0] == pytest.approx(expected)
