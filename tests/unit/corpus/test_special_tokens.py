"""No text can spell a special token, whatever kind of model the tokenizer has; every other text keeps its ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from tasks.corpus import tokenize
from tasks.corpus.tokens.vocabulary import Vocabulary, load_vocabulary

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "[SEP]"]
LINES = [
    "the old mill by the river ground the grain of every farm in the valley until the winter came",
    "a price was set for the flour and <nobody> paid less than that [see page 7] or so it was said",
    "if a < b and b > c then </b> is a tag and s is a letter; pad the list, and sep the cream: 100 % SEP /",
] * 20


def unigram(normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def wordlevel() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def bpe(ignore_merges: bool, *lines: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator([*LINES, *lines], trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "Unigram": unigram,
    "Unigram in lower case": lambda: unigram(
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    ),
    "WordPiece": wordpiece,
    "WordLevel": wordlevel,
    "BPE of whole words": lambda: bpe(True),
    "BPE that joins one": lambda: bpe(False, *["<s> <s> <s> <s>"] * 50),
}


@pytest.fixture(scope="module", params=KINDS)
def vocabulary(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    directory = tmp_path_factory.mktemp("tokenizer")
    KINDS[request.param]().save(str(directory / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(facts))
    paths = [directory / "tokenizer.json", directory / "tokenizer_config.json"]
    inputs = SimpleNamespace(tokenizer=SimpleNamespace(paths=paths))
    assert "special" in tokenize.components(tokenize.TokenizeConfig(), inputs)  # type: ignore[arg-type]
    return load_vocabulary(directory)


WORDS = st.sampled_from([*SPECIAL, *" .<>/[]", "mill", "</b>", "price", "SEP", "pad", "\U0010ffff"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(WORDS, max_size=12).map("".join), min_size=1, max_size=4))
def test_text_never_becomes_a_special_token(vocabulary: Vocabulary, texts: list[str]) -> None:
    unknown = vocabulary.tokenizer.token_to_id("<unk>")
    special = {vocabulary.tokenizer.token_to_id(token) for token in SPECIAL} - {unknown}
    values, lengths = vocabulary.encode(texts)
    ends = lengths.cumsum() - 1
    assert [*values[ends]] == [vocabulary.eot] * len(texts)
    values[ends] = unknown
    assert not special & set(values.tolist())


def test_a_spelled_token_keeps_its_letters(vocabulary: Vocabulary) -> None:
    """As far as the vocabulary has them: WordLevel knows whole words alone, and WordPiece no `##<`."""
    values, _ = vocabulary.encode(["the <s> price</s> [SEP]"])
    pieces = [vocabulary.tokenizer.id_to_token(int(value)) for value in values[:-1]]
    spelled = "".join(piece.removeprefix("##") for piece in pieces).replace("▁", "")
    known = spelled.split("<unk>")[0].lower()
    assert "the<s>price</s>[sep]".startswith(known) and (known != "the" or pieces[1] == "<unk>")


def test_other_texts_have_the_tokenizer_s_own_ids(vocabulary: Vocabulary) -> None:
    values, lengths = vocabulary.encode(LINES[:3])
    own = vocabulary.tokenizer.encode_batch(LINES[:3], add_special_tokens=False)
    assert values.tolist() == [value for one in own for value in [*one.ids, vocabulary.eot]]
    assert lengths.tolist() == [len(one) + 1 for one in own]


def test_a_tokenizer_whose_model_cannot_spell_them_is_used_as_it_is(tmp_path: Path) -> None:
    bpe(False).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    vocabulary = load_vocabulary(tmp_path)
    assert vocabulary.encoder is vocabulary.tokenizer
