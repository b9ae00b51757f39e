from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tasks.corpus.tokenize import encode_column
from tasks.corpus.tokenizer import train
from tasks.corpus.tokens import fast_ids
from tasks.corpus.tokens.fast_ids import Encode, encode_checked, fast_encoder, pieces_of, same_ids
from tasks.corpus.tokens.vocabulary import Vocabulary

NAMES = ("gpt2", "gpt-neox-olmo-dolma-v1_5", "dolma2")
SPELLED = ("<|endoftext|>", "|||IP_ADDRESS|||", "<|extra_id_0|>", "<|padding|>")
PIECES = st.sampled_from([*fast_ids._AWKWARD, *SPELLED])
TEXTS = st.lists(st.lists(PIECES, max_size=25).map("".join), max_size=6)
AGAIN = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vocabulary_of(tokenizer: Tokenizer, eot: str) -> Vocabulary:
    tokenizer.encode_special_tokens = True
    return Vocabulary(
        tokenizer, tokenizer, tokenizer.token_to_id(eot), 1 + max(tokenizer.get_vocab().values()), None
    )


@functools.cache
def loaded(name: str, data: Path) -> tuple[Vocabulary, Encode]:
    """A known tokenizer with its fast encoder: that there is one is part of every test."""
    path = data / "tokenizers" / name / "tokenizer.json"
    vocabulary = vocabulary_of(Tokenizer.from_file(str(path)), "<|endoftext|>")
    encode = fast_encoder(vocabulary)
    assert encode is not None
    return vocabulary, encode


@pytest.mark.parametrize("name", NAMES)
@AGAIN
@given(texts=TEXTS)
def test_awkward_texts_get_the_reference_s_ids(shared_data: Path, name: str, texts: list[str]) -> None:
    vocabulary, encode = loaded(name, shared_data)
    assert not texts or same_ids(vocabulary, encode, texts)


@pytest.mark.parametrize("name", NAMES)
@AGAIN
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=4))
def test_any_unicode_gets_the_reference_s_ids(shared_data: Path, name: str, texts: list[str]) -> None:
    vocabulary, encode = loaded(name, shared_data)
    assert same_ids(vocabulary, encode, texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_real_text_gets_the_reference_s_ids(shared_data: Path, name: str) -> None:
    texts: list[str] = []
    for folder in ("edu", "general", "dirty"):
        for path in sorted((shared_data / folder).glob("*.parquet")):
            texts += pq.read_table(path, columns=["text"])["text"].to_pylist()[::60]
    line = gzip.decompress((shared_data / "bad/huge_no_spaces.jsonl.gz").read_bytes()).splitlines()[0]
    texts.append(json.loads(line)["text"][:100_000])
    vocabulary, encode = loaded(name, shared_data)
    assert same_ids(vocabulary, encode, texts)
    column = pa.chunked_array(
        [pa.array(texts[:17], pa.large_string()), pa.array(texts[17:], pa.large_string())]
    )
    values, lengths = encode_column(vocabulary, fast_encoder(vocabulary), column)
    expected, expected_lengths = vocabulary.encode(texts)
    assert np.array_equal(values, expected) and np.array_equal(lengths, expected_lengths)


def test_a_trained_tokenizer_is_encoded_fast() -> None:
    tokenizer = train(iter(["the cat, the 3rd dog's mat.\n"] * 9), 300)
    eot = next(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    vocabulary = vocabulary_of(tokenizer, eot)
    encode = fast_encoder(vocabulary)
    assert encode is not None and same_ids(vocabulary, encode, [f"the cat{eot} sat", "", eot])


def test_what_splintr_does_otherwise_is_left_to_the_reference(shared_data: Path) -> None:
    stories = Tokenizer.from_file(str(shared_data / "models/stories260K-hf/tokenizer.json"))
    assert fast_encoder(vocabulary_of(stories, "</s>")) is None
    gpt2 = Tokenizer.from_file(str(shared_data / "tokenizers/gpt2/tokenizer.json"))
    gpt2.normalizer = normalizers.Lowercase()
    assert fast_encoder(vocabulary_of(gpt2, "<|endoftext|>")) is None
    words = Tokenizer(models.WordLevel({"a": 0, "<eot>": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert fast_encoder(vocabulary_of(words, "<eot>")) is None


def test_a_difference_on_the_documents_at_hand_is_seen(shared_data: Path) -> None:
    vocabulary, encode = loaded("gpt2", shared_data)

    def wrong(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        values, lengths = encode(texts)
        return np.where(values == 3797, 1, values), lengths  # " cat"

    texts = ["a dog sat here"] * 500 + ["a cat sat here"] * 500
    assert not np.array_equal(wrong(texts)[0], vocabulary.encode(texts)[0])
    assert np.array_equal(encode_checked(vocabulary, wrong, texts)[0], vocabulary.encode(texts)[0])


def test_pieces_come_from_many_places_of_many_texts() -> None:
    texts = [f"{number:05d}" * 2000 for number in range(1000)]
    pieces = pieces_of(texts)
    assert 60 <= len(pieces) <= 70
    assert all(piece in text for piece, text in zip(pieces, texts[:: len(texts) // 64], strict=True))
    assert (
        len({text.index(piece[:40]) for piece, text in zip(pieces, texts[:: len(texts) // 64], strict=True)})
        > 1
    )
    assert pieces_of(["short", ""]) == ["short", ""]
