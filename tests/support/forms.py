"""Small models of each family that GGUF has, with every weight off its usual value, and tokenizers of known kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.training.model import quiet

WORDS = 288
WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "intermediate_size": 128,
}
GROUPED: dict[str, Any] = {**WIDE, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
GEMMA3: dict[str, Any] = {
    **GROUPED,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "num_hidden_layers": 6,
    "sliding_window": 8,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}
WINDOWED: dict[str, Any] = {
    **GROUPED,
    "num_hidden_layers": 4,
    "sliding_window": 8,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR: dict[str, Any] = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN: dict[str, Any] = {**LINEAR, "rope_type": "yarn", "original_max_position_embeddings": 32}
TIED: dict[str, Any] = {"tie_word_embeddings": True}
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
READ_BY_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, **UNTIED},
    "llama tied": {**GROUPED, **TIED},
    "llama scaled as Llama 3": {**GROUPED, "rope_parameters": LLAMA3},
    "llama scaled": {**GROUPED, "rope_parameters": LINEAR},
    "llama with yarn": {**GROUPED, "rope_parameters": YARN},
    "llama with biases": {**GROUPED, "attention_bias": True, "mlp_bias": True},
    "llama with larger heads": {**GROUPED, "head_dim": 32},
    "qwen2": {**GROUPED, **UNTIED},
    "qwen2 tied": {**GROUPED, **TIED},
    "qwen3": {**GROUPED, "head_dim": 32, **TIED},
    "gpt2": GPT2,
    "gpt2 untied": {**GPT2, **UNTIED},
    "phi3": {**GROUPED, "sliding_window": None, "pad_token_id": 0},
    "starcoder2": {**GROUPED, "sliding_window": None},
    "gemma3_text": GEMMA3,
    "gemma3_text capped": {**GEMMA3, "final_logit_softcapping": 2.0, **UNTIED},
}
"""Families whose GGUF files transformers itself reads."""
READ_BY_LLAMA_CPP: dict[str, dict[str, Any]] = {
    **READ_BY_TRANSFORMERS,
    "mistral": {**GROUPED, "sliding_window": None},
    "gpt_bigcode": GPT2,
    "gpt_neox": WIDE,
    "gpt_neox tied": {**WIDE, **TIED},
    "gpt_neox in a row": {**WIDE, "use_parallel_residual": False},
    "phi": {**WIDE, **UNTIED},
    "phi tied": {**WIDE, **TIED},
    "gemma": {**GROUPED, "head_dim": 16},
    "granite": {
        **GROUPED,
        "logits_scaling": 4.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.2,
    },
    "cohere": {**GROUPED, "logit_scale": 0.25},
    "cohere2": {**WINDOWED, "logit_scale": 0.5},
    "olmo": {**GROUPED, "clip_qkv": 0.5},
    "olmo2": {**GROUPED, **UNTIED},
    "olmo2 tied": {**GROUPED, **TIED},
    "olmo3": WINDOWED,
    "smollm3": {**GROUPED, "num_hidden_layers": 4},
    "glm4": {**GROUPED, "head_dim": 16},
}


def noisy_model(directory: Path, kind: str, **values: Any) -> Any:
    """A model of a kind in a directory without a tokenizer. `kind`: transformers' name, and words that tell it from others.

    Noise on all weights, norms and biases too: what is left out or stands in another order changes the logits.
    """
    config = AutoConfig.for_model(
        kind.split()[0],
        **{"vocab_size": WORDS, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0} | values,
    )
    torch.manual_seed(1)
    with quiet():
        model = AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.15 if parameter.dim() > 1 else 0.1))
        model.save_pretrained(directory)
    return model


def split_by(*expressions: str) -> Any:
    """A splitting of words by expressions, one after the other."""
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(one), "isolated") for one in expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def made_tokenizer(directory: Path, splitting: Any = None, **facts: Any) -> Tokenizer:
    """A byte-level BPE as this project makes them, or with another splitting, in a directory."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitting or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS - 4,
        special_tokens=["<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, the hat in 1999 and 2024"] * 9, trainer)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", **facts}
    (directory / "tokenizer_config.json").write_text(json.dumps(facts))
    return tokenizer
