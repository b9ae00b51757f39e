"""Weights shared out among processes: the steps of one, the files of one, the same bits whatever is killed."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from storage.errors import ConfigError, StageFailed
from tasks.models import trainer
from tasks.models.config import TrainingConfig
from tasks.training.combinations import of_sharding, refuse
from tasks.training.loop import DONE, RESUMABLE
from tasks.training.read_spec import parse_spec
from tests.support.training import groups
from tests.support.training.groups import at_work, in_a_group, losses, ranks_of, started, train, wait_until
from tests.support.training.world import (
    World,
    after_calls,
    journal_steps,
    llama_config,
    outputs,
    run_here,
    save_model,
)

STEPS = 24
CHANGES: dict[str, Any] = {
    "identity__last_step": STEPS,
    "identity__sequences_per_step": 3,  # two for one process, one for the other: passes of a micro-batch are uneven
    "execution__sharding": "full",
}
ALONE: dict[str, Any] = CHANGES | {"execution__sharding": "none"}


@pytest.fixture(scope="module")
def world(world: World) -> World:
    """The same text for a model whose steps take long enough to be killed in."""
    wide = llama_config(hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    return replace(world, export=save_model(wide, world.root / "wide-sharding"))


@pytest.fixture(scope="module")
def shared_out(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of two processes that share the weights out, and that nobody disturbs."""
    work = started(world, tmp_path_factory.mktemp("shared") / "work", **CHANGES)
    train(work)
    return work


def alone(world: World, work: Path, **changes: Any) -> Path:
    assert run_here(world.spec(work, **(groups.CHANGES | ALONE | changes)))[0] == DONE
    return work


def assert_close(one: Path, other: Path, tolerance: float = 1e-5) -> None:
    """The same files, and in them the same tensors to rounding."""
    assert set(outputs(one)) == set(outputs(other))
    np.testing.assert_allclose(losses(one), losses(other), rtol=tolerance)
    for path in sorted(one.rglob("*.safetensors")):
        if "checkpoints" in path.parts:
            continue
        mine, its = load_file(path), load_file(other / path.relative_to(one))
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in mine.items()} == {
            name: (tensor.shape, tensor.dtype) for name, tensor in its.items()
        }
        if path.name == "model.safetensors":
            for name, tensor in mine.items():
                torch.testing.assert_close(tensor, its[name], rtol=0.0, atol=min(0.02, 300 * tolerance))


@pytest.mark.slow
def test_shards_hold_the_gradients_norms_and_weights_of_one(tmp_path: Path) -> None:
    """Llama and GPT-2, layers kept, computed again in part and as a whole, float32 and bf16: see ranks.py."""
    answer = in_a_group(tmp_path, "shards")
    assert answer.returncode == 0, answer.stderr[-3000:]


@pytest.mark.slow
def test_two_that_share_the_weights_out_take_the_steps_of_one(
    world: World, shared_out: Path, tmp_path: Path
) -> None:
    assert_close(shared_out, alone(world, tmp_path / "work"))
    assert json.loads((shared_out / "execution.json").read_text())["sharding"] == "full"
    lines = [path.read_text() for path in (shared_out / "export").glob("*.json")]
    assert not any("FSDP" in line for line in lines)


@pytest.mark.slow
def test_in_bf16_with_layers_computed_again_and_a_mean_of_weights(world: World, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "identity__precision": "bf16",
        "identity__average": {"checkpoints": 3, "every_steps": 4},
        "execution__gradient_checkpointing": "full",
    }
    work = started(world, tmp_path / "two" / "work", **(CHANGES | changes))
    train(work)
    one = alone(world, tmp_path / "one" / "work", **changes)
    assert_close(work, one, tolerance=1e-3)  # where a weight rounds the other way, so much


@pytest.mark.slow
def test_whatever_is_killed_the_bits_are_those_of_two_undisturbed(
    world: World, shared_out: Path, tmp_path: Path
) -> None:
    work = started(world, tmp_path / "work", **CHANGES)

    def kill(process: trainer.Process) -> None:
        for rank, step in ((1, 5), (0, 10)):
            wait_until(lambda step=step: (journal_steps(work) or [0])[-1] >= step)
            os.kill(ranks_of(process.pid)[rank], signal.SIGKILL)
            wait_until(lambda: len(ranks_of(process.pid)) < 2)
        wait_until(lambda: journal_steps(work)[-1] >= 15)
        process.kill()
        process.wait()

    with pytest.raises(StageFailed):
        train(work, follow=kill)
    wait_until(lambda: at_work(work) == [], 180)
    train(work)
    assert outputs(work) == outputs(shared_out)
    assert journal_steps(work) == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [("full", "none"), ("none", "full")])
def test_begun_by_one_kind_it_goes_on_with_the_other(
    world: World, shared_out: Path, tmp_path: Path, first: str, then: str
) -> None:
    by = {"full": 2, "none": 1}
    work = started(world, tmp_path / "work", **(CHANGES | {"execution__sharding": first}))

    def ask(process: trainer.Process) -> None:
        wait_until(lambda: (journal_steps(work) or [0])[-1] >= 8)
        raise KeyboardInterrupt

    if first == "none":
        spec = world.spec(work, **(groups.CHANGES | ALONE))
        assert run_here(spec, after_calls(10))[0] == RESUMABLE
    else:
        with pytest.raises(KeyboardInterrupt):
            train(work, processes=2, follow=ask)
    assert 8 <= journal_steps(work)[-1] < STEPS
    if then == "none":
        alone(world, work)
    else:
        train(started(world, work, **CHANGES))
    assert_close(work, shared_out)
    found = json.loads((work / "execution.json").read_text())
    assert (found["processes"], found["sharding"]) == (by[then], then)
    (before,) = found["before"]
    assert (before["processes"], before["sharding"]) == (by[first], first)


@pytest.mark.parametrize(
    "changes, field",
    [
        (
            {"identity__precision": "bf16_weights", "identity__optimizer__stochastic_rounding": True},
            "training.precision: bf16_weights",
        ),
        ({"identity__optimizer__states": "8bit"}, "training.optimizer.states: 8bit"),
        (
            {"identity__optimizer__pull_to_base": 0.1, "identity__base": {"digest": "b"}, "paths__base": "b"},
            "training.optimizer.pull_to_base: 0.1",
        ),
        ({"execution__compile": True}, "training.execution.compile: true"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_by_name(
    world: World, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    spec = parse_spec(world.spec(tmp_path, **(CHANGES | changes)))
    with pytest.raises(ConfigError, match=f"^{field} does not go together with training.execution.sharding"):
        refuse(of_sharding(spec.execution, spec.identity.optimizer, spec.identity.precision, 2))
    whole = replace(spec.execution, sharding="none")
    assert not list(of_sharding(whole, spec.identity.optimizer, spec.identity.precision, 2))


def test_one_process_has_nobody_to_share_with(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="execution.sharding: full shares weights out among processes"):
        run_here(world.spec(tmp_path / "work", execution__sharding="full"))
    with pytest.raises(ConfigError, match="execution.sharding must be none or full"):
        parse_spec(world.spec(tmp_path, execution__sharding="half"))


@pytest.mark.parametrize(
    "section, words",
    [
        ({}, "processes"),
        ({"processes": 2, "compile": True}, "compile"),
    ],
)
def test_the_form_refuses_it_before_anything_runs(section: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TrainingConfig(token_budgets=(1000,), execution={"sharding": "full", **section})
    TrainingConfig(token_budgets=(1000,), execution={"sharding": "full", "processes": 2})
