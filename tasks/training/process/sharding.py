"""Weights, gradients and moments sharded over the processes by torch's FSDP2 (`execution.sharding: full`).

Each decoder layer is gathered before it computes, in forward and again in backward. Its gradient is summed directly
into its shard (Rajbhandari et al. 2019, arXiv:1910.02054, stage 3). Everything outside the layers stays whole in
every process: embeddings, a tied or separate head, the last norm. Those gradients are summed once a step.

What must stay true: gathering involves all processes, so each takes the same number of passes in the same order.
What is gathered equals, to the byte, what a single process would hold.
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
"""Values of `execution.sharding`. combinations.py lists what it does not go together with."""


def shard(whole: nn.Module, body: nn.Module, device: torch.device, processes: Processes) -> None:
    """Shard the decoder layers of `body` in place, on the device. The rest of `whole` stays where it is.

    Gradients become sums over the processes, never means. Raises ConfigError if the model has no list of layers, or
    if the processes have not all loaded the same weights: sharding would mix them.
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
    """This process's part of the tensor, sharing its memory."""
    part: Tensor = tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[attr-defined]
    return part


def whole_on_first(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """Every tensor whole: shards are gathered on the host of the first process. The others get only tensors that
    are whole.

    All processes must call it together. Without shards it returns its input.
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
    """This process's part of the whole tensor `full`, cut like `like`. Returns `full` itself if `like` is no shard."""
    if not is_shard(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    held: Any = like
    # every process has the whole tensor: nothing has to be sent
    part: Tensor = distribute_tensor(
        full.to(held.device), held.device_mesh, held.placements, src_data_rank=None
    )
    return part


def alike(groups: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Split optimizer groups that mix shards with whole tensors: no kernel takes both."""
    for group in groups:
        for kind in (False, True):
            parameters = [parameter for parameter in group["params"] if is_shard(parameter) is kind]
            if parameters:
                yield {**group, "params": parameters}


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float, processes: Processes) -> Tensor:
    """Scale all gradients so that their global L2 norm is at most `largest`. Returns the norm before, on the
    device.

    The result is the same in all processes, to the bit. Without shards this is torch's own function (Pascanu et al.
    2013, arXiv:1211.5063).
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
    """Add empty passes after this process's rows of a step, until it has taken as many passes as any other process.

    Shares of the `sequences` differ by at most one. If the last pass were missing, the other processes would wait
    for ever.
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
            f"{type(body).__name__} has no list of layers that could be sharded. Set execution.sharding: none."
        )
    return lists[sizes.index(max(sizes))]
