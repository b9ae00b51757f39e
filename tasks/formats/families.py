"""How each family of models is said in GGUF: its architecture there, its numbers, and the order of its weights.

llama.cpp computes each architecture in one way, from the numbers that the file gives. Where a model is computed otherwise
(an activation, a window, a scaling of positions), the file would load and answer something else: such a model is refused.
Which names of tensors belong to which is `gguf`'s own table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from gguf.constants import MODEL_ARCH

from storage.errors import ConfigError

Tensors = Iterable[tuple[str, torch.Tensor]]


def _as_it_is(name: str, tensor: torch.Tensor, config: Any) -> Tensors:
    yield name, tensor


@dataclass(frozen=True)
class Family:
    """One kind of models. `place` gives a tensor as llama.cpp wants it; it also runs on tensors without memory."""

    arch: MODEL_ARCH
    say: Callable[[GGUFWriter, Any], None]
    place: Callable[[str, torch.Tensor, Any], Tensors] = _as_it_is
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Values of the configuration with which llama.cpp computes this architecture."""
    windows_every: int | None = None
    """llama.cpp's order of layers with and without a window: each so-manieth is without. None: it knows no windows."""
    needs_head: bool = False
    """Whether llama.cpp wants a head in the file that is the embedding."""


def family_of(config: Any) -> Family:
    """The family of a transformers configuration. Raises ConfigError if GGUF has none that computes the same."""
    kind = str(config.model_type)
    if (family := FAMILIES.get(kind)) is None:
        raise ConfigError(
            f"--format gguf: a model of kind {kind} cannot be written; kinds that can: {', '.join(sorted(FAMILIES))}. Its "
            "safetensors load in transformers and vLLM"
        )
    for name, values in family.only.items():
        value = getattr(config, name, values[0])
        if value not in values:
            raise _refusal(kind, f"{name}: {value}")
    layers = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    sliding = [layer == "sliding_attention" for layer in layers]
    window, positions = getattr(config, "sliding_window", None), config.max_position_embeddings
    if (every := family.windows_every) is not None:
        if sliding != [bool((number + 1) % every) for number in range(len(layers))]:
            raise _refusal(kind, f"layers without a window that are not each {every}th")
    elif window and window < positions and any(sliding):
        raise _refusal(kind, f"a window of {window:,} of {positions:,} positions")
    free = getattr(config, "no_rope_layers", None)
    if free and list(free) != [int(bool((number + 1) % 4)) for number in range(config.num_hidden_layers)]:
        raise _refusal(kind, "layers without positions that are not each 4th")
    return family


def _refusal(kind: str, what: str) -> ConfigError:
    return ConfigError(
        f"--format gguf: llama.cpp does not compute a {kind} with {what}; export it as safetensors"
    )


def _decoder(writer: GGUFWriter, config: Any) -> None:
    """What every decoder with rotary positions says."""
    heads, width = config.num_attention_heads, config.hidden_size
    of_head = getattr(config, "head_dim", None) or width // heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(of_head)
    writer.add_value_length(of_head)
    if (eps := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", getattr(config, "norm_epsilon", 1e-5)))
    _positions(writer, config, of_head)


def _positions(writer: GGUFWriter, config: Any, of_head: int) -> None:
    rope = config.rope_parameters
    if "full_attention" in rope:  # by kind of layer
        rope, local = rope["full_attention"], rope["sliding_attention"]
        if local.get("rope_type", "default") != "default":
            raise _refusal(config.model_type, "scaled rotary positions in its windows")
        writer.add_rope_freq_base_swa(local["rope_theta"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(of_head * rope.get("partial_rotary_factor", 1.0)))
    kind = rope.get("rope_type", "default")
    if kind in ("default", "llama3"):  # the second is a tensor: `extra_tensors`
        return
    if kind not in ("linear", "yarn"):
        raise _refusal(config.model_type, f"rotary positions scaled by {kind}")
    writer.add_rope_scaling_type(RopeScalingType(kind))
    writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def extra_tensors(config: Any) -> dict[str, torch.Tensor]:
    """Tensors that GGUF has and the model has as numbers: by how much Llama 3's scaling divides each frequency."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "llama3":
        return {}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    of_head = 2 * len(scaled)
    plain = rope["rope_theta"] ** -(torch.arange(0, of_head, 2, dtype=torch.float64) / of_head)
    return {"rope_freqs.weight": (plain / scaled.double()).float()}


def _in_pairs(name: str, tensor: torch.Tensor, config: Any) -> Tensors:
    """Queries and keys of a Llama. It turns dimension i with i + half; llama.cpp turns neighbours: 0, half, 1, half + 1…"""
    for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
        if f".{part}_proj." in name:
            halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
    yield name, tensor


def _ones_added(name: str, tensor: torch.Tensor, config: Any) -> Tensors:
    """A Gemma multiplies by 1 + weight, llama.cpp by the weight."""
    yield name, tensor + 1 if name.endswith("norm.weight") else tensor


def _rows_of_heads(name: str, tensor: torch.Tensor, config: Any) -> Tensors:
    """GPT-NeoX has query, key and value of one head side by side; llama.cpp all queries, then all keys, then all values."""
    if ".query_key_value." in name:
        heads = config.num_attention_heads
        split = tensor.reshape(heads, 3, tensor.shape[0] // heads // 3, *tensor.shape[1:])
        tensor = split.transpose(0, 1).reshape(tensor.shape)
    yield name, tensor


def _transposed(name: str, tensor: torch.Tensor, config: Any) -> Tensors:
    """GPT-2's matrices stand as (inputs, outputs)."""
    turned = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    yield name, tensor.T if turned else tensor


def _gpt2(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(getattr(config, "n_inner", None) or 4 * config.n_embd)
    writer.add_head_count(config.n_head)
    if getattr(config, "multi_query", False):
        writer.add_head_count_kv(1)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)


def _neox(writer: GGUFWriter, config: Any) -> None:
    _decoder(writer, config)
    writer.add_parallel_residual(config.use_parallel_residual)


def _granite(writer: GGUFWriter, config: Any) -> None:
    _decoder(writer, config)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _cohere(writer: GGUFWriter, config: Any) -> None:
    _decoder(writer, config)
    writer.add_logit_scale(config.logit_scale)


def _gemma3(writer: GGUFWriter, config: Any) -> None:
    _decoder(writer, config)
    if config.query_pre_attn_scalar != config.head_dim:
        raise _refusal(config.model_type, f"query_pre_attn_scalar: {config.query_pre_attn_scalar}")
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _olmo(writer: GGUFWriter, config: Any) -> None:
    _decoder(writer, config)
    if config.clip_qkv is not None:
        writer.add_clamp_kqv(config.clip_qkv)


def _olmo3(writer: GGUFWriter, config: Any) -> None:
    rope = config.rope_parameters
    scaled = [one for one in (rope, *rope.values()) if isinstance(one, Mapping) and "factor" in one]
    if scaled:
        raise _refusal(config.model_type, "scaled rotary positions")
    _decoder(writer, config)


_SILU = {"hidden_act": ("silu",)}
_NO_BIAS = {"attention_bias": (False,)}
_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_GPT2 = {
    "activation_function": _TANH,
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}
FAMILIES: dict[str, Family] = {
    "llama": Family(MODEL_ARCH.LLAMA, _decoder, _in_pairs, _SILU),
    "mistral": Family(MODEL_ARCH.LLAMA, _decoder, _in_pairs, _SILU),
    "qwen2": Family(MODEL_ARCH.QWEN2, _decoder, only=_SILU),
    "qwen3": Family(MODEL_ARCH.QWEN3, _decoder, only={**_SILU, **_NO_BIAS}),
    "gpt2": Family(MODEL_ARCH.GPT2, _gpt2, _transposed, _GPT2),
    "gpt_bigcode": Family(MODEL_ARCH.STARCODER, _gpt2, only={**_GPT2, "multi_query": (True,)}),
    "gpt_neox": Family(
        MODEL_ARCH.GPTNEOX,
        _neox,
        _rows_of_heads,
        {"hidden_act": ("gelu", *_TANH), "attention_bias": (True,)},
        needs_head=True,
    ),
    "phi": Family(
        MODEL_ARCH.PHI2, _decoder, only={"hidden_act": _TANH, "qk_layernorm": (False,)}, needs_head=True
    ),
    "phi3": Family(MODEL_ARCH.PHI3, _decoder, only=_SILU),
    "starcoder2": Family(MODEL_ARCH.STARCODER2, _decoder, only={"hidden_act": _TANH, "use_bias": (True,)}),
    "gemma": Family(MODEL_ARCH.GEMMA, _decoder, _ones_added, {"hidden_act": _TANH, **_NO_BIAS}),
    "gemma3_text": Family(
        MODEL_ARCH.GEMMA3, _gemma3, _ones_added, {"hidden_activation": _TANH, **_NO_BIAS}, windows_every=6
    ),
    "granite": Family(MODEL_ARCH.GRANITE, _granite, _in_pairs, {**_SILU, **_NO_BIAS}),
    "cohere": Family(MODEL_ARCH.COMMAND_R, _cohere, only={**_SILU, **_NO_BIAS, "use_qk_norm": (False,)}),
    "cohere2": Family(MODEL_ARCH.COHERE2, _cohere, only={**_SILU, **_NO_BIAS}, windows_every=4),
    "olmo": Family(MODEL_ARCH.OLMO, _olmo, _in_pairs, {**_SILU, **_NO_BIAS}),
    "olmo2": Family(MODEL_ARCH.OLMO2, _decoder, only={**_SILU, **_NO_BIAS}, needs_head=True),
    "olmo3": Family(MODEL_ARCH.OLMO2, _olmo3, only={**_SILU, **_NO_BIAS}, windows_every=4, needs_head=True),
    "smollm3": Family(MODEL_ARCH.SMOLLM3, _decoder, _in_pairs, {**_SILU, **_NO_BIAS, "mlp_bias": (False,)}),
    "glm4": Family(MODEL_ARCH.GLM4, _decoder, only=_SILU),
}
"""Kinds of models by transformers' name, each compared with llama.cpp itself: tests/agreement/test_llama_cpp.py."""
