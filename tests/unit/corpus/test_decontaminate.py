"""Benchmark questions in documents: found, explained, counted; and a holdout that is part of the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.errors import StageFailed
from tests.support.corpus.quiz import FILLER, LONG, SHORT, filler, run_on
from tests.support.corpus.slices import dropped_in, texts_in


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            f"{FILLER} {LONG} {FILLER}",
            "quiz:0 which of these rivers if any had carried the grain of the northern",
        ),
        (LONG.upper().replace(",", " -- "), "quiz:0 which of these rivers"),
        (" ".join(LONG.split()[2:16]), "quiz:0 these rivers if any"),
        (" ".join(LONG.split()[:12]), None),
        (LONG.replace("grain", "corn"), None),
        (f"{SHORT} Pale green, it is said.", "quiz:1 what colour is the flag of utopia pale green"),
        (f"{SHORT} {FILLER}", None),
        (f"{SHORT} Red.", None),
        ("Who? He.", None),
        ("", None),
    ],
)
def test_what_is_found_and_what_is_not(tmp_path: Path, text: str, found: str | None) -> None:
    path, _ = run_on(tmp_path, [FILLER, text, FILLER + " Again."])
    rows = dropped_in(path)
    assert [row["reason"] for row in rows] == (["benchmark_overlap"] if found else [])
    assert len(texts_in(path)) == 3 - len(rows)
    if found:
        assert rows[0]["detail"].startswith(found)


def test_the_value_counts_the_matching_ngrams(tmp_path: Path) -> None:
    path, _ = run_on(tmp_path, [LONG, " ".join(LONG.split()[:14])])
    assert [row["value"] for row in dropped_in(path)] == [len(LONG.split()) - 12, 2.0]


def test_hits_say_what_was_looked_for_and_found(tmp_path: Path) -> None:
    path, stats = run_on(tmp_path, [LONG, f"{LONG} {SHORT} pale green", FILLER])
    assert json.loads((path / "hits.json").read_text()) == {
        "quiz": {"questions": 3, "indexed": 2, "unchecked": 1, "questions_found": 2, "documents_found": 2}
    }
    assert stats.unchecked == {"quiz": 1}
    assert stats.questions_found == {"quiz": 2}
    assert stats.dropped_by_reason == {"benchmark_overlap": 2}


def test_rows_of_no_known_schema_are_questions_that_are_not_checked(tmp_path: Path) -> None:
    rows = [{"question": LONG, "choices": ["x"], "answer": 0}, {"prompt": LONG}, {"prompt": SHORT}]
    path, stats = run_on(tmp_path, [LONG, FILLER], rows)
    assert json.loads((path / "hits.json").read_text()) == {
        "quiz": {"questions": 3, "indexed": 1, "unchecked": 2, "questions_found": 1, "documents_found": 1}
    }
    assert stats.unchecked == {"quiz": 2}


def test_matches_do_not_run_from_one_document_into_the_next(tmp_path: Path) -> None:
    words = LONG.split()
    _, stats = run_on(tmp_path, [" ".join(words[:9]), " ".join(words[9:])])
    assert stats.documents_dropped == 0


def test_a_blank_counts_as_the_word_left_out(tmp_path: Path) -> None:
    row = {
        "question": "The treaty that ended the long war was signed at ____ in 1648.",
        "choices": ["x"],
        "answer": 0,
    }
    _, stats = run_on(tmp_path, [row["question"].replace("____", ""), FILLER], [row])
    assert stats.documents_dropped == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"unknown": "schema"}], "no question of 'quiz' could be read from .*test.jsonl"),
        (
            [{"question": "Who?", "choices": ["he"], "answer": 0}],
            "nothing of 'quiz' was indexed from .*test.jsonl",
        ),
    ],
)
def test_a_benchmark_of_which_nothing_is_indexed_is_an_error(
    tmp_path: Path, rows: list[dict], message: str
) -> None:
    with pytest.raises(StageFailed, match=message):
        run_on(tmp_path, [FILLER], rows)


def test_questions_of_other_benchmarks_than_the_listed_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="configuration lists \\['mmlu'\\]"):
        run_on(tmp_path, [FILLER], benchmarks=("mmlu",))


def test_only_a_first_slice_has_a_holdout(tmp_path: Path) -> None:
    texts = [filler(i) for i in range(400)]
    first, stats = run_on(tmp_path / "1", [*texts, LONG], first=True)
    held = texts_in(first, "holdout")
    assert 20 < len(held) < 80
    assert sorted([*held, *texts_in(first)]) == sorted(texts)
    assert (
        stats.documents_in == 401 == stats.documents_out + stats.documents_dropped + stats.documents_held_out
    )
    assert stats.bytes_in == stats.bytes_out + stats.bytes_held_out + len(LONG.encode())
    later, stats = run_on(tmp_path / "2", texts)
    assert (stats.documents_held_out, (later / "holdout").exists()) == (0, False)
    none, stats = run_on(tmp_path / "3", texts, first=True, holdout_fraction=0.0)
    assert (stats.documents_held_out, (none / "holdout").exists()) == (0, False)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.one_of(st.text(max_size=60), st.sampled_from([LONG, f"{SHORT} pale green"])), max_size=10
    ),
    first=st.booleans(),
)
def test_every_document_is_kept_dropped_or_held_out(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], first: bool
) -> None:
    path, stats = run_on(tmp_path_factory.mktemp("conservation"), texts, first=first, holdout_fraction=0.5)
    held = texts_in(path, "holdout") if (path / "holdout").exists() else []
    kept, dropped = texts_in(path), dropped_in(path)
    assert len(kept) + len(dropped) + len(held) == len(texts) == stats.documents_in
    assert LONG not in kept + held
    assert (stats.documents_out, stats.documents_dropped, stats.documents_held_out) == (
        len(kept),
        len(dropped),
        len(held),
    )
    assert stats.bytes_held_out == sum(len(text.encode()) for text in held)


def test_many_hits_are_found_by_hash_as_by_search(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vocabulary = np.array(["ba", "de", "gi", "ko", "lu"])
    rows = [{"text": " ".join(random.choice(vocabulary, 15))} for _ in range(30)]
    texts = [" ".join(random.choice(vocabulary, 40)) for _ in range(20)]
    texts = [text if i % 2 else f"{text} {rows[i]['text']} {text}" for i, text in enumerate(texts)]
    path, _ = run_on(tmp_path, texts, rows, ngram=4)
    grams = {" ".join(row["text"].split()[i : i + 4]) for row in rows for i in range(12)}
    expected = [
        any(" ".join(text.split()[i : i + 4]) in grams for i in range(len(text.split()) - 3))
        for text in texts
    ]
    assert len(dropped_in(path)) == sum(expected)
    counts = [sum(" ".join(t.split()[i : i + 4]) in grams for i in range(len(t.split()) - 3)) for t in texts]
    assert [row["value"] for row in dropped_in(path)] == [float(count) for count in counts if count]
