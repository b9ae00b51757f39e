"""Small models of every supported family, and what of a larger one the rules are tried on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import (
    AutoConfig,
    CohereConfig,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Lfm2Config,
    MambaConfig,
    MistralConfig,
    Olmo3Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3_5TextConfig,
)

from tasks.training.device.activations import Activations
from tasks.training.model import Shape
from tests.support.training.world import EOT, VOCABULARY, llama_config

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
FAMILIES: dict[str, Any] = {
    "llama": lambda: llama_config(),
    "llama untied": lambda: llama_config(tie_word_embeddings=False),
    # deep and thin, few groups, a tied head: as MobileLLM is
    "mobilellm": lambda: llama_config(
        hidden_size=24, num_hidden_layers=6, num_attention_heads=3, num_key_value_heads=1
    ),
    "qwen2": lambda: Qwen2Config(
        **SMALL, intermediate_size=64, num_key_value_heads=2, max_position_embeddings=64
    ),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "neox": lambda: GPTNeoXConfig(**SMALL, intermediate_size=64, max_position_embeddings=64),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=16),
}
GROUPED: dict[str, Any] = {
    **SMALL,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
BOTH: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
WINDOWED: dict[str, Any] = {
    "mistral": lambda: MistralConfig(**GROUPED, sliding_window=7),
    "phi3": lambda: Phi3Config(**GROUPED, sliding_window=6, pad_token_id=0),
    "gemma3": lambda: Gemma3TextConfig(**GROUPED, **BOTH, head_dim=8, sliding_window=8),
    "olmo3": lambda: Olmo3Config(**GROUPED, **BOTH, sliding_window=5),
    "qwen2": lambda: Qwen2Config(**GROUPED, **BOTH, use_sliding_window=True, sliding_window=4),
}
"""Attention that looks back fewer tokens than the documents of the tests have."""
SCALED: dict[str, Any] = {
    "granite": lambda: GraniteConfig(
        **GROUPED, logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5
    ),
    "cohere": lambda: CohereConfig(**GROUPED, logit_scale=0.25, pad_token_id=0),
    "gemma3 capped": lambda: Gemma3TextConfig(
        **GROUPED, **BOTH, head_dim=8, sliding_window=8, final_logit_softcapping=0.7
    ),
}
"""Logits that are scaled or soft-capped after the output embedding."""
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MAMBA2: dict[str, Any] = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}
STATEFUL: dict[str, Any] = {
    "mamba": lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
    "lfm2": lambda: Lfm2Config(
        **GROUPED, block_auto_adjust_ff_dim=False, layer_types=["conv", "full_attention"]
    ),
    "falcon_h1": lambda: FalconH1Config(**GROUPED, **MAMBA2, mamba_n_groups=1, lm_head_multiplier=0.5),
    "qwen3_5": lambda: Qwen3_5TextConfig(
        **GROUPED, **LINEAR, head_dim=8, layer_types=["linear_attention", "full_attention"]
    ),
}
"""Layers that carry a state from token to token."""
LENGTH = 48
"""Tokens of a training's sequences, where what can be trained is tried."""
TINY: dict[str, Any] = {"vocab_size": 300, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
WIDE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA: dict[str, Any] = {**WIDE, "intermediate_size": 64, "num_key_value_heads": 2}
ROPE: dict[str, Any] = {"original_max_position_embeddings": 16, "max_position_embeddings": 64}


def config_of(kind: str, **changes: Any) -> Any:
    """The configuration of a tiny model of a kind."""
    values = TINY | changes
    architectures = values.pop("architectures", None)
    config = AutoConfig.for_model(kind, **values)
    config.architectures = architectures
    return config


TRAINS: dict[str, dict[str, Any]] = {
    "gemma": {**LLAMA, "head_dim": 8},
    "gemma3_text": {
        **LLAMA,
        "head_dim": 8,
        "sliding_window": LENGTH,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3_text with a window": {
        **LLAMA,
        "head_dim": 8,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3_text capped": {**LLAMA, "head_dim": 8, "final_logit_softcapping": 0.5},
    "cohere": LLAMA,
    "cohere2": {**LLAMA, "sliding_window": 8},
    "granite scaled": {
        **LLAMA,
        "logits_scaling": 4.0,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
    },
    "falcon_h1 scaled": {
        **LLAMA,
        "lm_head_multiplier": 0.05,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
    },
    "nanochat": LLAMA,
    "xlstm": {"hidden_size": 32, "num_hidden_layers": 2},
    "glm4": {**LLAMA, "head_dim": 8},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "granite": LLAMA,
    "helium": {**LLAMA, "head_dim": 8},
    "mistral": {**LLAMA, "sliding_window": LENGTH},
    "mistral with a window": {**LLAMA, "sliding_window": LENGTH - 1},
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "phi": {**LLAMA, "partial_rotary_factor": 0.5},
    "olmo3": {**LLAMA, "sliding_window": 8},
    "phi3": LLAMA,
    "phi3 with a window": {**LLAMA, "sliding_window": 8},
    "qwen2": {**LLAMA, "use_sliding_window": False, "sliding_window": 8},
    "qwen2 with a window": {**LLAMA, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {**LLAMA, "head_dim": 8},
    "smollm3": LLAMA,
    "starcoder2": {**LLAMA, "sliding_window": None},
}
"""What can be trained, by kind of model (and how it differs from another of its kind)."""


def of_every_family() -> dict[str, Callable[[], Any]]:
    """A tiny model of the tests' vocabulary for each family that can be trained; windows are shorter than documents."""
    plain = {name: values for name, values in TRAINS.items() if "with a window" not in name}
    words = {"vocab_size": VOCABULARY, "bos_token_id": EOT, "eos_token_id": EOT}
    return {
        **FAMILIES,
        **{name: partial(config_of, name.split()[0], **(values | words)) for name, values in plain.items()},
        **{f"{name} with a window": made for name, made in WINDOWED.items()},
        **STATEFUL,
    }


SMOLLM = Shape(134_515_008, 134_515_008, 30, 576, 1536, 576, 49_152, 28_311_552)


def counted(mode: str) -> Activations:
    """SmolLM2-135M's in bf16 (test_memory.py counts them)."""
    return Activations({"none": 976e3, "selective": 413e3, "full": 74e3}[mode], 0, 30)
