"""Gradient checkpointing: which results of a decoder layer's forward are recomputed in backward instead of kept.

`none` keeps everything. `full` keeps only the input of each layer and computes the layer a second time in backward
(Chen et al. 2016, arXiv:1604.06174). `selective` also keeps what is expensive to compute, the results of matrix
products and of attention. It recomputes norms, activations, rotary embeddings and residual sums (the reverse of
Korthikanti et al. 2022, arXiv:2205.05198, who recompute attention alone; attention here no longer keeps its
scores).

What must stay true: gradients equal those of `none`, to the bit if kernels are deterministic. So everything that
draws random numbers is recomputed from the same random state. Attention with dropout is not kept, because keeping
it would shift all later draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from storage.errors import ConfigError

NONE: Final = "none"
SELECTIVE: Final = "selective"
FULL: Final = "full"
MODES: Final = (NONE, SELECTIVE, FULL)
"""Ordered from what keeps most to what keeps least, which is also from fastest to slowest."""

_PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")
_ATTENTION = (
    "aten::_scaled_dot_product_",
    "aten::_flash_attention_",
    "torch_attn::_varlen_attn",
    "onward::attention_by_bounds",
)


def selective_contexts() -> tuple[Any, Any]:
    """The contexts that torch enters around a layer's forward and around its recomputation; `kept` decides what is
    kept.
    """
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(kept)
    return contexts


def checkpoint_layers(
    whole: Any, mode: str, contexts: Callable[[], tuple[Any, Any]] = selective_contexts
) -> None:
    """Make the layers of a transformers model recompute in backward, as `mode` says.

    `contexts` is used for `selective` only. Raises ConfigError if transformers cannot checkpoint the model.
    """
    if mode == NONE:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == SELECTIVE:
        options["context_fn"] = contexts
    if not getattr(whole, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"{type(whole).__name__} does not offer gradient checkpointing. Set "
            "training.execution.gradient_checkpointing: none."
        )
    if hasattr(whole, "activation_checkpointing_enable"):
        whole.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # its name in older versions
        whole.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def kept(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """torch asks this for every operation of a layer's forward: is its result kept for backward?"""
    name = operation.name() if isinstance(operation, torch._ops.OpOverload) else ""
    if name.startswith(_PRODUCTS):
        return CheckpointPolicy.MUST_SAVE
    if name.startswith(_ATTENTION) and not _drops(operation, args, kwargs):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _drops(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether attention has dropout, given by position or by name."""
    for place, argument in enumerate(operation._schema.arguments):
        if argument.name == "dropout_p":
            given = args[place] if place < len(args) else kwargs.get("dropout_p", argument.default_value)
            return bool(given)
    return False


def to_train(whole: Any) -> None:
    """Put a transformers model into training mode without layer dropout.

    Older versions draw a number at each layer of a module with `layerdrop`, even at a rate of zero. Neither a graph
    nor a tensor without memory can hold that draw. So such a module itself, but not its layers, is set to
    evaluation mode.
    """
    whole.train()
    for module in whole.modules():
        if hasattr(module, "layerdrop"):
            module.training = False
