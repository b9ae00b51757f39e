"""What can be trained is decided from a configuration alone, in words that name the reason and the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from storage.errors import ConfigError
from tasks.training.attention import register
from tasks.training.trainable import _smaller, _without_memory, check_trainable
from tests.support.training.families import (
    FAMILIES,
    LENGTH,
    LLAMA,
    ROPE,
    STATEFUL,
    TRAINS,
    WIDE,
    config_of,
)

OWN, NOT_CAUSAL = "its attention cannot be replaced", "it is no causal language model"
CHANGED, SEVERAL = "it changes its logits", "it is made of several models"
EXPERTS = "does not take its mixtures of experts"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hyperclovax": ({**LLAMA, "logits_scaling": 4.0}, CHANGED),
    "jamba": (LLAMA, EXPERTS),
    "falcon": (WIDE, OWN),
    "falcon alibi": ({**WIDE, "alibi": True}, OWN),
    "gptj": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, OWN),
    "gpt_neo": (
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
        },
        OWN,
    ),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, OWN),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4}, OWN),
    "stablelm": (LLAMA, OWN),
    "whisper": ({"d_model": 32, "encoder_layers": 1, "decoder_layers": 1}, OWN),
    "bart": ({"d_model": 32}, OWN),
    "gemma2": ({**LLAMA, "head_dim": 8}, "it caps the scores of its attention"),
    "gpt_oss": ({**LLAMA, "head_dim": 8, "num_local_experts": 4}, "its attention has sinks"),
    "bert": (WIDE, "its attention sees later tokens"),
    "roberta": (WIDE, "its attention sees later tokens"),
    "mixtral": ({**LLAMA, "num_local_experts": 4}, EXPERTS),
    "qwen2_moe": (
        {**LLAMA, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts": 4},
        EXPERTS,
    ),
    "t5": ({"d_model": 32, "num_layers": 1}, NOT_CAUSAL),
    "vit": ({}, NOT_CAUSAL),
    "clip": ({}, SEVERAL),
    "llava": ({}, SEVERAL),
    "gemma3": ({}, SEVERAL),
    "llama classifier": ({**LLAMA, "architectures": ["LlamaForSequenceClassification"]}, NOT_CAUSAL),
    "llama unheard of": ({**LLAMA, "architectures": ["LlamaForSomethingElse"]}, NOT_CAUSAL),
    "llama short": (
        {**LLAMA, "max_position_embeddings": LENGTH - 1},
        f"packing.sequence_length <= {LENGTH - 1}",
    ),
    "phi3 long": (
        {
            **LLAMA,
            **ROPE,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "long_factor": [4.0] * 4,
                "short_factor": [1.0] * 4,
                "original_max_position_embeddings": 16,
            },
        },
        "documents in a row come out otherwise than alone",
    ),
}


@pytest.mark.parametrize("kind", TRAINS)
def test_what_keeps_documents_apart_is_taken(kind: str) -> None:
    check_trainable(config_of(kind.split()[0], **TRAINS[kind]), LENGTH, "fp32")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_of_the_trainers_tests_are_taken(family: str) -> None:
    check_trainable(FAMILIES[family](), LENGTH, "bf16")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}),
        (
            "mamba2",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "n_groups": 1},
        ),
        *((name, made) for name, made in STATEFUL.items()),
    ],
)
def test_layers_with_state_are_taken_and_told(kind: str, values: Any) -> None:
    config = values() if callable(values) else config_of(kind, **values)
    [note] = check_trainable(config, LENGTH, "fp32")
    assert "one document to a row" in note and "a quarter" in note
    assert check_trainable(config_of("llama", **LLAMA), LENGTH, "fp32") == []


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_is_refused_in_one_sentence(kind: str) -> None:
    values, reason = REFUSED[kind]
    with pytest.raises(ConfigError) as refused:
        check_trainable(config_of(kind.split()[0], **values), LENGTH, "fp32")
    said = str(refused.value)
    assert reason in said
    assert "choose" in said, "the way out"
    assert "onward_packed" not in said and "\n" not in said
    assert said.count(". ") == 0


@pytest.mark.parametrize("named", [None, [], ["LlamaForCausalLM"], ["LlamaModel"], ["YayaForCausalLM"]])
def test_a_configuration_may_name_no_class_or_one_of_somebody_elses(named: list[str] | None) -> None:
    check_trainable(config_of("llama", **LLAMA, architectures=named), LENGTH, "fp32")


def test_the_check_draws_from_no_random_state_of_the_process() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_num_threads()
    check_trainable(config_of("llama", **LLAMA), LENGTH, "fp32")
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.get_num_threads() == before[1]


def test_a_large_model_is_tried_as_a_small_one_with_every_kind_of_layer() -> None:
    register(False)
    config = transformers.AutoConfig.for_model("gemma3_text")
    maker = transformers.Gemma3ForCausalLM
    small = next(_smaller(maker, config, _without_memory(maker, config)))
    assert set(small.layer_types) == {"sliding_attention", "full_attention"}
    assert small.head_dim == config.head_dim
    assert sum(p.numel() for p in _without_memory(maker, small).parameters()) < 30_000_000
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8}
    large = config_of("llama", hidden_size=8192, num_hidden_layers=80, **heads)
    whole = _without_memory(transformers.LlamaForCausalLM, large)
    small = next(_smaller(transformers.LlamaForCausalLM, large, whole))
    assert (small.num_hidden_layers, small.hidden_size) == (2, 512)
