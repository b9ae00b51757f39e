"""The words in which a model is refused that cannot be trained here: one sentence, the reason, and the way out."""

from __future__ import annotations

from typing import Any

from storage.errors import ConfigError

_INSTEAD = "choose a base of another architecture, such as Llama, Qwen2, Qwen3, OLMo2, GPT-2, GPT-NeoX or OPT"


def refusal(config: Any, reason: str, instead: str = _INSTEAD) -> ConfigError:
    """The error for a model with this transformers configuration. `reason` goes on after "cannot be trained here:"."""
    architectures = getattr(config, "architectures", None)
    named = (
        architectures[0] if architectures else f"a model of type {getattr(config, 'model_type', 'unknown')}"
    )
    return ConfigError(f"{named} cannot be trained here: {reason}; {instead}")
