"""AdamW over two parameter groups, and its state as named tensors.

Embeddings (including a tied head), norms and biases have no weight decay: everything that has one dimension or
belongs to an nn.Embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from storage.errors import ConfigError, DamagedArtifact
from tasks.training.process.sharding import alike, shared_out
from tasks.training.spec import BF16, BF16_WEIGHTS, EIGHT_BIT, SegmentSpec
from tasks.training.update.adamw import FrugalAdamW
from tasks.training.update.moments import BLOCK, is_quantised


def bytes_per_parameter(identity: SegmentSpec, embeddings: float = 0.0) -> float:
    """Device bytes per parameter for weights, gradients, moments and a copy of the base's weights.

    `embeddings` is the embeddings' share of the parameters, in [0, 1]; their moments stay in float32 whatever
    `states` is. bf16: 4 + 4 + 8, plus 2 for the copies that autocast makes of the weights. bf16_weights: 2 + 4 + 8
    (gradients are summed in float32). 8bit: 2 bytes and 2 scales per block instead of 8. The sum for a mean of
    weights is on the host.
    """
    weights = 2.0 if identity.precision == BF16_WEIGHTS else 4.0
    copies = 2.0 if identity.precision == BF16 else 0.0
    moments = 8.0
    if identity.optimizer.states == EIGHT_BIT:
        moments = 8.0 * embeddings + (2.0 + 8.0 / BLOCK) * (1.0 - embeddings)
    base = weights if identity.optimizer.pull_to_base else 0.0
    return weights + copies + 4.0 + moments + base


def make_optimizer(
    model: nn.Module, identity: SegmentSpec, base: Mapping[str, Tensor] | None = None
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), fused. The rate is set before each step.

    `base` holds the weights to pull to, by name, if there is a pull. bf16 weights sum their gradients in float32.
    Raises ConfigError if torch or the parameters do not support the settings.
    """
    settings = identity.optimizer
    decayed, plain = split_parameters(model)
    groups = [
        {"params": [parameter for _, parameter in decayed], "weight_decay": settings.weight_decay},
        {"params": [parameter for _, parameter in plain], "weight_decay": 0.0},
    ]
    own = list(alike(groups))
    if identity.precision != BF16_WEIGHTS and settings.states != EIGHT_BIT and not settings.pull_to_base:
        return torch.optim.AdamW(own, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
    if identity.precision == BF16_WEIGHTS:
        _sum_in_float32(model)
    embeddings = _embeddings(model)
    return FrugalAdamW(
        own,
        settings,
        seed=identity.seed,
        names={parameter: name for name, parameter in model.named_parameters()},
        quantised={
            parameter
            for parameter in model.parameters()
            if settings.states == EIGHT_BIT and is_quantised(parameter, id(parameter) in embeddings)
        },
        base=_of_parameters(model, base) if base is not None else {},
    )


def _sum_in_float32(model: nn.Module) -> None:
    """A product's gradient of bf16 weights is bf16, but sums over chunks and micro-batches must be float32."""
    if not hasattr(torch.Tensor, "grad_dtype"):
        raise ConfigError(
            f"precision: bf16_weights needs torch 2.10 or newer, for gradients in float32; this is {torch.__version__}."
        )
    for parameter in model.parameters():
        held: Any = parameter
        held.grad_dtype = torch.float32


def _of_parameters(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[nn.Parameter, Tensor]:
    """Tensors by parameter instead of by name, on the parameter's device. Raises ConfigError if they do not fit."""
    found: dict[nn.Parameter, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = weights.get(name)
        if tensor is None or tensor.shape != parameter.shape:
            raise ConfigError(
                f"The base model that weights are pulled to has no {name} of this model's shape."
            )
        found[parameter] = tensor.to(parameter.device, parameter.dtype).contiguous()
    return found


def _embeddings(model: nn.Module) -> set[int]:
    return {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}


def split_parameters(
    model: nn.Module,
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """(with decay, without decay) as (name, parameter); each tied parameter appears once."""
    embeddings = _embeddings(model)
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
        (decayed if matrix else plain).append((name, parameter))
    return decayed, plain


def prepare_step(optimizer: torch.optim.Optimizer, rate: float, step: int) -> None:
    """Set the rate of the next update for all groups, and its step number, which stochastic rounding depends on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    if isinstance(optimizer, FrugalAdamW):
        optimizer.at_step = step


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state as {"<parameter>.exp_avg": …}. A parameter that has had no gradient so far has no state."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            parts = sorted(_parts(optimizer, parameter))
            tensors.update({f"{name}.{part}": state[part].detach() for part in parts})
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what `optimizer_tensors` returned.

    Raises DamagedArtifact if names or shapes do not fit, and ConfigError if the moments are in another format.
    """
    left = set(tensors)
    for name, parameter in model.named_parameters():
        if f"{name}.exp_avg" not in tensors:
            continue
        state: dict[str, Tensor] = {}
        for part, (shape, dtype) in _parts(optimizer, parameter).items():
            tensor = tensors.get(f"{name}.{part}")
            if tensor is not None and torch.uint8 in {dtype, tensor.dtype} and dtype != tensor.dtype:
                raise ConfigError(
                    f"The moments to go on from are {tensor.dtype} at {name}.{part}, not {dtype}: they were saved with "
                    "another optimizer.states. Use that setting, or start from an export."
                )
            if tensor is None or tensor.shape != shape or tensor.dtype != dtype:
                raise DamagedArtifact(f"The optimizer's state does not fit the model at {name}.{part}.")
            left.discard(f"{name}.{part}")
            like = parameter if tensor.shape == parameter.shape else tensor
            state[part] = shared_out(tensor.to(parameter.device, copy=True), like)
        optimizer.state[parameter] = state
    if left:
        raise DamagedArtifact(f"The optimizer's state holds {sorted(left)[0]}, which the model does not.")


def _parts(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter
) -> dict[str, tuple[torch.Size, torch.dtype]]:
    if isinstance(optimizer, FrugalAdamW):
        return optimizer.parts(parameter)
    shapes = {"exp_avg": parameter.shape, "exp_avg_sq": parameter.shape, "step": torch.Size([])}
    return {part: (shape, torch.float32) for part, shape in shapes.items()}
