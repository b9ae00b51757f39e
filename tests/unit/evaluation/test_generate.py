"""A model of a store continues a text: token by token what transformers writes, alone or beside another."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.commands.generate import generate
from storage.artifact import Artifact
from storage.errors import ConfigError
from tasks.evaluation.generate import Way, open_model, pieces
from tests.support.base_model import import_base
from tests.support.forms import GROUPED, WORDS, made_tokenizer, noisy_model

PROMPT = "the cat"


def base(root: Path, name: str, **values: Any) -> Artifact:
    noisy_model(root / name, "llama", **GROUPED, **values)
    made_tokenizer(root / name)
    return import_base(root / name, root / "store")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, Artifact]:
    root = tmp_path_factory.mktemp("generate")
    return root / "store", base(root, "one"), base(root, "other", head_dim=32)


def written(artifact: Artifact, way: Way, prompt: str = PROMPT) -> str:
    return "".join(pieces(open_model(artifact.path / "export", "eos"), prompt, way, pytest.fail))


def test_the_pieces_are_the_greedy_text_of_transformers(models: tuple[Path, Artifact, Artifact]) -> None:
    read = open_model(models[1].path / "export", "eos")
    ids = [read.eot, *read.tokenizer.encode(PROMPT).ids]
    whole = read.model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0].tolist()
    parts = list(pieces(read, PROMPT, Way(24, temperature=0.0), pytest.fail))
    found = "".join(parts)
    assert PROMPT + found == read.tokenizer.decode([token for token in whole if token != read.eot])
    assert len(parts) == len(whole) - len(ids) - (whole[-1] == read.eot) + 1


@torch.no_grad()
def speller(root: Path, tokens: list[int]) -> Artifact:
    """A model that writes these tokens in a row, each for the one before, and then ends its text."""
    shape = {"hidden_size": WORDS, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 1}
    model = noisy_model(root / "speller", "llama", **{**GROUPED, **shape}, tie_word_embeddings=False)
    after = torch.zeros(WORDS, WORDS)
    for this, follows in zip(tokens, [*tokens[1:], 0], strict=True):
        after[follows, this] = 1.0
    layer = model.model.layers[0]
    for weight, value in (
        (layer.self_attn.o_proj.weight, torch.zeros(())),
        (layer.mlp.down_proj.weight, torch.zeros(())),
        (model.model.norm.weight, torch.ones(())),
        (model.model.embed_tokens.weight, torch.eye(WORDS)),
        (model.lm_head.weight, after),
    ):
        weight.copy_(value.expand_as(weight))
    model.save_pretrained(root / "speller")
    made_tokenizer(root / "speller")
    return import_base(root / "speller", root / "store")


def test_letters_come_whole_whatever_tokens_they_are_of(tmp_path: Path) -> None:
    tokens = made_tokenizer(tmp_path / "tokens").encode("x漢🙂é").ids
    read = open_model(speller(tmp_path, tokens).path / "export", "eos")
    parts = list(pieces(read, "x", Way(50, 0.0), pytest.fail))
    assert [part for part in parts if part] == ["漢", "🙂", "é"]
    assert len(parts) == len(tokens)


def test_a_seed_draws_the_same_text_again_and_another_another(
    models: tuple[Path, Artifact, Artifact],
) -> None:
    texts = [written(models[1], Way(16, 1.0, 1.0, seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_of_a_text_beyond_the_positions_the_end_is_read(models: tuple[Path, Artifact, Artifact]) -> None:
    said: list[str] = []
    read = open_model(models[1].path / "export", "eos")
    long = "the hat sat on the cat " * 60
    found = "".join(pieces(read, long, Way(28, 0.0), said.append))
    (ids,) = read.ids_of([long])
    assert said == [
        f"the model has 128 positions: of the {len(ids)} tokens of the text, the last 100 are read"
    ]
    end = torch.tensor([ids[-100:]])
    whole = read.model.generate(end, max_new_tokens=28, do_sample=False)[0].tolist()
    assert read.tokenizer.decode(whole) == read.tokenizer.decode(ids[-100:]) + found


def asked(store: Path, model: str, against: str | None = None) -> None:
    generate(model, PROMPT, against, 8, 0.0, 0, store, None, None)


def test_the_command_writes_one_text_or_two(
    models: tuple[Path, Artifact, Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    store, one, other = models
    first, second = (f"{PROMPT}{written(model, Way(8, 0.0))}\n" for model in (one, other))
    assert first != second
    asked(store, one.key[:12])
    assert capsys.readouterr().out == first
    asked(store, one.key[:12], other.key[:12])
    assert capsys.readouterr().out == f"── {one.key[:12]}\n{first}── {other.key[:12]}\n{second}"


def test_a_terminal_shows_two_texts_in_columns(
    models: tuple[Path, Artifact, Artifact],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, one, other = models
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    asked(store, one.key[:12], other.key[:12])
    header = next(line for line in capsys.readouterr().out.splitlines() if one.key[:12] in line)
    assert other.key[:12] in header


def test_a_base_has_none_before_it(models: tuple[Path, Artifact, Artifact]) -> None:
    with pytest.raises(ConfigError, match="is a base itself; name another model"):
        asked(models[0], models[1].key[:12], "base")
