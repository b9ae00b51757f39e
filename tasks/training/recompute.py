"""Gradient checkpointing: what a decoder layer computes in forward and need not keep for backward.

`none` keeps all. `full` keeps each layer's input alone and computes the layer a second time in backward (Chen et al.
2016, arXiv:1604.06174). `selective` keeps besides it what is dear to compute, the results of matrix products and of
attention, and computes norms, activations, rotary embeddings and residual sums again (Korthikanti et al. 2022,
arXiv:2205.05198, turned round: they recompute attention alone, which no longer keeps its scores).

What must stay true: gradients are those of `none`, to the bit where kernels repeat themselves. So what draws random
numbers is computed again from the same random state, all of it: attention with dropout is not kept, or the draws after
it would shift.
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
"""In the order of what they keep, most first; also from the fastest to the slowest."""

_PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")
_ATTENTION = (
    "aten::_scaled_dot_product_",
    "aten::_flash_attention_",
    "torch_attn::_varlen_attn",
    "onward::attention_by_bounds",
)


def selective_contexts() -> tuple[Any, Any]:
    """What torch enters around a layer's forward, and around what it computes again: `kept` is kept between them."""
    contexts: tuple[Any, Any] = create_selective_checkpoint_contexts(kept)
    return contexts


def checkpoint_layers(
    whole: Any, mode: str, contexts: Callable[[], tuple[Any, Any]] = selective_contexts
) -> None:
    """Make a transformers model's layers compute again in backward, as `mode` says.

    `contexts` are those of `selective`. Raises ConfigError for a model that transformers cannot checkpoint.
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
    """What torch asks of every operation in a layer's forward: is its result kept for backward?"""
    name = operation.name() if isinstance(operation, torch._ops.OpOverload) else ""
    if name.startswith(_PRODUCTS):
        return CheckpointPolicy.MUST_SAVE
    if name.startswith(_ATTENTION) and not _drops(operation, args, kwargs):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _drops(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether attention is asked for dropout, by position or by name."""
    for place, argument in enumerate(operation._schema.arguments):
        if argument.name == "dropout_p":
            given = args[place] if place < len(args) else kwargs.get("dropout_p", argument.default_value)
            return bool(given)
    return False


def to_train(whole: Any) -> None:
    """Put a transformers model into training, with no layer left out by chance.

    Where a module could leave layers out, older versions draw a number at each layer even with a rate of zero, which no
    graph and no tensor without memory can hold: the module itself, not its layers, is told that it is not in training.
    """
    whole.train()
    for module in whole.modules():
        if hasattr(module, "layerdrop"):
            module.training = False
