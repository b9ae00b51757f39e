"""AdamW over two groups, and its state as named tensors.

No weight decay on embeddings (a head tied to one is one), norms and biases: what has one dimension or belongs
to an nn.Embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from storage.errors import DamagedArtifact
from tasks.training.config import BF16, BF16_WEIGHTS, EIGHT_BIT, Identity, OptimizerSettings
from tasks.training.moments import BLOCK

_STATE = ("exp_avg", "exp_avg_sq", "step")


def bytes_per_parameter(identity: Identity, embeddings: float = 0.0) -> float:
    """Device bytes that weights, gradients, moments and a copy of the base's weights take, for each parameter.

    `embeddings`: their share of the parameters, in [0, 1]; their moments stay in float32 whatever `states` says.
    bf16: 4 + 4 + 8, and 2 for the copies that autocast makes of the weights. bf16_weights: 2 + 4 + 8 (gradients are
    summed in float32). 8bit: 2 bytes and 2 scales a block instead of 8. A mean of weights is summed on the host.
    """
    weights = 2.0 if identity.precision == BF16_WEIGHTS else 4.0
    copies = 2.0 if identity.precision == BF16 else 0.0
    moments = 8.0
    if identity.optimizer.states == EIGHT_BIT:
        moments = 8.0 * embeddings + (2.0 + 8.0 / BLOCK) * (1.0 - embeddings)
    base = weights if identity.optimizer.pull_to_base else 0.0
    return weights + copies + 4.0 + moments + base


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), fused; the rate is set before each step."""
    decayed, plain = split_parameters(model)
    groups = [
        {"params": [parameter for _, parameter in decayed], "weight_decay": settings.weight_decay},
        {"params": [parameter for _, parameter in plain], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)


def split_parameters(
    model: nn.Module,
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """(with decay, without), as (name, parameter); each tied parameter once."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and id(parameter) not in embeddings
        (decayed if matrix else plain).append((name, parameter))
    return decayed, plain


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state as {"<parameter>.exp_avg": …}; a parameter without a gradient so far has none."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter)
        if state:
            tensors.update({f"{name}.{part}": state[part].detach() for part in _STATE})
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` gave. Raises DamagedArtifact when names or shapes do not fit the model."""
    left = set(tensors)
    for name, parameter in model.named_parameters():
        if f"{name}.exp_avg" not in tensors:
            continue
        state: dict[str, Tensor] = {}
        for part in _STATE:
            tensor = tensors.get(f"{name}.{part}")
            shape = torch.Size([]) if part == "step" else parameter.shape
            if tensor is None or tensor.shape != shape:
                raise DamagedArtifact(f"The optimizer's state does not fit the model at {name}.{part}.")
            left.discard(f"{name}.{part}")
            state[part] = tensor.to(parameter.device, torch.float32, copy=True)
        optimizer.state[parameter] = state
    if left:
        raise DamagedArtifact(f"The optimizer's state holds {sorted(left)[0]}, which the model does not.")
