"""Scripts without spaces: near-copies are dropped, benchmark questions are found, and words keep their hashes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.corpus.benchmarks.overlap import build_index
from tasks.corpus.filter import FilterConfig, judge
from tasks.corpus.units import WORD, _weighted_runs, runs, shown, spaced, weights_of, words_in, worth
from tasks.corpus.words import ngram_hashes, split_words
from tests.support.corpus import duplicates, quiz
from tests.support.corpus.scripts import SCRIPTS, STOPS, letters, punctuated
from tests.support.corpus.slices import dropped_in, slice_of, texts_in


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_near_copy_is_dropped_and_another_text_stays(tmp_path: Path, script: str) -> None:
    units = letters(script, 400, 1)
    edited = [*units[:500], *letters(script, 6, 2), *units[510:]]
    texts = [
        punctuated(script, units),
        punctuated(script, letters(script, 400, 3)),
        punctuated(script, edited, seed=7),  # other signs and spaces too
        f"An introduction. {punctuated(script, units, seed=8)} The end.",
    ]
    path, stats = duplicates.run_on(tmp_path, slice_of(tmp_path / "in", texts))
    assert texts_in(path) == texts[:2]
    assert stats.dropped_by_reason == {"near_duplicate": 2}


def test_an_edit_costs_as_much_similarity_as_in_words(tmp_path: Path) -> None:
    """A Chinese text of 300 words' worth with one character in twenty changed is another text; with one in 200, a copy."""
    units = letters("chinese", 300, 1)
    near, far = list(units), list(units)
    near[::200], far[::20] = letters("chinese", 2, 4), letters("chinese", 20, 5)[: len(far[::20])]
    near_path, _ = duplicates.run_on(
        tmp_path / "a", slice_of(tmp_path / "a-in", ["".join(units), "".join(near)])
    )
    far_path, _ = duplicates.run_on(
        tmp_path / "b", slice_of(tmp_path / "b-in", ["".join(units), "".join(far)])
    )
    assert len(texts_in(near_path)) == 1
    assert len(texts_in(far_path)) == 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_question_is_found_in_a_document(tmp_path: Path, script: str) -> None:
    question, short, answer = (letters(script, words, 10 + words) for words in (20, 6, 4))
    filler = punctuated(script, letters(script, 60, 99))
    rows = [
        {"question": punctuated(script, question), "choices": ["1648", "1715"], "answer": 0},
        {"question": "".join(short), "choices": ["".join(answer), "1"], "answer": 0},
    ]
    texts = [
        filler,
        f"{filler}{punctuated(script, question, seed=5)}{filler}",
        f"{filler}\n{''.join(question[: len(question) - 5])}\n",
        f"{filler}{''.join(question[: len(question) // 2])}{filler}",  # half of it: ten words' worth
        f"{filler}\n{''.join(short)}\n{''.join(answer)}\n",
        f"{filler}\n{''.join(short)}\n",
    ]
    path, stats = quiz.run_on(tmp_path, texts, rows)
    assert texts_in(path) == [texts[i] for i in (0, 3, 5)]
    assert stats.unchecked == {"quiz": 0}
    assert stats.questions_found == {"quiz": 2}


def test_what_was_found_is_told_as_it_is_written(tmp_path: Path) -> None:
    question = "下列哪一项关于Python三点十二版本的说法在二零二四年的文档里是完全正确的"
    rows = [{"question": question, "choices": ["一", "二"], "answer": 0}]
    path, _ = quiz.run_on(tmp_path, [f"前言。{question}？后记。"], rows)
    assert dropped_in(path)[0]["detail"] == "quiz:0 下列哪一项关于 python 三点十二版本的说法在二"


@pytest.mark.parametrize(
    ("written", "in_text"),
    [
        (
            "ディープラーニングの学習率はどのように決めるべきですかという質問について答えてくださいませんか",
            "half",
        ),
        ("机器学习中的学习率应当怎样随着训练步数的增加而逐渐减小才最为合适", "spaces"),
        ("机器学习中的学习率应当怎样随着训练步数的增加而逐渐减小才最为合适", "lines"),
        ("机器学习中的学习率应当怎样随着训练步数的增加而逐渐减小才最为合适", "tags"),
        ("机器学习中的学习率应当怎样随着训练步数的增加而逐渐减小才最为合适", "zero-width"),
    ],
)
def test_a_question_in_another_spelling_is_the_same(tmp_path: Path, written: str, in_text: str) -> None:
    wide = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワンァィゥェォッャュョー"
    narrow = "ｱｲｳｴｵｶｷｸｹｺｻｼｽｾｿﾀﾁﾂﾃﾄﾅﾆﾇﾈﾉﾊﾋﾌﾍﾎﾏﾐﾑﾒﾓﾔﾕﾖﾗﾘﾙﾚﾛﾜﾝｧｨｩｪｫｯｬｭｮｰ"
    spelled = {
        "half": written.translate(str.maketrans(wide, narrow)),
        "spaces": " ".join(written),
        "lines": "\n".join(written[i : i + 7] for i in range(0, len(written), 7)),
        "tags": "".join(f"<b>{sign}</b>" if i % 3 else sign for i, sign in enumerate(written)),
        "zero-width": "\u200b".join(written),
    }[in_text]
    assert spelled != written
    rows = [{"question": written, "choices": ["一", "二"], "answer": 0}]
    _, stats = quiz.run_on(tmp_path, [f"前言。{spelled}。后记"], rows)
    assert stats.documents_dropped == 1


def test_a_text_of_words_has_the_units_and_hashes_of_its_words() -> None:
    texts = pl.Series(
        [
            "plain english words",
            "größe naïve übung",
            "дом стоит у реки",
            "한국어 문장 입니다",
            "हिन्दी में लिखा",
            "",
        ]
    )
    words = split_words(texts)
    assert spaced(texts).to_list() == texts.to_list()
    assert weights_of(words) is None
    assert words_in(words.first, None).tolist() == [3 * WORD, 3 * WORD, 4 * WORD, 3 * WORD, 3 * WORD, 0]


@given(
    st.lists(st.lists(st.sampled_from("abc中文ไท漢かཀ"), max_size=30).map(" ".join), max_size=4),
    st.integers(1, 7),
)
def test_a_run_is_the_shortest_that_counts_so_many_words(texts: list[str], n: int) -> None:
    words = split_words(pl.Series(texts, dtype=pl.String))
    weights = weights_of(words)
    hashes, fits, lengths = runs(words.hashes, words.first, weights, n)
    each = [WORD] * len(words.hashes) if weights is None else weights.tolist()
    by_run: dict[str, int] = {}
    for place in range(len(words.hashes)):
        end = words.first[np.searchsorted(words.first, place, side="right")]
        needed = next(
            (k for k in range(1, end - place + 1) if sum(each[place : place + k]) >= n * WORD), None
        )
        assert (place < len(fits) and bool(fits[place])) == (needed is not None)
        if needed is not None:
            assert lengths[place] == needed
            assert hashes[place] == ngram_hashes(words.hashes[place : place + needed], needed)[0]
            run = words.text(place, place + needed)
            assert by_run.setdefault(run, int(hashes[place])) == hashes[place]
    assert len(set(by_run.values())) == len(by_run)


@given(
    texts=st.lists(
        st.lists(st.sampled_from(["mill", "a", "水", "ไ", "é"]), max_size=9).map(" ".join), max_size=12
    ),
    plain=st.integers(0, 40),
    n=st.integers(1, 6),
)
def test_runs_beside_texts_without_such_units_are_those_of_all_together(
    texts: list[str], plain: int, n: int
) -> None:
    """Only texts with such units are counted in parts: one Chinese question of a thousand made all of them slow."""
    words = split_words(spaced(pl.Series([*texts, *["the old mill by the river"] * plain], dtype=pl.String)))
    weights = weights_of(words)
    if weights is None:
        return
    found = runs(words.hashes, words.first, weights, n)
    wanted = _weighted_runs(words.hashes, words.first, weights, n)
    assert len(found[0]) == len(wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])
    for one, other in ((found[0], wanted[0]), (found[2], wanted[2])):
        np.testing.assert_array_equal(one[found[1]], other[found[1]])


def test_only_short_questions_are_looked_for_with_their_answers(tmp_path: Path) -> None:
    long, short = " ".join(["word"] * 13), "Which of the two rivers is longer?"
    path = tmp_path / "quiz.jsonl"
    rows = [{"question": text, "choices": ["the Rhine", "the Elbe"], "answer": 0} for text in (long, short)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = build_index((("quiz", path),), 13)
    counts = np.bincount(index.question_of)
    assert index.checked.all() and counts[0] == 1 and counts[1] > 3


def test_each_character_counts_for_its_part_of_a_word() -> None:
    cases = {
        "数据": 16,
        "かな": 6,
        "ไทย": 9,
        "ខ្មែរ": 9,
        "ꀀꀁ": 16,
        "数a据": 28,
        "12": 12,
        "한국": 12,
        "𠀀": 8,
        "ー々": 11,
    }
    for text, parts in cases.items():
        words = split_words(spaced(pl.Series([text]).str.normalize("NFKD").str.replace_all(r"\p{Mn}", "")))
        weights = weights_of(words)
        assert int(words_in(words.first, weights)[0]) == parts, text
    assert worth(pl.Series(["数据数", "word", "数", "ไทยภาษาไทย", "Python数据数"])).tolist() == [
        24,
        12,
        12,
        30,
        36,
    ]


def test_a_unit_is_told_without_spaces_between_characters() -> None:
    assert shown("机 器 python 学 习 rate now") == "机器 python 学习 rate now"
    assert shown("words alone") == "words alone"
    assert shown("") == ""


def test_a_benchmark_in_chinese_is_indexed(tmp_path: Path) -> None:
    rows = [
        {"question": "".join(letters("chinese", 15, i)), "choices": ["甲", "乙"], "answer": 0}
        for i in range(5)
    ]
    _, path = quiz.quiz(tmp_path, rows)
    assert build_index((("quiz", path),), 13).checked.all()


def lines_of(script: str, words: float, seed: int = 0) -> str:
    """Lines of some twenty words' worth that end like sentences."""
    units = letters(script, words, seed)
    end = STOPS.get(script, ".")[-1]
    step = int(20 * SCRIPTS[script][1])
    return "\n".join("".join(units[i : i + step]) + end for i in range(0, len(units), step))


@pytest.mark.parametrize("script", SCRIPTS)
def test_quality_rules_count_words_worth(script: str) -> None:
    """No document is dropped, and no line cut out, because it has no space."""
    config = FilterConfig(language="any", pii="off")
    long, short = lines_of(script, 300), lines_of(script, 30)
    one_line = "".join(letters(script, 2000, 5)) + STOPS.get(script, ".")[0]
    texts = pl.Series([long, short, f"{long}\n{one_line}\n{long.replace(long[0], long[1])[::-1]}."])
    judged = judge(texts, None, config.families())
    reasons = [config.rules()[number].name if number >= 0 else None for number in judged.failed]
    assert reasons == [None, "gopher_too_few_words", None]
    assert 15 < judged.value[1] < 50
    assert judged.texts[0] == long
    assert one_line in judged.texts[1]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("gopher_duplicate_lines", "\n".join([lines_of("chinese", 200), *[lines_of("chinese", 15, 9)] * 20])),
        ("gopher_too_many_words", lines_of("chinese", 110_000)),
        ("gopher_too_many_hashes", "#".join(letters("chinese", 200, 1))),
        ("gopher_too_few_alphabetic_words", lines_of("thai", 60) + " 1 2 3 4 5 6 7 8 9 10" * 3),
        ("gopher_duplicate_paragraphs", "\n\n".join([lines_of("thai", 60), *[lines_of("thai", 60, 3)] * 3])),
    ],
)
def test_what_is_bad_in_such_a_script_is_still_dropped(rule: str, text: str) -> None:
    config = FilterConfig(language="any", c4=False, fineweb=False, pii="off")
    number = judge(pl.Series([text]), None, config.families()).failed[0]
    assert number >= 0
    assert config.rules()[number].name == rule
