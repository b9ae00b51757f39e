"""Exports for every reader: version 4's names for what version 5 reads, and ids that are those of tokenizer.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from storage.atomic import make_writable
from tasks.models.readers import plain_facts, spelled, write_readers
from tasks.training.state.readers import add_readers
from tests.support.base_model import import_base, json_with, small_model

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
HEADS = {"num_key_value_heads": 4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}
LAYERS = ["sliding_attention", "full_attention"]


def in_both(scaling: dict[str, Any]) -> dict[str, Any]:
    return {**scaling, "type": scaling["rope_type"]}


@pytest.mark.parametrize(
    ("kind", "values", "entries"),
    [
        ("gpt2", {}, {}),
        ("llama", {}, {}),
        ("llama", {"rope_parameters": {**PLAIN, "rope_theta": 1e5}}, {"rope_theta": 1e5}),
        ("mistral", {**HEADS, "rope_parameters": {**PLAIN, "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        ("smollm3", {"rope_parameters": {**PLAIN, "rope_theta": 5e6}}, {"rope_theta": 5e6}),
        (
            "llama",
            {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            {"rope_theta": 5e5, "rope_scaling": in_both(LLAMA3)},
        ),
        (
            "qwen3",
            {**HEADS, "rope_parameters": {**YARN, "rope_theta": 1e6}},
            {"rope_theta": 1e6, "rope_scaling": in_both(YARN)},
        ),
        (
            "phi",
            {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            "phi3",
            {"original_max_position_embeddings": 32, "rope_parameters": {**LONG, "rope_theta": 1e4}},
            {
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
            },
        ),
        ("gpt_neox", {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.25}}, {}),
        (
            "gpt_neox",
            {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
            {"rotary_emb_base": 1e4, "rotary_pct": 0.5},
        ),
        (
            "gemma3_text",
            {
                "layer_types": LAYERS,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
                },
            },
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 2e4,
                "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 8.0},
            },
        ),
        (
            "olmo3",
            {
                "layer_types": LAYERS,
                "rope_parameters": {
                    "full_attention": {**YARN, "rope_theta": 5e5},
                    "sliding_attention": {**PLAIN, "rope_theta": 5e5},
                },
            },
            {"rope_theta": 5e5, "rope_scaling": in_both(YARN)},
        ),
        (
            "modernbert-decoder",
            {
                "layer_types": LAYERS,
                "rope_parameters": {
                    "full_attention": {**PLAIN, "rope_theta": 1.6e5},
                    "sliding_attention": PLAIN,
                },
            },
            {"global_rope_theta": 1.6e5, "local_rope_theta": 1e4},
        ),
    ],
)
def test_rotary_positions_are_said_in_both_spellings(kind, values, entries, tmp_path):
    """Version 5 still reads the same of the configuration that has both."""
    config: Any = AutoConfig.for_model(kind, **(SMALL | values))
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_bytes())
    found, warnings = spelled(written)
    assert (found, warnings) == (entries, [])
    (tmp_path / "config.json").write_text(json.dumps(written | found))
    both = AutoConfig.from_pretrained(tmp_path)
    torch.manual_seed(0)
    one = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SMALL | values)))
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(both)
    ids = torch.arange(48).reshape(1, -1)
    with torch.no_grad():
        assert torch.equal(one.eval()(ids).logits, other.eval()(ids).logits)


def test_what_version_4_cannot_be_told_is_said(tmp_path):
    rope = {"full_attention": {**PLAIN, "rope_theta": 1e6}, "sliding_attention": {**YARN, "rope_theta": 1e4}}
    AutoConfig.for_model("gemma3_text", **SMALL, layer_types=LAYERS, rope_parameters=rope).save_pretrained(
        tmp_path
    )
    found, [warning] = spelled(json.loads((tmp_path / "config.json").read_bytes()))
    assert found == {} and "gemma3_text" in warning and "version 5" in warning


@pytest.mark.parametrize(
    ("facts", "plain"),
    [
        (
            {
                "tokenizer_class": "TokenizersBackend",
                "backend": "tokenizers",
                "is_local": True,
                "eos_token": "</s>",
            },
            {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"},
        ),
        ({"tokenizer_class": "GPT2TokenizerFast"}, {"tokenizer_class": "GPT2TokenizerFast"}),
        ({"tokenizer_class": "Qwen3_5Tokenizer"}, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        # version 4 puts a begin-of-text before each text by itself
        ({"tokenizer_class": "LlamaTokenizer"}, {"tokenizer_class": "PreTrainedTokenizerFast"}),
        (
            {"extra_special_tokens": ["<a>", {"content": "<b>"}]},
            {"additional_special_tokens": ["<a>", "<b>"]},
        ),
        ({"extra_special_tokens": {"image_token": "<i>"}}, {"extra_special_tokens": {"image_token": "<i>"}}),
        (
            {"model_specific_special_tokens": {"image_token": "<i>"}},
            {"extra_special_tokens": {"image_token": "<i>"}},
        ),
        ({"eos_token": "</s>"}, {"eos_token": "</s>"}),
    ],
)
def test_a_tokenizers_configuration_for_both_versions(facts, plain):
    assert plain_facts(facts) == plain
    assert plain_facts(plain) == plain


def finished(directory: Path, store: Path) -> tuple[Path, list[str]]:
    """The export that training would write of a base in `directory`, and what its import says."""
    made = import_base(directory, store)
    export = store / "finished"
    shutil.copytree(made.path / "export", export)
    make_writable(export)
    add_readers(export, made.path / "readers" if made.has("readers") else None)
    return export, made.manifest.provenance["warnings"]


def test_where_nothing_needs_to_be_said_there_is_no_part(tmp_path):
    small_model(tmp_path / "model")
    made = import_base(tmp_path / "model", tmp_path / "store")
    assert sorted(made.manifest.parts) == ["export", "tokenizer"]


def test_a_head_of_its_own_is_told_from_a_tied_one(tmp_path):
    small_model(tmp_path / "model", tie_word_embeddings=False)
    json_with(tmp_path / "model" / "config.json", tie_word_embeddings=True)
    export, _ = finished(tmp_path / "model", tmp_path / "store")
    assert json.loads((export / "config.json").read_bytes())["tie_word_embeddings"] is False
    head = AutoModelForCausalLM.from_pretrained(export).get_output_embeddings().weight
    assert torch.equal(head, AutoModelForCausalLM.from_pretrained(tmp_path / "model").lm_head.weight)

    small_model(tmp_path / "tied", tie_word_embeddings=True)
    export, _ = finished(tmp_path / "tied", tmp_path / "other")
    assert json.loads((export / "config.json").read_bytes())["tie_word_embeddings"] is True


@pytest.mark.parametrize("kind", ["qwen2", "olmo2", "granite", "qwen3", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("named", ["TokenizersBackend", "LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer"])
def test_auto_tokenizer_gives_the_ids_that_training_used(kind, named, tmp_path):
    """On the finished export, whatever class is named, and whatever one the kind of model would choose."""
    small_model(tmp_path)
    values = {"vocab_size": 270, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    values |= {"intermediate_size": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    more = {} if kind == "gpt_neox" else {"num_key_value_heads": 2, "head_dim": 8}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values, **more)).save_pretrained(tmp_path)
    json_with(tmp_path / "tokenizer_config.json", tokenizer_class=named)
    (tmp_path / "readers").mkdir()
    write_readers(tmp_path, tmp_path / "readers")
    add_readers(tmp_path, tmp_path / "readers")
    mine, theirs = (
        Tokenizer.from_file(str(tmp_path / "tokenizer.json")),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    for text in ("the cat sat on the mat", "The CATs' mat cost 12,345.67…\n\n  naïve cafe\u0301", "it's\r\n"):
        assert theirs(text).input_ids == mine.encode(text).ids


def test_settings_of_the_base_that_exports_keep(tmp_path):
    small_model(tmp_path / "model")
    json_with(
        tmp_path / "model" / "generation_config.json",
        eos_token_id=[5, 7],
        temperature=0.7,
        do_sample=True,
        transformers_version="4.40.0",
    )
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"a model of SentencePiece")
    template = "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    export, warnings = finished(tmp_path / "model", tmp_path / "store")
    assert json.loads((export / "generation_config.json").read_bytes()) == {
        "bos_token_id": 0,
        "do_sample": True,
        "eos_token_id": [0, 5, 7],
        "temperature": 0.7,
    }
    assert (export / "tokenizer.model").read_bytes() == b"a model of SentencePiece"
    assert (export / "chat_template.jinja").read_text() == template
    assert any("<|user|>" in one for one in warnings) and any("chat template" in one for one in warnings)
    assert AutoModelForCausalLM.from_pretrained(export).generation_config.temperature == 0.7
