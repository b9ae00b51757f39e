"""What every process of a group does in `test_processes.py` and `test_sharding.py`, under torchrun.

`python -m tests.support.training.ranks CHECK`; a wrong answer is an exit code.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from storage.errors import ConfigError
from tasks.training.process.processes import Processes, is_shard, join_processes, mark_of
from tests.support.training.world import VOCABULARY, llama_config

TOKENS = 20
ROWS = 5


def main(check: str) -> None:
    """Each check with values that differ by rank."""
    processes = join_processes()
    assert processes.count == 2 and processes.first == (processes.rank == 0)
    {"methods": check_methods, "shards": check_shards, "overlap": check_overlap}[check](processes)
    processes.leave()


def check_methods(processes: Processes) -> None:
    """What `Processes` says and adds up."""
    rank = processes.rank
    assert processes.total(np.array([1.0 + rank, 0.5])).tolist() == [3.0, 1.0]
    assert processes.any(rank == 1) and not processes.any(False)
    assert processes.tell({"from": rank}) == {"from": 0}

    both, one, none = (nn.Parameter(torch.zeros(3)) for _ in range(3))
    both.grad = torch.full((3,), 1.0 + rank)
    if rank == 1:
        one.grad = torch.full((3,), 5.0)
    processes.add_up([both, one, none])
    assert both.grad.tolist() == [3.0] * 3
    assert one.grad is not None and one.grad.tolist() == [5.0] * 3
    assert none.grad is None

    processes.same("equal", "Things")
    with refused("The weights of process 1"):
        processes.same(mark_of([torch.ones(4) + (1e-7 if rank else 0.0)]), "The weights")


def check_overlap(processes: Processes) -> None:
    """Added up beside the last backward, after two rows here and three there: every bit of adding up afterwards."""
    from tasks.training.attention import register
    from tasks.training.process import overlap

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    register(False)
    overlap.BUCKET_BYTES = 20_000  # dozens of buckets
    for config in (llama_config(), llama_config(tie_word_embeddings=False), gpt2_config()):
        torch.manual_seed(1)
        plain = halves(made(config), "fp32")
        model = halves(copy.deepcopy(plain.whole), "fp32")
        for one in (plain, model):  # no loss depends on these; of one of the two nobody has a gradient
            one.whole.register_parameter("unused", nn.Parameter(torch.ones(3)))
            one.whole.register_parameter("here", nn.Parameter(torch.ones(3)))
        reduction = overlap.Reduction(model.whole, model.body, processes)
        for step in range(3):
            rows = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=torch.Generator().manual_seed(step))
            own = rows[slice(*processes.share(ROWS))]
            for one in (plain, model):
                one.whole.zero_grad(set_to_none=True)
                if processes.first:
                    one.whole.here.grad = torch.full((3,), 2.0)
                for row in own[:-1]:
                    backward(one, row)
            backward(plain, own[-1])
            processes.add_up(plain.whole.parameters())
            backward(model, own[-1], reduction)
            assert len(reduction._under_way) > 3  # begun beside the backward
            reduction.finish()
            wanted = dict(plain.whole.named_parameters())
            assert wanted["unused"].grad is None and wanted["here"].grad is not None
            for name, parameter in model.whole.named_parameters():
                expected = wanted[name].grad
                assert (parameter.grad is None) == (expected is None), name
                assert expected is None or torch.equal(parameter.grad, expected), name


def check_shards(processes: Processes) -> None:
    """Two that share the weights out, uneven in their rows, beside a copy that takes all rows by itself."""
    from tasks.training.attention import register

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    register(False)
    for config in (llama_config(num_hidden_layers=3), gpt2_config()):
        for mode in ("none", "selective", "full"):
            for precision in ("fp32", "bf16"):
                compare(processes, config, mode, precision)
    with refused("The weights that training starts from of process 1"):
        torch.manual_seed(processes.rank)
        shared_out(made(llama_config()), "fp32", processes)


def compare(processes: Processes, config: Any, mode: str, precision: str) -> None:
    """Gradients, norm, update and what is gathered, of one step over ROWS rows."""
    from tasks.training.process.sharding import alike, clip_gradients, keep_pace, whole_on_first
    from tasks.training.process.sharding import shared_out as part_of
    from tasks.training.recompute import checkpoint_layers

    torch.manual_seed(1)
    whole = made(config)
    alone, model = halves(copy.deepcopy(whole), precision), shared_out(whole, precision, processes)
    for one in (alone, model):
        checkpoint_layers(one.whole, mode)
        one.whole.train()
    assert sum(is_shard(p) for p in whole.parameters()) > 0.7 * len(list(whole.parameters()))
    share = slice(*processes.share(ROWS))  # two rows here, three there
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(0, VOCABULARY, (ROWS, TOKENS), generator=generator)
    for row in rows:
        backward(alone, row)
    for row in rows[share]:
        backward(model, row)
    keep_pace(model, ROWS, 1, processes)
    processes.add_up(whole.parameters())
    wanted = {name: parameter.grad for name, parameter in alone.whole.named_parameters()}
    for name, gradient in gathered(whole, "grad"):
        torch.testing.assert_close(
            gradient, wanted[name], rtol=0.0, atol=3e-7, msg=f"{name} {mode} {precision}"
        )
    norm = clip_gradients(whole.parameters(), 0.1, processes)
    expected = torch.nn.utils.clip_grad_norm_(alone.whole.parameters(), 0.1)
    torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0.0)
    assert processes.total(np.array([float(norm)]))[0] == 2 * float(norm)
    optimizers = [
        torch.optim.AdamW(list(alike([{"params": list(one.whole.parameters())}])), lr=1e-3, fused=True)
        for one in (model, alone)
    ]
    for optimizer in optimizers:
        optimizer.step()
    weights = dict(alone.whole.named_parameters())
    for name, weight in gathered(whole, "data"):
        torch.testing.assert_close(weight, weights[name].detach(), rtol=0.0, atol=3e-5)
    # gathered by the first, and taken apart again
    found = whole_on_first(whole.state_dict(), processes)
    assert processes.first == (len(found) == len(whole.state_dict()))
    for parameter in whole.parameters():
        if is_shard(parameter):
            held: Any = parameter.detach()
            assert torch.equal(held.to_local(), part_of(held.full_tensor(), parameter).to_local())  # type: ignore[attr-defined]


def gathered(model: nn.Module, what: str) -> Iterator[tuple[str, Tensor]]:
    """Each parameter's `grad` or `data` by name, whole."""
    for name, parameter in model.named_parameters():
        tensor: Any = getattr(parameter, what)
        yield name, tensor.full_tensor() if is_shard(tensor) else tensor


def backward(model: Any, row: Tensor, reduction: Any = None) -> None:
    """One row as step.py takes it: the head by itself, then the body."""
    from tasks.training.attention import RowDocuments

    with model.autocast():
        positions = torch.arange(TOKENS).unsqueeze(0)
        hidden = model.hidden(row.unsqueeze(0), positions, RowDocuments.of((TOKENS,), model.device))
    _, gradient = model.loss.backward(hidden.detach(), row, ROWS * TOKENS)
    with reduction.begun() if reduction else nullcontext():
        torch.autograd.backward(hidden, gradient)


def made(config: Any) -> Any:
    """A random model with the packed attention."""
    from transformers import AutoModelForCausalLM

    from tasks.training.attention import NAME

    return AutoModelForCausalLM.from_config(config, attn_implementation=NAME)


def halves(whole: Any, precision: str) -> Any:
    """As the trainer holds it."""
    from tasks.training import model

    return model.halves(whole, torch.device("cpu"), precision)


def shared_out(whole: Any, precision: str, processes: Processes) -> Any:
    """The same, its layers shared out."""
    from tasks.training.process.sharding import shard

    shard(whole, whole.base_model, torch.device("cpu"), processes)
    return halves(whole, precision)


def gpt2_config() -> Any:
    from transformers import GPT2Config

    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(vocab_size=VOCABULARY, n_embd=36, n_layer=3, n_head=4, n_positions=64, **dropout)


class refused:
    """A ConfigError with these words must come."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        assert isinstance(error, ConfigError) and self._words in str(error), error
        return True


if __name__ == "__main__":
    main(sys.argv[1])
