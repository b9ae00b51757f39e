"""Language and education score: the real model of the wheel, a real small classifier."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from storage.errors import ConfigError
from storage.testing import draft_in
from tasks.corpus import filter as stage
from tasks.corpus.filter import FilterConfig, FilterInputs, classifier_inputs
from tasks.corpus.rules import education, language
from tasks.corpus.rules.fasttext_tables import Tables
from tasks.corpus.rules.lines import even_lines
from tasks.corpus.rules.rule import TextBatch
from tests.support.corpus.shared import rows_of
from tests.support.corpus.slices import dropped_in, slice_of, texts_in

ENGLISH = "The cat sat on the mat and looked at the rain that fell on the garden behind the house."
GERMAN = "Die Katze saß auf der Matte und sah dem Regen zu, der auf den Garten hinter dem Haus fiel."
ALONE = {"language": "any", "gopher": False, "c4": False, "fineweb": False, "pii": "off"}


def test_the_language_is_that_of_the_text(tmp_path: Path) -> None:
    for wanted, kept in (("en", [ENGLISH]), ("de", [GERMAN])):
        draft = draft_in(tmp_path / wanted)
        given = slice_of(tmp_path / wanted / "in", [ENGLISH, GERMAN, ""])
        stage.run(FilterConfig(**(ALONE | {"language": wanted})), FilterInputs(given), draft)
        assert texts_in(draft.path) == kept
        assert {row["reason"] for row in dropped_in(draft.path)} == {"language"}
        assert {row["detail"] for row in dropped_in(draft.path)} == {"at least 0.65"}
    (both, one) = language.scores(TextBatch(pl.Series([ENGLISH + "\n" + GERMAN, ENGLISH])), "en")
    assert 0 < both < one <= 1.01


@pytest.mark.parametrize(
    "space", ["\t", "\r\n", "\u00a0", "\u2003", "\u202f", "\u3000", "\u2028", "\x85", "\u1680"]
)
def test_the_kind_of_space_decides_no_language(space: str) -> None:
    """The model parts words at the spaces of ASCII: with others, a text was one long word of no language."""
    texts = pl.Series([text.replace(" ", kind) for text in (ENGLISH, GERMAN) for kind in (" ", space)])
    for wanted in ("en", "de"):
        found = language.scores(TextBatch(texts), wanted)
        assert found[0] == found[1] and found[2] == found[3] and max(found) > 0.65


ODD = [
    "",
    " \n\t ",
    "</s>",
    "</s> " + ENGLISH,
    ENGLISH + "\0" + GERMAN,
    ENGLISH.replace(" ", "\x1f"),
    "__label__en " + ENGLISH,
    "x__label__en " + GERMAN,
    "日本語の文章です。 " + ENGLISH,
    "naïve café “quoted” — Ελληνικά русский 😀😀 " * 3,
    "a" * 5000,
    "the " * 3000,
    ENGLISH.upper(),
    "\u200b\ufeff" + ENGLISH,
]


@pytest.mark.parametrize("wanted", ["en", "de", "ja"])
def test_what_is_sure_of_a_language_is_so_by_the_library(wanted: str, shared_data: Path) -> None:
    real = [row["text"] for row in rows_of(shared_data / "dirty")][::40]
    batch = TextBatch(pl.Series([*ODD, ENGLISH, GERMAN, ENGLISH + " " + GERMAN, *real]))
    exact = language.scores(batch, wanted)
    sure = language.tables().certainty(batch.between, batch.flat, wanted)
    assert (exact <= sure.scores * sure.factors).all() and (exact >= sure.scores / sure.factors).all()
    strange = np.array(
        ["\0" in text or "\x1f" in text or text.startswith(("__label__", "</s>")) for text in batch.texts]
    )
    assert np.isfinite(sure.factors).all() and (sure.factors[strange] > 1e9).all()
    assert np.median(sure.factors[~strange]) < 1.02  # the bound is of use
    assert np.abs(sure.scores - exact)[~strange].max() < 1e-4
    for limit in (0.0, 0.3, 0.65, 0.9, 1.0):
        found = language.scores_below(batch, limit, wanted)
        assert ((found >= limit) == (exact >= limit)).all()
        assert (found[found < limit] == exact[found < limit]).all()


@given(st.lists(st.text(max_size=60), max_size=6))
def test_any_text_has_the_score_of_the_library(texts: list[str]) -> None:
    batch = TextBatch(even_lines(pl.Series(texts, dtype=pl.String)))
    exact = language.scores(batch, "en")
    sure = language.tables().certainty(batch.between, batch.flat, "en")
    assert (exact <= sure.scores * sure.factors).all() and (exact >= sure.scores / sure.factors).all()


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match="no fastText model"):
        Tables.read(tmp_path / "model")


def test_a_language_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean"):
        FilterConfig(language="eng")


def test_planted_languages_are_dropped_and_english_kept(shared_data: Path) -> None:
    truth = json.loads((shared_data / "dirty" / "truth.json").read_text())["non_english"]
    texts = {row["id"]: row["text"] for row in rows_of(shared_data / "dirty")}
    scores = language.scores(TextBatch(pl.Series([texts[entry["id"]] for entry in truth])), "en")
    kept = [entry["lang"] for entry, score in zip(truth, scores, strict=True) if score >= 0.65]
    assert len(truth) == 50
    assert all(name == "en" or name.startswith("mixed") for name in kept)
    assert kept.count("en") == sum(entry["lang"] == "en" for entry in truth)


def scored(tmp_path: Path, metas: list[dict | None]) -> TextBatch:
    return TextBatch(
        pl.Series([ENGLISH] * len(metas)), pl.Series([None if m is None else json.dumps(m) for m in metas])
    )


def test_the_raw_score_of_the_source_counts_and_not_its_rounding(tmp_path: Path) -> None:
    metas = [
        {"score": 2.9, "int_score": 3},
        {"score": "3.0"},
        {"score": 4},
        {"other": 1},
        None,
        {"score": "much"},
    ]
    rule = education.family(3.0, None).rules[0]
    _, keep = rule.measure(scored(tmp_path, metas))
    assert keep.tolist() == [False, True, True, True, True, True]


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A Llama with one label and a vocabulary of a few words, of random weights."""
    torch.manual_seed(0)
    words = {
        "<unk>": 0,
        "<pad>": 1,
        **{word: i + 2 for i, word in enumerate(ENGLISH.replace(".", "").split())},
    }
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    directory = tmp_path / "classifier"
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>").save_pretrained(
        directory
    )
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=1,
    )
    LlamaForSequenceClassification(config).save_pretrained(directory)
    return directory


def test_a_classifier_scores_what_has_no_score_and_its_files_are_in_the_key(
    classifier: Path, tmp_path: Path
) -> None:
    texts = [ENGLISH, "rain rain rain", "house", "the garden"]
    config = FilterConfig(**ALONE, min_edu_score=0.0, edu_classifier=classifier)
    digest, directory = classifier_inputs(config, tmp_path)
    tokenizer, model = education._loaded(directory)
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
    assert education.classified(texts, directory) == pytest.approx(expected, abs=1e-5)
    limit = float(np.median(expected))
    config = config.model_copy(update={"min_edu_score": limit})
    draft = draft_in(tmp_path / "out")
    stage.run(config, FilterInputs(slice_of(tmp_path / "in", texts), digest, directory), draft)
    assert texts_in(draft.path) == [
        text for text, score in zip(texts, expected, strict=True) if score >= limit
    ]
    (classifier / "config.json").write_text((classifier / "config.json").read_text() + "\n")
    assert classifier_inputs(config, tmp_path)[0] != digest


def test_a_classifier_that_cannot_be_read_safely_is_refused(classifier: Path, tmp_path: Path) -> None:
    (classifier / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        classifier_inputs(FilterConfig(min_edu_score=3, edu_classifier=classifier), tmp_path)
    with pytest.raises(ValueError, match="min_edu_score"):
        FilterConfig(edu_classifier=classifier)


def test_documents_without_any_score_are_kept_and_said(tmp_path: Path) -> None:
    draft = draft_in(tmp_path)
    given = FilterInputs(slice_of(tmp_path / "in", [ENGLISH, GERMAN]))
    stats = stage.run(FilterConfig(**ALONE, min_edu_score=3.0), given, draft)
    assert (stats.documents_out, stats.documents_without_score) == (2, 2)
