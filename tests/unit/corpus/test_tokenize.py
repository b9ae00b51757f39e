from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from storage.artifact import Input
from storage.errors import BadInput, StageFailed
from storage.testing import artifact_of
from storage.tokens import TokenShard
from tasks.corpus import tokenizer
from tasks.corpus.documents import document_ids
from tasks.corpus.tokens.vocabulary import load_vocabulary
from tests.support.corpus.tokens import documents, tokenizer_input, tokens_of

SPELLED = "It ends <|endoftext|> here </s> or <s> there, <|padding|> not."


KNOWN = [
    ("tokenizers/gpt2", "<|endoftext|>"),
    ("tokenizers/gpt-neox-olmo-dolma-v1_5", "<|endoftext|>"),
    ("tokenizers/dolma2", "<|endoftext|>"),
    ("models/stories260K-hf", "</s>"),
]


@pytest.mark.parametrize(("folder", "eos"), KNOWN)
def test_special_tokens_spelled_in_text_stay_text(
    tmp_path: Path, shared_data: Path, folder: str, eos: str
) -> None:
    vocabulary = tokenizer_input(tmp_path / "base", shared_data / folder / "tokenizer.json", eos)
    texts = [SPELLED, "", eos, eos + eos, "plain words"]
    made = tokens_of(tmp_path, documents(tmp_path, [texts]), vocabulary)
    shard = TokenShard.open(made.part("tokens").only())
    reference = Tokenizer.from_file(str(shared_data / folder / "tokenizer.json"))
    special = {reference.token_to_id(token) for token in ("<|endoftext|>", "<s>", "</s>", "<|padding|>")}
    assert shard.eot == reference.token_to_id(eos)
    for index, text in enumerate(texts):
        assert shard[index][-1] == shard.eot
        assert not special & set(shard[index][:-1].tolist()), text
        assert reference.decode(shard[index][:-1].tolist(), skip_special_tokens=False).strip() == text
    assert int((shard.tokens == shard.eot).sum()) == 1 + len(texts)


@pytest.mark.parametrize(("folder", "eos"), KNOWN)
def test_ids_are_the_tokenizers_own_without_bos(
    tmp_path: Path, shared_data: Path, folder: str, eos: str
) -> None:
    vocabulary = tokenizer_input(tmp_path / "base", shared_data / folder / "tokenizer.json", eos)
    texts = ["Once upon a time,  there was\n\n\ta café — 漢字 🙂 0123.", " leading", "trailing "] * 700
    made = tokens_of(tmp_path, documents(tmp_path, [texts[:1000], texts[1000:]]), vocabulary)
    reference = Tokenizer.from_file(str(shared_data / folder / "tokenizer.json"))
    got = [
        shard[i][:-1].tolist()
        for shard in map(TokenShard.open, made.part("tokens").paths)
        for i in range(len(shard))
    ]
    assert got == [reference.encode(text, add_special_tokens=False).ids for text in texts]


def test_counts_dtype_and_metadata(tmp_path: Path, small_tokenizer: Input) -> None:
    texts = [["the cat sat", "é"], [], ["dog"]]
    docs = documents(tmp_path, texts)
    made = tokens_of(tmp_path, docs, small_tokenizer)
    shards = [TokenShard.open(path) for path in made.part("tokens").paths]
    assert [len(shard) for shard in shards] == [2, 0, 1]
    assert made.stats["documents_in"] == made.stats["documents_out"] == 3
    assert made.stats["tokens"] == sum(int(shard.lengths.sum()) for shard in shards)
    assert made.stats["bytes_in"] == len("the cat sat") + 2 + 3
    assert made.stats["unknown_tokens"] == 0
    assert [entry.tokens for entry in made.manifest.parts["tokens"].files] == [
        int(shard.lengths.sum()) for shard in shards
    ]
    assert [entry.rows for entry in made.manifest.parts["tokens"].files] == [2, 0, 1]
    assert {shard.tokenizer for shard in shards} == {small_tokenizer.digest}
    assert shards[0].tokens.dtype == np.uint16
    assert np.concatenate([shard.docs for shard in shards]).tolist() == document_ids("general", 0, 3).tolist()


def test_large_vocabularies_are_stored_in_32_bits(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "tokenizers/dolma2/tokenizer.json"
    vocabulary = tokenizer_input(tmp_path / "base", source, "<|endoftext|>")
    made = tokens_of(tmp_path, documents(tmp_path, [["words"]]), vocabulary)
    assert TokenShard.open(made.part("tokens").only()).tokens.dtype == np.uint32


def test_unknown_words_are_counted(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "cat": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "words.json"))
    vocabulary = tokenizer_input(tmp_path / "base", tmp_path / "words.json", "</s>")
    artifact = tokens_of(tmp_path, documents(tmp_path, [["cat dog cat bird"]]), vocabulary)
    assert artifact.stats["unknown_tokens"] == 2


def test_a_tokenizer_that_would_end_documents_itself_is_refused(tmp_path: Path) -> None:
    from tokenizers import models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"stop": 0, "cat": 1}, unk_token="cat"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "words.json"))
    vocabulary = tokenizer_input(tmp_path / "base", tmp_path / "words.json", "stop")
    with pytest.raises(BadInput, match="plain text"):
        tokens_of(tmp_path, documents(tmp_path, [["cat stop cat"]]), vocabulary)


def test_an_end_of_text_that_is_not_marked_special_is_still_kept_out_of_text(
    tmp_path: Path, shared_data: Path
) -> None:
    definition = json.loads((shared_data / "tokenizers/gpt2/tokenizer.json").read_bytes())
    definition["added_tokens"][0]["special"] = False
    (tmp_path / "plain.json").write_text(json.dumps(definition))
    vocabulary = tokenizer_input(tmp_path / "base", tmp_path / "plain.json", "<|endoftext|>")
    _, lengths = load_vocabulary(vocabulary.paths[0].parent).encode(["<|endoftext|>"])
    assert lengths.tolist() == [8]


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path, small_tokenizer: Input) -> None:
    vocabulary = tokenizer_input(tmp_path / "base", small_tokenizer.paths[0], "<|nothing|>")
    with pytest.raises(BadInput, match="end-of-text"):
        tokens_of(tmp_path, documents(tmp_path, [["words"]]), vocabulary)


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "eos"), KNOWN)
def test_two_megabytes_without_a_space_do_not_hang(
    tmp_path: Path, shared_data: Path, folder: str, eos: str
) -> None:
    line = gzip.decompress((shared_data / "bad/huge_no_spaces.jsonl.gz").read_bytes()).splitlines()[0]
    text = json.loads(line)["text"]
    vocabulary = tokenizer_input(tmp_path / "base", shared_data / folder / "tokenizer.json", eos)
    started = time.monotonic()
    made = tokens_of(tmp_path, documents(tmp_path, [[text]]), vocabulary)
    assert time.monotonic() - started < 30
    assert made.stats["tokens"] > 100_000


def test_trained_tokenizer_loads_with_transformers(small_tokenizer: Input) -> None:
    from transformers import AutoTokenizer

    directory = small_tokenizer.paths[0].parent
    loaded = AutoTokenizer.from_pretrained(directory)
    own = load_vocabulary(directory)
    assert loaded.bos_token_id == loaded.eos_token_id == own.eot
    assert loaded.pad_token_id is None
    text = "the cat sat on the mat – 漢"
    assert loaded(text).input_ids == own.encode([text])[0][:-1].tolist()
    assert loaded.decode(loaded(text).input_ids) == text


def test_training_on_no_text_fails(tmp_path: Path) -> None:
    inputs = tokenizer.TokenizerInputs((documents(tmp_path, [[]]),))
    with pytest.raises(StageFailed, match="no text"):
        artifact_of(tokenizer, tokenizer.TokenizerConfig(), inputs, tmp_path / "store")
