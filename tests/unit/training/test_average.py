"""The export as a mean of weights: the right steps, the right numbers, and training that never sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from storage.errors import ConfigError, DamagedArtifact
from tasks.training.loop import DONE, RESUMABLE
from tasks.training.read_spec import parse_spec
from tasks.training.state.average import AVERAGE, RunningSum, averaged_steps
from tests.support.training.world import World, after_calls, outputs, run_here

AVERAGED: dict[str, Any] = {"identity__average": {"checkpoints": 3, "every_steps": 2}}


def run(world: World, work: Path, **changes: Any) -> Path:
    assert run_here(world.spec(work, identity__kind="pretrain", **changes))[0] == DONE
    return work


def test_the_steps_are_counted_back_from_the_last(world: World, tmp_path: Path) -> None:
    def steps(**changes: Any) -> list[int]:
        changes = {"identity__kind": "pretrain", **changes}
        return list(averaged_steps(parse_spec(world.spec(tmp_path, **changes)).identity))

    assert steps() == []
    assert steps(**AVERAGED) == [4, 6, 8]
    assert steps(identity__average={"checkpoints": 2, "every_steps": 7}) == [1, 8]
    decay = {"identity__kind": "decay", "identity__first_step": 3, "identity__last_step": 9}
    assert steps(**decay, identity__average={"checkpoints": 6, "every_steps": 1}) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"identity__average": {"checkpoints": 3, "every_steps": 4}}, "span 8 steps, but this segment has 8"),
        ({"identity__average": {"checkpoints": 1, "every_steps": 4}}, r"average\.checkpoints"),
        ({"identity__average": {"checkpoints": 2, "every_steps": 0}}, r"average\.every_steps"),
        ({"identity__average": {"checkpoints": 2}}, r"average\.every_steps is missing"),
        ({**AVERAGED, "identity__kind": "trunk"}, r"identity\.average: a trunk has no export"),
    ],
)
def test_a_mean_that_cannot_be_had_is_refused(
    world: World, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec(world.spec(tmp_path, **{"identity__kind": "pretrain", **changes}))


@pytest.mark.parametrize("precision", ["fp32", "bf16_weights"])
def test_the_export_is_the_mean_and_the_trunk_is_not(world: World, tmp_path: Path, precision: str) -> None:
    """Against the float64 mean of what runs that end at those steps leave: their steps are the same."""
    narrow = {
        "identity__precision": precision,
        "identity__optimizer__stochastic_rounding": precision == "bf16_weights",
    }
    work = run(world, tmp_path / "mean", **narrow, **AVERAGED)
    ended = [run(world, tmp_path / f"{step}", **narrow, identity__last_step=step) for step in (4, 6, 8)]
    weights = [load_file(one / "export" / "model.safetensors") for one in ended]
    found = load_file(work / "export" / "model.safetensors")
    assert set(found) == set(weights[0])
    for name, tensor in found.items():
        expected = torch.stack([one[name].double() for one in weights]).mean(0)
        assert tensor.dtype == weights[0][name].dtype
        torch.testing.assert_close(
            tensor.double(), expected, rtol=2**-8 if tensor.dtype == torch.bfloat16 else 2**-22, atol=1e-9
        )
        assert not torch.equal(tensor, weights[-1][name])
    same = {name: digest for name, digest in outputs(work).items() if name.startswith("trunk")}
    assert same.items() <= outputs(ended[-1]).items()
    loaded = AutoModelForCausalLM.from_pretrained(work / "export")
    assert loaded.dtype == (torch.bfloat16 if precision == "bf16_weights" else torch.float32)


def test_the_sum_is_a_part_of_each_checkpoint_and_verified_as_the_rest(world: World, tmp_path: Path) -> None:
    changes = {"identity__kind": "pretrain", **AVERAGED}
    whole = outputs(run(world, tmp_path / "whole", **AVERAGED))
    work = tmp_path / "work"
    assert run_here(world.spec(work, **changes), after_calls(6))[0] == RESUMABLE
    checkpoint = work / "checkpoints" / "step-00000005"
    assert AVERAGE in json.loads((checkpoint / "manifest.json").read_text())["files"]
    data = bytearray((checkpoint / AVERAGE).read_bytes())
    data[-1] ^= 1
    (checkpoint / AVERAGE).write_bytes(data)
    code, said = run_here(world.spec(work, **changes))
    assert code == DONE and any(AVERAGE in line and "set aside" in line for line in said)
    assert outputs(work) == whole


def test_a_sum_of_other_steps_or_another_model_is_refused(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path, identity__kind="pretrain", **AVERAGED)).identity
    weights = {"w": torch.ones(3), "mask": torch.tensor([True])}
    average = RunningSum(identity)
    average.restore({}, 3, weights)
    for _ in range(3):
        average.add(weights)
    assert torch.equal(average.mean(weights)["w"], weights["w"])
    assert torch.equal(average.mean(weights)["mask"], weights["mask"])
    average.restore({"w": torch.ones(3)}, 4, weights)
    for sums, step in (({}, 4), ({"w": torch.ones(3)}, 3), ({"w": torch.ones(4)}, 4)):
        with pytest.raises(DamagedArtifact, match="does not fit"):
            average.restore(sums, step, weights)
