"""What every process of a group does in `test_processes.py`, under torchrun; a wrong answer is an exit code."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from storage.errors import ConfigError
from tasks.training.processes import join_processes, mark_of


def main() -> None:
    """Each method of `Processes`, with values that differ by rank."""
    processes = join_processes()
    rank, count = processes.rank, processes.count
    assert count == 2 and processes.first == (rank == 0)
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
    try:
        processes.same(mark_of([torch.ones(4) + (1e-7 if rank else 0.0)]), "The weights")
    except ConfigError as error:
        assert "The weights of process 1" in str(error)
    else:
        sys.exit(f"process {rank} did not see that they differ")
    processes.leave()


if __name__ == "__main__":
    main()
