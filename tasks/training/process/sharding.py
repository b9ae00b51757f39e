"""Weights, gradients and moments shared out among the processes (`execution.sharding: full`), by torch's FSDP2.

Each decoder layer is gathered before it computes, in forward and again in backward, and its gradient is summed where
its shard lies (Rajbhandari et al. 2019, arXiv:1910.02054, stage 3). What lies outside of the layers stays whole in
every process: embeddings, a tied or separate head, the last norm; their gradients are added up once a step.

What must stay true: gathering is done by all processes together, so every one takes the same number of passes in the
same order; what is gathered is, to the byte, what one process by itself would hold.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from storage.errors import ConfigError
from tasks.training.attention import RowDocuments
from tasks.training.process.processes import Processes, is_shard

NONE: Final = "none"
FULL: Final = "full"
"""Of `execution.sharding`; what it does not go together with: combinations.py."""


def shard(whole: nn.Module, body: nn.Module, device: torch.device, processes: Processes) -> None:
    """Share out the decoder layers of `body` in place, on the device; the rest of `whole` stays as and where it is.

    Gradients become sums over the processes, never means. Raises ConfigError for a model without a list of layers, and
    unless all processes have loaded the same weights: of each, others would see a part alone.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    layers = _layers(body)
    processes.same_tensors(whole.parameters(), "The weights that training starts from")
    mesh = init_device_mesh(device.type, (processes.count,))
    uses = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    inside = {name for name, count in uses.items() if count == 1}
    outside = {parameter for parameter in whole.parameters() if id(parameter) not in inside}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=outside)
    fully_shard(body, mesh=mesh, ignored_params=outside)
    for module in body.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of it, sharing memory with it."""
    part: Tensor = tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole_on_first(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Every tensor whole, gathered on the host of the first process; the others get what they hold whole anyway.

    To be called by all processes together. Without shards it gives back what it was given.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not is_shard(tensor):
            found[name] = tensor
            continue
        full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
        if processes.first:
            found[name] = full.detach().cpu()
    return found


def shared_out(full: Tensor, like: Tensor) -> Tensor:
    """The part of `full`, a whole tensor, that this process holds of `like`; `full` itself where that is whole."""
    if not is_shard(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    held: Any = like
    # every process has the whole: none has to send it
    part: Tensor = distribute_tensor(
        full.to(held.device), held.device_mesh, held.placements, src_data_rank=None
    )
    return part


def alike(groups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Groups of an optimizer cut in two where they mix shards with whole tensors: no kernel takes both."""
    for group in groups:
        for kind in (False, True):
            parameters = [parameter for parameter in group["params"] if is_shard(parameter) is kind]
            if parameters:
                yield {**group, "params": parameters}


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float, processes: Processes) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `largest`; gives the norm before, on the device.

    The same in all processes, to the bit. Without shards it is torch's own (Pascanu et al. 2013, arXiv:1211.5063).
    """
    own = [parameter for parameter in parameters if parameter.grad is not None]
    if not any(is_shard(parameter) for parameter in own):
        return torch.nn.utils.clip_grad_norm_(own, largest)
    gradients = [own_part(parameter.grad) for parameter in own if parameter.grad is not None]
    squares = torch.stack(torch._foreach_norm(gradients)).double().square()
    in_parts = torch.tensor([is_shard(parameter) for parameter in own], device=squares.device)
    total = torch.where(in_parts, squares, 0.0).sum()
    processes.add_up_values(total)
    norm = (total + torch.where(in_parts, 0.0, squares).sum()).sqrt().float()
    torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))  # as clip_grad_norm_
    return norm


def keep_pace(model: Any, sequences: int, micro_batch: int, processes: Processes) -> None:
    """After this process's rows of a step of `sequences`: passes that add nothing, until it has taken as many as any.

    Shares differ by one sequence. Without the last pass the others would wait for ever for this one's part of theirs.
    """
    first, end = processes.share(sequences)
    most = math.ceil(math.ceil(sequences / processes.count) / micro_batch)
    for _ in range(most - math.ceil((end - first) / micro_batch)):
        ids = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
        with model.autocast():
            hidden = model.hidden(ids, ids, RowDocuments.of((1,), model.device))
        torch.autograd.backward(hidden, torch.zeros_like(hidden))


def _layers(body: nn.Module) -> list[nn.Module]:
    lists = [list(module) for module in body.modules() if isinstance(module, nn.ModuleList)]
    sizes = [sum(p.numel() for layer in layers for p in layer.parameters()) for layers in lists]
    if not lists:
        raise ConfigError(
            f"{type(body).__name__} has no list of layers that could be shared out. Set execution.sharding: none."
        )
    return lists[sizes.index(max(sizes))]
