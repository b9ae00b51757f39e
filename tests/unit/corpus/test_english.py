"""Words, lines and white space of a batch against Python's own, one piece after the other.

That words are those of spaCy itself is tested in tests/agreement/test_spacy.py.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.rules.english import is_plain
from tasks.corpus.rules.rule import TextBatch
from tasks.corpus.rules.spacy_words import cut
from tasks.corpus.rules.spans import character_counts, seen_before, strings

SIGNS = st.sampled_from([*"ab.é \t\n\r\x0b\x1c\x1f\x85\xa0\u2003\u2028\u3000漢“—", "\r\n", "  "])
TEXTS = st.lists(st.lists(SIGNS, max_size=25).map("".join), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_pieces_and_lines_are_those_of_python(texts: list[str]) -> None:
    batch = TextBatch(pl.Series(texts))
    spans, lines, broken = batch.spans, batch.lines, batch.broken_lines
    pieces = strings(batch.plain, spans.starts, spans.ends).to_list()
    plain = strings(batch.flat.buffer, lines.spans.starts, lines.spans.ends).to_list()
    for i, text in enumerate(texts):
        assert pieces[spans.first[i] : spans.first[i + 1]] == text.split()
        mine = slice(lines.spans.first[i], lines.spans.first[i + 1])
        assert plain[mine] == text.split("\n")
        assert lines.written[mine].tolist() == [bool(line.strip()) for line in text.split("\n")]
        mine = slice(broken.spans.first[i], broken.spans.first[i + 1])
        words = (broken.high - broken.low)[mine].tolist()
        assert [n for n in words if n] == [len(line.split()) for line in text.splitlines() if line.split()]
    counts = character_counts(batch.flat.buffer, lines.spans.starts, lines.spans.ends)
    assert counts.tolist() == [len(line) for line in plain]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.text("ab", max_size=3).map(lambda s: s * 12), max_size=8), min_size=1, max_size=4)
)
def test_what_was_seen_before_is_that_of_a_set(documents: list[list[str]]) -> None:
    flat = [(i, piece) for i, pieces in enumerate(documents) for piece in pieces]
    buffer = np.frombuffer("".join(piece for _, piece in flat).encode() + b"\n", np.uint8)
    ends = np.cumsum([len(piece) for _, piece in flat], dtype=np.int64)
    starts = ends - np.array([len(piece) for _, piece in flat], dtype=np.int64)
    found = seen_before(buffer, starts, ends, np.array([i for i, _ in flat], dtype=np.int64))
    assert found.tolist() == [pair in flat[:i] for i, pair in enumerate(flat)]


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        ("word", "word"),
        ("(don't)", "( do n't )"),
        ("cannot", "can not"),
        ("U.S.", "U.S."),
        ("Mr.", "Mr."),
        ("word.”", "word . ”"),
        ("10,000", "10,000"),
        ("10a.m.", "10 a.m."),
        ("25-yard", "25 - yard"),
        ("12km", "12 km"),
        ("well-known,", "well - known ,"),
        ("http://a.com/b).", "http://a.com/b ) ."),
        ("(n):", "( n ):"),
        ("x^2=3", "x^2=3"),
        ("10^8", "10 ^ 8"),
        ("$k$", "$ k$"),
        ("and/or", "and/or"),
        ("word...next", "word ... next"),
        ("−2", "−2"),
        ("she's", "she 's"),
        ("", ""),
    ],
)
def test_a_piece_is_cut_as_by_spacy(piece: str, words: str) -> None:
    assert " ".join(cut(piece)) == words


def pieces_of(shared_data: object) -> list[str]:
    table = pq.read_table(shared_data / "edu" / "part-00000.parquet", columns=["text"])  # type: ignore[operator]
    return sorted({piece for text in table["text"].to_pylist()[:150] for piece in text.split()})


def test_plain_pieces_are_cut_as_the_exact_rules_cut_them(shared_data: object) -> None:
    pieces = pieces_of(shared_data)
    made = TextBatch(pl.Series([" ".join(pieces)])).pieces
    words = made.vocabulary.words.to_list()
    first = made.vocabulary.first
    cuts = [tuple(words[first[code] : first[code + 1]]) for code in made.codes]
    wrong = [piece for piece, found in zip(pieces, cuts, strict=True) if found != cut(piece)]
    assert not wrong
    assert 0.5 < is_plain(pl.Series(pieces)).mean() < 1 and len(pieces) > 10_000
