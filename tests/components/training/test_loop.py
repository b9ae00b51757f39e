"""A segment of training whose model is compiled, by a C++ compiler."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.training import loop
from tests.support.training.world import World, after_calls, outputs, run_here


@pytest.mark.slow
def test_compiled_it_learns_the_same(world: World, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    assert run_here(world.spec(tmp_path / "plain", identity__last_step=4))[0] == loop.DONE
    spec = world.spec(tmp_path / "compiled", identity__last_step=4, execution__compile=True)
    assert run_here(spec, after_calls(3))[0] == loop.RESUMABLE
    torch.compiler.reset()
    counters.clear()
    assert run_here(spec)[0] == loop.DONE
    assert counters["stats"]["unique_graphs"] == 2, "the body and the loss, in the first step"
    whole = world.spec(tmp_path / "whole", identity__last_step=4, execution__compile=True)
    torch.compiler.reset()
    assert run_here(whole)[0] == loop.DONE
    assert outputs(tmp_path / "compiled") == outputs(tmp_path / "whole")
    plain = load_file(tmp_path / "plain" / "trunk" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "compiled" / "trunk" / "model.safetensors").items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-2, atol=1e-3)
