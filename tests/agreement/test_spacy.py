"""Words are cut exactly as by spaCy's English tokenizer, which is asked here itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.rules.rule import TextBatch
from tasks.corpus.rules.spacy_words import cut
from tasks.corpus.units import holds_units

spacy = pytest.importorskip("spacy", reason="the extra `agreement` is not installed: make install-agreement")
WORDS = "don't cannot gonna o'clock ma'am U.S. Mr. St. vs. e.g. i.e. a.m. I we and or well known word A Z n é ß 漢"
NUMBERS = "0 10 25 1.5 3,000 −2 ½ km nm kg °C %"
ADDRESSES = "http://a.com www.x.org me@x.org"
SIGNS = "' 's 'm 'll ’ “ ” \" ( ) [ ] { } ... … - -- — – , . ; : ! ? / & € £ $ # @ * + = < > ~ ` _ | \\ ^ × ü :-) :) xD"
PIECES = st.lists(
    st.sampled_from([*WORDS.split(), *NUMBERS.split(), *ADDRESSES.split(), *SIGNS.split()]),
    min_size=1,
    max_size=6,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """It needs no model."""
    return spacy.blank("en").tokenizer


@settings(max_examples=5000, deadline=None, derandomize=True)
@given(piece=PIECES)
def test_a_piece_of_words_numbers_and_signs_is_cut_as_by_spacy(tokenizer: Any, piece: str) -> None:
    assert cut(piece) == tuple(word.text for word in tokenizer(piece))


def _with_spaces(piece: str) -> bool:
    """Whether no letter of it is of a script that puts no space between words: those are cut otherwise, on purpose."""
    return not holds_units(pl.Series([piece]))[0]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pieces=st.lists(PIECES.filter(_with_spaces), min_size=1, max_size=20))
def test_the_words_of_a_text_are_those_of_spacy(tokenizer: Any, pieces: list[str]) -> None:
    made = TextBatch(pl.Series([" ".join(pieces)])).pieces
    words, first = made.vocabulary.words.to_list(), made.vocabulary.first
    ours = [word for code in made.codes for word in words[first[code] : first[code + 1]]]
    assert ours == [word.text for word in tokenizer(" ".join(pieces))]


def test_pieces_of_real_documents_are_cut_as_by_spacy(tokenizer: Any, shared_data: Path) -> None:
    table = pq.read_table(shared_data / "edu" / "part-00000.parquet", columns=["text"])
    pieces = sorted({piece for text in table["text"].to_pylist()[:150] for piece in text.split()})
    wrong = [piece for piece in pieces if tuple(word.text for word in tokenizer(piece)) != cut(piece)]
    assert len(pieces) > 10_000
    assert len(wrong) <= 1e-4 * len(pieces), wrong  # letters outside the plane that the rules were read for
