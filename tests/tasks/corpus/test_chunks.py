from __future__ import annotations

import functools
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from tasks.corpus.chunks import divisible, encode_by_chunks
from tasks.corpus.tokenizer import train, write_tokenizer
from tasks.corpus.vocabulary import Vocabulary

NAMES = ("gpt2", "gpt-neox-olmo-dolma-v1_5", "dolma2")
PIECES = st.sampled_from(
    [
        *" \n\t\r\x00\x7f'.,!?-_=+<>|(){}\"\\/#@",
        *("a", "I", "the", "'s", "'S", "'re", "n't", "don", "7", "42", "1000", "x1", "  ", "    ", "\r\n"),
        *(
            "é",
            "e\u0301",
            "\u0301",
            "ß",
            "ﬁ",
            "漢",
            "字",
            "🙂",
            "\u00a0",
            "\u2028",
            "\u0660",
            "\u1100\u1161",
            "\u0338",
        ),
        *(
            "<|endoftext|>",
            "|||IP_ADDRESS|||",
            "<|extra_id_0|>",
            "<|padding|>",
            "http://a.b/c?d=1&e=2",
            "$x^2$",
        ),
    ]
)
TEXTS = st.lists(st.lists(PIECES, max_size=25).map("".join), max_size=6)


@functools.cache
def loaded(name: str, data: Path) -> Vocabulary:
    """A known tokenizer, without its files beside."""
    tokenizer = Tokenizer.from_file(str(data / "tokenizers" / name / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    eot = tokenizer.token_to_id("<|endoftext|>")
    return Vocabulary(tokenizer, eot, 1 + max(tokenizer.get_vocab().values()), None)


def assert_same(vocabulary: Vocabulary, texts: list[str], split: int = 0) -> None:
    chunks = [pa.array(texts[:split], pa.large_string()), pa.array(texts[split:], pa.large_string())]
    values, lengths = encode_by_chunks(vocabulary, pa.chunked_array(chunks))
    if not texts:
        assert (len(values), len(lengths)) == (0, 0)
        return
    expected, expected_lengths = vocabulary.encode(texts)
    assert lengths.tolist() == expected_lengths.tolist()
    assert np.array_equal(values, expected)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, split=st.integers(0, 3))
def test_chunks_give_the_ids_of_whole_texts(
    shared_data: Path, name: str, texts: list[str], split: int
) -> None:
    assert_same(loaded(name, shared_data), texts, split)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=60), max_size=4))
def test_chunks_give_the_ids_of_any_unicode(shared_data: Path, name: str, texts: list[str]) -> None:
    assert_same(loaded(name, shared_data), texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_chunks_give_the_ids_of_real_text(shared_data: Path, name: str) -> None:
    texts: list[str] = []
    for folder in ("edu", "general", "dirty"):
        for path in sorted((shared_data / folder).glob("*.parquet")):
            texts += pq.read_table(path, columns=["text"])["text"].to_pylist()[::40]
    line = gzip.decompress((shared_data / "bad/huge_no_spaces.jsonl.gz").read_bytes()).splitlines()[0]
    assert_same(loaded(name, shared_data), [*texts, json.loads(line)["text"][:100_000]], split=17)


@pytest.mark.parametrize("name", NAMES)
def test_known_tokenizers_take_the_fast_way(shared_data: Path, name: str) -> None:
    assert divisible(loaded(name, shared_data).tokenizer)


def test_trained_tokenizers_take_the_fast_way(tmp_path: Path) -> None:
    tokenizer = train(iter(["the cat, the 3rd dog's mat.\n"] * 9), 300)
    write_tokenizer(tokenizer, tmp_path)
    assert divisible(Tokenizer.from_file(str(tmp_path / "tokenizer.json")))


def test_other_tokenizers_take_the_slow_way(shared_data: Path) -> None:
    stories = Tokenizer.from_file(str(shared_data / "models/stories260K-hf/tokenizer.json"))
    assert not divisible(stories)
    gpt2 = json.loads((shared_data / "tokenizers/gpt2/tokenizer.json").read_bytes())

    def changed(**parts: object) -> Tokenizer:
        return Tokenizer.from_str(json.dumps(gpt2 | parts))

    assert divisible(changed())
    assert not divisible(changed(normalizer={"type": "Lowercase"}))
    assert not divisible(changed(pre_tokenizer=None))
    prefixed = gpt2["pre_tokenizer"] | {"add_prefix_space": True}
    assert not divisible(changed(pre_tokenizer=prefixed))
    stripped = gpt2["added_tokens"][0] | {"special": False, "lstrip": True}
    assert not divisible(changed(added_tokens=[stripped]))
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    assert not divisible(words)


def test_each_distinct_chunk_is_encoded_once(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    whole = Vocabulary.encode

    def counted(self: Vocabulary, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        seen.extend(texts)
        return whole(self, texts)

    monkeypatch.setattr(Vocabulary, "encode", counted)
    text = pa.array(["the cat sat on the mat, and the cat sat" + os.linesep] * 500, pa.large_string())
    encode_by_chunks(loaded("gpt2", shared_data), pa.chunked_array([text]))
    assert sum(map(len, seen)) < 60
