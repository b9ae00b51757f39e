"""Each rule against its definition, written plainly; and the stage: the first rule that fails, nothing lost."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.testing import artifact_of, draft_in
from tasks.corpus import filter as stage
from tasks.corpus.filter import PUBLISHED, FilterConfig, FilterInputs, judge
from tasks.corpus.rules import gopher_quality as quality
from tasks.corpus.rules import gopher_repetition as repetition
from tasks.corpus.rules.rule import TextBatch
from tests.support.corpus.prose import GOPHER, sentences
from tests.support.corpus.slices import dropped_in, slice_of, texts_in

NOTHING = GOPHER.model_copy(update={"gopher": False})
RULES = {rule.name: rule for rule in GOPHER.rules()}
OPENING = "It was the best of times and it was the worst of times, and that is how they have lived with it."


GOOD = sentences(30)


RAGGED = "  " + GOOD.replace("\n", "[1]\n\n \nHome\n", 1) + " \n"
MAIL = GOOD + "\nThe author writes from bob@example.org to all of us."
EVERYTHING = FilterConfig(language="en", min_language_score=0.0, min_edu_score=0.0)


SHORT = " ".join(GOOD.split()[:49])


def failing(text: str) -> str | None:
    failed = judge(pl.Series([text]), None, GOPHER.families()).failed
    return GOPHER.rules()[failed[0]].name if failed[0] >= 0 else None


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (None, GOOD),
        (None, OPENING + "\n" + GOOD),
        ("gopher_duplicate_paragraphs", "\n\n".join(["Ab.", "Ab.", "Ab.", GOOD, "Ab."])),
        ("gopher_duplicate_paragraph_characters", "\n\n".join([*GOOD.split("\n"), *GOOD.split("\n")[:10]])),
        ("gopher_duplicate_lines", "\n".join([GOOD, *["Ab cd."] * 20])),
        ("gopher_duplicate_line_characters", "\n".join([*GOOD.split("\n"), *GOOD.split("\n")[:9]])),
        ("gopher_top_2_gram", GOOD + " wonderful extraordinarily" * 30),
        ("gopher_duplicate_5_grams", " ".join(GOOD.split()[:150] + GOOD.split()[:60])),
        ("gopher_too_few_words", " ".join(GOOD.split()[:49])),
        (
            "gopher_short_words",
            " ".join(f"{a}{b}" for a in "abcdefghijklm" for b in "nopqrstuvwxyz") + " be to",
        ),
        (
            "gopher_long_words",
            "the be "
            + " ".join(
                sentences(60).replace("\n", "").replace(" ", "")[i : i + 25] for i in range(0, 2500, 25)
            ).replace(".", "x"),
        ),
        ("gopher_too_many_hashes", " # ".join(GOOD.split())),
        ("gopher_too_many_ellipses", "... ".join(GOOD.split())),
        ("gopher_too_many_ellipses", "...".join(GOOD.split())),
        ("gopher_too_many_bullets", "\n".join("- " + line for line in GOOD.split("\n"))),
        (
            "gopher_too_many_ellipsis_lines",
            "\n".join(line[:-1] + " …" if i % 3 else line for i, line in enumerate(GOOD.split("\n"))),
        ),
        (
            "gopher_too_few_alphabetic_words",
            " ".join(f"{word} {i * 7919}" for i, word in enumerate(GOOD.split())),
        ),
        ("gopher_too_few_stop_words", " ".join(w for w in GOOD.split() if w not in quality.STOP_WORDS)),
    ],
)
def test_a_text_fails_the_rule_that_it_is_made_for(rule: str | None, text: str) -> None:
    assert failing(text) == rule


def test_every_rule_has_a_name_of_its_own_and_a_threshold() -> None:
    rules = FilterConfig(min_edu_score=3).rules()
    assert len(RULES) == 23
    assert len({rule.name for rule in rules}) == len(rules) == 33
    assert all(rule.threshold.startswith("at ") for rule in rules)
    assert len(PUBLISHED) == 31 + len(stage.c4.LINE_RULES)


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("gopher_too_few_words", "One, two -- three… (four)!", 4),
        ("gopher_short_words", "ab, cdef!", 3.0),
        ("gopher_too_many_hashes", "# a b #c", 2 / 5),
        ("gopher_too_many_ellipses", "a... b… c", 2 / 5),
        ("gopher_too_many_bullets", "• a\n - b\nc\r\nd", 0.5),
        ("gopher_too_many_ellipsis_lines", "a...\nb… \nc\nd..", 0.5),
        ("gopher_too_few_alphabetic_words", "one 2 3rd !", 0.5),
        ("gopher_too_few_stop_words", "The the the of OF", 2),
        ("gopher_duplicate_lines", "a\n\na\nb\na", 0.5),
        ("gopher_duplicate_paragraphs", "\n a\n\n\nb\nb\n\na\n", 1 / 3),
        ("gopher_top_2_gram", "aa bb aa bb cc", 10 / 14),
    ],
)
def test_measures_by_hand(rule: str, text: str, expected: float) -> None:
    values, _ = RULES[rule].measure(TextBatch(pl.Series([text])))
    assert values[0] == pytest.approx(expected)


WORDS = st.lists(st.sampled_from(["ab", "c", "def", "gh", "ij", "éж"]), max_size=60)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_the_most_frequent_ngram_is_that_of_counting(documents: list[list[str]]) -> None:
    batch = TextBatch(pl.Series([" ".join(words) for words in documents]))
    for n in (2, 3, 4):
        values, keep = RULES[f"gopher_top_{n}_gram"].measure(batch)
        exact, _ = RULES[f"gopher_top_{n}_gram"].at(-1).measure(batch)
        for words, value, bound, kept in zip(documents, exact, values, keep, strict=True):
            grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
            text, times = Counter(grams).most_common(1)[0] if grams else ("", 0)
            assert value == pytest.approx(len(text) * times / max(len(" ".join(words)), 1))
            assert kept == (value <= repetition.MAX_TOP_NGRAM[n])
            assert kept or bound == value


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=4))
def test_duplicate_ngrams_are_those_of_a_walk_from_left_to_right(documents: list[list[str]]) -> None:
    batch = TextBatch(pl.Series([" ".join(words) for words in documents]))
    for n, limit in repetition.MAX_DUPLICATE_NGRAMS.items():
        values, keep = RULES[f"gopher_duplicate_{n}_grams"].measure(batch)
        for words, value, kept in zip(documents, values, keep, strict=True):
            seen, characters, i = set(), 0, 0
            while i + n <= len(words):
                gram = tuple(words[i : i + n])
                if gram in seen:
                    characters += len("".join(gram))
                    i += n
                else:
                    seen.add(gram)
                    i += 1
            share = characters / max(len(" ".join(words)), 1)
            assert kept == (share <= limit)
            if not kept:
                assert value == pytest.approx(share)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab \n\r\xa0é"), max_size=30), min_size=1, max_size=5))
def test_duplicate_pieces_are_those_of_splitting(texts: list[str]) -> None:
    batch = TextBatch(pl.Series(texts))
    lines, paragraphs = repetition.duplicate_lines(batch), repetition.duplicate_paragraphs(batch)
    for i, text in enumerate(texts):
        for found, pieces in (
            (lines, re.split("\n+", text)),
            (paragraphs, re.split("\n{2,}", text.strip())),
        ):
            again = [p for i, p in enumerate(pieces) if p in pieces[:i]]
            assert found.share[i] == pytest.approx(len(again) / len(pieces))
            assert found.characters[i] == sum(map(len, again))


def test_dropped_rows_name_the_rule_its_measure_and_its_limit(tmp_path: Path) -> None:
    draft = draft_in(tmp_path)
    stats = stage.run(GOPHER, FilterInputs(slice_of(tmp_path / "in", [GOOD, SHORT, GOOD + "x"])), draft)
    assert texts_in(draft.path) == [GOOD, GOOD + "x"]
    (row,) = dropped_in(draft.path)
    assert (row["stage"], row["source"]) == ("filter", "tales")
    assert (row["reason"], row["value"], row["detail"]) == ("gopher_too_few_words", 49.0, "at least 50")
    assert stats.dropped_by_reason == {"gopher_too_few_words": 1}


def test_without_rules_all_is_kept(tmp_path: Path) -> None:
    draft = draft_in(tmp_path)
    stats = stage.run(NOTHING, FilterInputs(slice_of(tmp_path / "in", ["a", "", GOOD])), draft)
    assert texts_in(draft.path) == ["a", "", GOOD]
    assert (stats.documents_dropped, stats.dropped_by_reason) == (0, {})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.one_of(st.text(max_size=200), st.sampled_from([GOOD, RAGGED, MAIL])), max_size=8))
def test_every_document_is_kept_or_dropped(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("conservation")
    draft = draft_in(directory)
    stats = stage.run(EVERYTHING, FilterInputs(slice_of(directory / "in", texts)), draft)
    kept, dropped = texts_in(draft.path), dropped_in(draft.path)
    assert len(kept) + len(dropped) == len(texts) == stats.documents_in
    assert (stats.documents_out, stats.documents_dropped) == (len(kept), len(dropped))
    assert sum(stats.dropped_by_reason.values()) == len(dropped)
    assert stats.bytes_in == sum(len(text.encode()) for text in texts)
    assert stats.bytes_out == sum(len(text.encode()) for text in kept)
    assert stats.bytes_in == stats.bytes_out + stats.bytes_dropped + stats.bytes_cut
    assert kept.count(GOOD) == texts.count(GOOD) + texts.count(RAGGED)
    assert stats.documents_edited >= texts.count(RAGGED) + texts.count(MAIL)
    assert (
        stats.edits.get("email", 0)
        == sum("|||EMAIL_ADDRESS|||" in text for text in kept)
        == texts.count(MAIL)
    )


def limited(thresholds: dict[str, float | None]) -> FilterConfig:
    return FilterConfig(language="any", c4=False, fineweb=False, pii="off", thresholds=thresholds)


def test_a_threshold_can_be_moved_or_a_rule_left_out(tmp_path: Path) -> None:
    short = " ".join(GOOD.split()[:40])
    given_ = slice_of(tmp_path / "in", [GOOD, short])
    for config, kept in (
        (limited({}), [GOOD]),
        (limited({"gopher_too_few_words": 30}), [GOOD, short]),
        (limited({"gopher_too_few_words": None}), [GOOD, short]),
        (limited({"gopher_too_few_words": 10_000}), []),
        (limited({"gopher_top_3_gram": 0.0, "gopher_too_few_words": None}), []),
    ):
        artifact = artifact_of(stage, config, FilterInputs(given_), tmp_path / "store")
        assert texts_in(artifact.path) == kept


def test_a_threshold_of_no_rule_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="gopher_too_few_words"):
        FilterConfig(thresholds={"gopher_few_words": 3})
