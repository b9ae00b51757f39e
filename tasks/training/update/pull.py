"""The base model's weights for `optimizer.pull_to_base` (the pull itself is in adamw.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from storage.errors import ConfigError
from tasks.training.model import quiet
from tasks.training.spec import Spec


def base_weights(spec: Spec, whole: Any) -> dict[str, Tensor] | None:
    """The base's weights by name, in the dtype of the model `whole`; None without a pull.

    `whole` has just been loaded from paths.start. If that is the base itself, its weights are copied. Raises
    ConfigError if the base cannot be loaded.
    """
    if spec.paths.base is None:
        return None
    if spec.identity.base == spec.identity.start:
        return {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    dtype: torch.dtype = next(whole.parameters()).dtype
    with quiet():
        try:
            base = loader.from_pretrained(
                spec.paths.base, dtype=dtype, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{spec.paths.base}: the base model that weights are pulled to cannot be loaded ({error})."
            ) from error
    return {name: parameter.detach() for name, parameter in base.named_parameters()}
