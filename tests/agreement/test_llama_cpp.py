"""llama.cpp itself, through its Python package: logits, greedy continuations and tokens of a GGUF file are the model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

from tasks.formats.gguf_file import write_as_read, write_gguf
from tests.support.forms import (
    GROUPED,
    READ_BY_LLAMA_CPP,
    made_tokenizer,
    noisy_model,
    split_by,
)
from tests.support.llama_cpp import Llama

pytest.importorskip("xllamacpp", reason="xllamacpp is not installed: make install-agreement")

IDS = [*range(40, 60), *(5, 9, 200, 13) * 4]
STEPS = 6
EXACT, BY_TABLE = 5e-5, 5e-3
"""Largest difference of a log-probability. llama.cpp looks GELU up in a table of float16."""
ROUNDED_TWICE = 0.3
GELU = ("gpt2", "gpt_bigcode", "gpt_neox", "phi", "starcoder2", "gemma", "gemma3_text")
GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    "It's 1999: we'LL see — THEY'RE “unbelievably” re-entered 12,345.67 times (naïve)…",
    "def f(x):\n\treturn  x ** 2   # 漢字かな 한글 🙂👍🏽\r\n\r\n\n   indented",
    "  leading,\ttabs and\u00a0no-break a1b22c333d4444e55555",
)


@torch.no_grad()
def expected(model: Any, ids: list[int]) -> torch.Tensor:
    return torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0, -1].float(), -1)


def differences(llama: Llama, model: Any) -> Iterator[float]:
    """Of log-probabilities along the model's greedy continuation, which llama.cpp must choose too."""
    ids = list(IDS)
    for _ in range(STEPS):
        own, found = expected(model, ids), llama.next(ids)
        if found:
            assert max(found, key=lambda one: found[one]) == int(own.argmax())
            yield max(abs(float(own[number]) - value) for number, value in found.items())
        ids.append(int(own.argmax()))


@pytest.mark.parametrize("kind", list(READ_BY_LLAMA_CPP))
def test_every_family_answers_as_it_does_in_transformers(tmp_path: Path, kind: str) -> None:
    model = noisy_model(tmp_path, kind, **READ_BY_LLAMA_CPP[kind])
    made_tokenizer(tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", "fp32", "m")
    found = list(differences(Llama(tmp_path / "m.gguf", model.config.vocab_size), model))
    assert found and max(found) < (BY_TABLE if kind.split()[0] in GELU else EXACT)


@pytest.mark.parametrize("dtype", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_a_quantised_file_answers_as_the_numbers_in_it_do(tmp_path: Path, dtype: str) -> None:
    """llama.cpp rounds what it multiplies with the numbers, too: to 8 bits."""
    model = noisy_model(tmp_path, "llama", **GROUPED)
    made_tokenizer(tmp_path)
    write_gguf(tmp_path, tmp_path / "m.gguf", dtype, "m")
    write_as_read(tmp_path, tmp_path, dtype)
    held = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    llama = Llama(tmp_path / "m.gguf", model.config.vocab_size)
    own, plain, found = expected(held, IDS), expected(model, IDS), llama.next(IDS)
    apart = max(abs(float(own[number]) - value) for number, value in found.items())
    assert apart < ROUNDED_TWICE, f"{apart} apart; {float((own - plain).abs().max())} by rounding the weights"


@pytest.mark.parametrize(
    "splitting",
    [
        None,
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
        split_by(GPT4_WORDS),
        split_by(GPT4_WORDS.replace("{1,3}", "")),
    ],
    ids=["gpt-2", "smollm", "dbrx", "qwen2"],
)
def test_texts_are_the_same_tokens_for_tokenizers_made_here(tmp_path: Path, splitting: Any) -> None:
    model = noisy_model(tmp_path, "llama", **GROUPED)
    tokens_are_the_same(tmp_path, made_tokenizer(tmp_path, splitting), model)


def test_texts_are_the_same_tokens_where_whole_words_are_looked_up(tmp_path: Path) -> None:
    """As Llama 3 does: a word that no merge makes is taken whole."""
    model = noisy_model(tmp_path, "llama", **GROUPED)
    spec = json.loads(made_tokenizer(tmp_path, split_by(GPT4_WORDS)).to_str())
    spec["model"]["vocab"]["unbelievably"] = len(spec["model"]["vocab"])
    spec["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    assert tokenizer.encode("unbelievably").tokens == ["unbelievably"]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens_are_the_same(tmp_path, tokenizer, model)


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox-olmo-dolma-v1_5", "dolma2"])
def test_texts_are_the_same_tokens_for_known_tokenizers(tmp_path: Path, shared_data: Path, name: str) -> None:
    path = shared_data / "tokenizers" / name / "tokenizer.json"
    words = max(Tokenizer.from_file(str(path)).get_vocab().values()) + 1
    model = noisy_model(tmp_path, "llama", **GROUPED, vocab_size=words + 10)
    shutil.copyfile(path, tmp_path / "tokenizer.json")
    tokens_are_the_same(tmp_path, Tokenizer.from_file(str(path)), model)


def test_texts_are_the_same_tokens_for_a_byte_fallback_tokenizer(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "models" / "stories260K-hf"
    model = noisy_model(tmp_path, "llama", **GROUPED, vocab_size=512)
    shutil.copyfile(source / "tokenizer.json", tmp_path / "tokenizer.json")
    config = model.config
    config.bos_token_id, config.eos_token_id = 1, 2
    config.save_pretrained(tmp_path)
    tokens_are_the_same(tmp_path, Tokenizer.from_file(str(tmp_path / "tokenizer.json")), model)


def tokens_are_the_same(directory: Path, tokenizer: Tokenizer, model: Any) -> None:
    """The model answers to a text as it does to the ids that tokenizer.json gives."""
    write_gguf(directory, directory / "m.gguf", "fp32", "m")
    llama = Llama(directory / "m.gguf", 40)
    compared = 0
    for text in TEXTS:
        for end in range(len(text) // 3, len(text), 7):
            part = text[:end]
            if not (found := llama.next(part)):
                continue
            own = expected(model, tokenizer.encode(part).ids)
            compared += 1
            assert max(abs(float(own[number]) - value) for number, value in found.items()) < EXACT, part
    assert compared > 4
