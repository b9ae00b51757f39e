"""A GGUF file is the model: transformers' own reader gives its logits and its tokens; what would not be is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from storage.errors import ConfigError
from tasks.formats.families import family_of
from tasks.formats.gguf_file import write_as_read, write_gguf
from tasks.formats.ollama import modelfile
from tasks.formats.vocabulary import splitting
from tasks.training.model import quiet
from tests.support.forms import (
    GROUPED,
    READ_BY_TRANSFORMERS,
    TIED,
    WIDE,
    WINDOWED,
    made_tokenizer,
    noisy_model,
    split_by,
)

IDS = torch.tensor([[*range(40, 60), *(5, 9, 200, 13) * 4]])
FILE = "m.gguf"
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = "the cat's hat in 1999, naïve — 漢字 🙂\n\n  x"


def read(directory: Path, **named: Any) -> Any:
    with quiet():
        return AutoModelForCausalLM.from_pretrained(
            directory, gguf_file=FILE, dtype=torch.float32, **named
        ).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("kind", list(READ_BY_TRANSFORMERS))
def test_transformers_reads_the_same_logits(tmp_path: Path, kind: str) -> None:
    model = noisy_model(tmp_path, kind, **READ_BY_TRANSFORMERS[kind])
    made_tokenizer(tmp_path)
    write_gguf(tmp_path, tmp_path / FILE, "fp32", "m")
    assert torch.equal(logits(read(tmp_path, config=model.config)), logits(model))


@pytest.mark.parametrize("kind", ["llama", "qwen2 tied"])
def test_the_file_alone_says_the_model_and_its_tokenizer(tmp_path: Path, kind: str) -> None:
    model = noisy_model(tmp_path / "model", kind, **READ_BY_TRANSFORMERS[kind])
    tokenizer = made_tokenizer(tmp_path / "model", chat_template="{{ messages }}")
    alone = tmp_path / "alone"
    alone.mkdir()
    write_gguf(tmp_path / "model", alone / FILE, "fp32", "m")
    found = read(alone)
    assert torch.equal(logits(found), logits(model))
    ids = found.generate(IDS, max_new_tokens=8, do_sample=False)
    assert torch.equal(ids, model.generate(IDS, max_new_tokens=8, do_sample=False))
    with quiet():
        own = AutoTokenizer.from_pretrained(alone, gguf_file=FILE)
    assert own(TEXT, add_special_tokens=False).input_ids == tokenizer.encode(TEXT).ids
    assert own.chat_template == "{{ messages }}"
    assert own.eos_token == "<eos>"


@pytest.mark.parametrize(("dtype", "share"), [("bf16", 2.0**-8), ("fp16", 2.0**-11), ("q8_0", None)])
def test_numbers_are_off_by_no_more_than_their_type_says(
    tmp_path: Path, dtype: str, share: float | None
) -> None:
    noisy_model(tmp_path, "qwen2", **READ_BY_TRANSFORMERS["qwen2"])
    made_tokenizer(tmp_path)
    write_gguf(tmp_path, tmp_path / FILE, dtype, "m")
    found = read(tmp_path).state_dict()
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        error = (found[name] - tensor).abs()
        if tensor.dim() < 2:
            assert torch.equal(found[name], tensor), name
        elif share is not None:
            assert bool((error <= share * tensor.abs() + 3e-8).all()), name
        else:  # blocks of 32 numbers with one scale, itself rounded to float16: half a step of the largest / 127
            largest = tensor.reshape(-1, 32).abs().amax(1, keepdim=True)
            assert bool((error.reshape(-1, 32) <= largest / 254 * 1.15).all()), name
        assert dtype == "fp32" or tensor.dim() < 2 or not torch.equal(found[name], tensor)
    again = tmp_path / "again.gguf"
    write_gguf(tmp_path, again, dtype, "m")
    assert again.read_bytes() == (tmp_path / FILE).read_bytes()


@pytest.mark.parametrize("kind", ["llama tied", "gpt2"])
@pytest.mark.parametrize("dtype", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_what_a_quantised_file_holds_is_what_is_measured(tmp_path: Path, kind: str, dtype: str) -> None:
    """The numbers for a card are those that a reader of the file gets, matrix by matrix."""
    model = noisy_model(tmp_path, kind, **READ_BY_TRANSFORMERS[kind])
    made_tokenizer(tmp_path)
    write_gguf(tmp_path, tmp_path / FILE, dtype, "m")
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / FILE).tensors}
    assert kinds["blk.0.ffn_down.weight"] == dtype.upper() and kinds["token_embd.weight"] == "Q8_0"
    found = read(tmp_path, config=model.config).state_dict()
    (tmp_path / "as-read").mkdir()
    write_as_read(tmp_path, tmp_path / "as-read", dtype)
    for name, tensor in load_file(tmp_path / "as-read" / "model.safetensors").items():
        assert torch.equal(tensor, found[name]), name


def test_rows_that_no_block_fits_are_float16(tmp_path: Path) -> None:
    noisy_model(tmp_path, "llama", **{**GROUPED, "hidden_size": 48, "intermediate_size": 64})
    made_tokenizer(tmp_path)
    write_gguf(tmp_path, tmp_path / FILE, "q8_0", "m")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / FILE).tensors}
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0" and kinds["blk.0.ffn_up.weight"] == "F16"
    assert kinds["output_norm.weight"] == "F32"


def test_a_head_is_written_where_llama_cpp_wants_one(tmp_path: Path) -> None:
    noisy_model(tmp_path, "gpt_neox", **WIDE, **TIED)
    made_tokenizer(tmp_path)
    write_gguf(tmp_path, tmp_path / FILE, "fp32", "m")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / FILE).tensors}
    assert np.array_equal(tensors["output.weight"], tensors["token_embd.weight"])


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("opt", {}, "a model of kind opt cannot be written; kinds that can: cohere, "),
        ("mistral", {**GROUPED, "sliding_window": 8}, "a mistral with a window of 8 of 128 positions"),
        ("llama", {**GROUPED, "hidden_act": "gelu"}, "a llama with hidden_act: gelu"),
        ("gpt_bigcode", {"multi_query": False}, "a gpt_bigcode with multi_query: False"),
        ("cohere", {**GROUPED, "use_qk_norm": True}, "a cohere with use_qk_norm: True"),
        ("olmo3", {**WINDOWED, "layer_types": ["full_attention"] * 4}, "not each 4th"),
        ("smollm3", {**GROUPED, "num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]}, "not each 4th"),
    ],
)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(
    kind: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=r"^--format gguf: ") as raised:
        family_of(AutoConfig.for_model(kind, **values))
    assert said in str(raised.value) and "safetensors" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "whole", "made"),
    [
        ("gpt-2", False, None),
        ("gpt-2", False, split_by(GPT2_WORDS)),
        (
            "smollm",
            False,
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
        ("dbrx", False, split_by(GPT4_WORDS)),
        ("llama-bpe", True, split_by(GPT4_WORDS)),
        ("qwen2", False, split_by(GPT4_WORDS.replace("{1,3}", ""))),
    ],
)
def test_a_splitting_of_words_has_llama_cpps_name(tmp_path: Path, name: str, whole: bool, made: Any) -> None:
    tokenizer = made_tokenizer(tmp_path, made)
    assert splitting(tokenizer, whole) == name
    tokenizer.normalizer = normalizers.NFC()
    assert splitting(tokenizer, whole) == name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "splits words in another way"),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "splits words in another way"),
        ({"normalizer": normalizers.Lowercase()}, "with a normalizer"),
        ({"model": models.Unigram([("a", 0.0)])}, "a tokenizer of the kind Unigram"),
        ({"model": models.WordLevel({"a": 0}, "a")}, "a tokenizer of the kind WordLevel"),
    ],
)
def test_a_tokenizer_that_llama_cpp_reads_otherwise_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    noisy_model(tmp_path, "llama", **READ_BY_TRANSFORMERS["llama"])
    tokenizer = made_tokenizer(tmp_path)
    for name, value in change.items():
        setattr(tokenizer, name, value)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError) as raised:
        write_gguf(tmp_path, tmp_path / FILE, "fp32", "m")
    assert said in str(raised.value) and "export it as safetensors" in str(raised.value)


def test_more_words_than_rows_are_refused(tmp_path: Path) -> None:
    noisy_model(tmp_path, "llama", **READ_BY_TRANSFORMERS["llama"], vocab_size=100)
    made_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=r"the tokenizer has 2\d\d words, the embedding 100 rows"):
        write_gguf(tmp_path, tmp_path / FILE, "fp32", "m")


def test_a_byte_fallback_tokenizer_keeps_its_merges_as_scores(tmp_path: Path, shared_data: Path) -> None:
    directory = shared_data / "models" / "stories260K-hf"
    write_gguf(directory, tmp_path / FILE, "q8_0", "stories")
    fields = gguf.GGUFReader(tmp_path / FILE).fields
    scores = [
        float(fields["tokenizer.ggml.scores"].parts[at][0]) for at in fields["tokenizer.ggml.scores"].data
    ]
    spec = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert scores[spec.token_to_id("▁t")] > scores[spec.token_to_id("▁there")]
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    with quiet():
        own = AutoTokenizer.from_pretrained(tmp_path, gguf_file=FILE)
    assert (
        own("Once upon a time, there was a café").input_ids
        == spec.encode("Once upon a time, there was a café").ids
    )


def test_the_modelfile_continues_a_text_unless_the_model_has_a_template(tmp_path: Path) -> None:
    noisy_model(tmp_path, "llama", **READ_BY_TRANSFORMERS["llama"])
    made_tokenizer(tmp_path)
    assert modelfile(tmp_path, FILE) == ('FROM ./m.gguf\nPARAMETER num_ctx 128\nTEMPLATE "{{ .Prompt }}"\n')
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert modelfile(tmp_path, FILE) == "FROM ./m.gguf\nPARAMETER num_ctx 128\n"
