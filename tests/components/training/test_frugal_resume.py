"""Every way to keep weights and moments, with and without pull and mean: ended anywhere and resumed, the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from storage.errors import ConfigError
from tasks.training.loop import DONE, RESUMABLE
from tasks.training.read_spec import parse_spec
from tests.support.training.families import FAMILIES
from tests.support.training.groups import CHANGES, losses, started
from tests.support.training.groups import train as train_together
from tests.support.training.narrow import ALL, changes_of, wide
from tests.support.training.world import (
    World,
    after_calls,
    journal_steps,
    outputs,
    run_here,
    save_model,
)

MATRIX = (
    ("fp32", "8bit", False, True),
    ("bf16", "8bit", True, False),
    ("bf16_weights", "8bit", True, True),
    ("fp32", "fp32", True, False),
    ("bf16", "fp32", False, True),
    ("bf16_weights", "fp32", False, False),
)
"""Every pair of values of two options, out of 24 combinations: what each option keeps is saved and read by itself, and two
that share a tensor (narrow weights and narrow moments, a mean and a pull) meet in a pair."""


@pytest.fixture(scope="module")
def world(world: World) -> World:
    """One whose model is quantised."""
    return wide(world)


@pytest.mark.parametrize(
    ("precision", "states", "averaged", "pulled"),
    MATRIX,
)
def test_ended_after_every_step_it_leaves_the_same_bytes(
    world: World, tmp_path: Path, precision: str, states: str, averaged: bool, pulled: bool
) -> None:
    """A trainer for each step, each going on from the checkpoint of the one before."""
    changes = changes_of(world, precision, states, averaged, pulled, execution__checkpoint_every=1e9)
    assert run_here(world.spec(tmp_path / "whole", **changes))[0] == DONE
    work = tmp_path / "often"
    for step in range(1, 8):
        assert run_here(world.spec(work, **changes), after_calls(2))[0] == RESUMABLE
        assert journal_steps(work) == list(range(1, step + 1))
    assert run_here(world.spec(work, **changes))[0] == DONE
    assert outputs(work) == outputs(tmp_path / "whole")
    weights = load_file(work / "export" / "model.safetensors")
    expected = torch.bfloat16 if precision == "bf16_weights" else torch.float32
    assert {tensor.dtype for tensor in weights.values()} == {expected}
    moments = load_file(work / "trunk" / "optimizer.safetensors")
    assert any(tensor.dtype == torch.uint8 for tensor in moments.values()) is (states == "8bit")


def test_a_trunk_goes_on_as_if_it_had_never_ended(world: World, tmp_path: Path) -> None:
    """Weights in bf16, moments in 8 bits, and the base found in its own place: 0 to 8 is 0 to 5 and 5 to 8."""
    whole = changes_of(world, **ALL)
    assert run_here(world.spec(tmp_path / "whole", **whole))[0] == DONE
    first = changes_of(world, **(ALL | {"averaged": False}), identity__kind="trunk", identity__last_step=5)
    assert run_here(world.spec(tmp_path / "first", **first))[0] == DONE
    second = whole | {
        "identity__first_step": 5,
        "identity__start": {"digest": "trunk"},
        "identity__average": {"checkpoints": 2, "every_steps": 2},
        "paths__start": str(tmp_path / "first" / "trunk"),
        "paths__start_kind": "trunk",
    }
    assert run_here(world.spec(tmp_path / "second", **second))[0] == DONE
    for name in ("trunk/model.safetensors", "trunk/optimizer.safetensors"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    np_whole, np_both = (
        losses(tmp_path / "whole"),
        [*losses(tmp_path / "first"), *losses(tmp_path / "second")],
    )
    assert np_whole.tolist() == np_both


def test_a_trunk_of_other_states_is_refused(world: World, tmp_path: Path) -> None:
    first = changes_of(world, "fp32", "fp32", False, False, identity__kind="trunk", identity__last_step=2)
    assert run_here(world.spec(tmp_path / "first", **first))[0] == DONE
    second = changes_of(
        world,
        "fp32",
        "8bit",
        False,
        False,
        identity__first_step=2,
        paths__start=str(tmp_path / "first" / "trunk"),
        paths__start_kind="trunk",
    )
    with pytest.raises(ConfigError, match=r"optimizer\.states"):
        run_here(world.spec(tmp_path / "second", **second))


def test_a_strong_pull_keeps_weights_at_the_base(world: World, tmp_path: Path) -> None:
    """Distance to the base after 8 steps, without, with and with the strongest pull."""
    base = load_file(world.export / "model.safetensors")
    away = []
    for number, pull in enumerate((0.0, 20.0, 100.0)):
        changes = changes_of(world, "fp32", "fp32", False, pull > 0)
        if pull:
            changes["identity__optimizer__pull_to_base"] = pull
        changes["identity__schedule__warmup_steps"] = 0
        work = tmp_path / str(number)
        assert run_here(world.spec(work, **changes))[0] == DONE
        found = load_file(work / "export" / "model.safetensors")
        away.append(max(float((found[name] - base[name]).abs().max()) for name in base))
    assert away[0] > 1.1 * away[1] > 0
    assert away[2] == 0.0


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_trains_with_narrow_weights_and_moments(
    world: World, tmp_path: Path, family: str
) -> None:
    own = replace(world, export=save_model(FAMILIES[family](), tmp_path / "export"))
    work = tmp_path / "work"
    changes = changes_of(own, **(ALL | {"averaged": False}), identity__last_step=4)
    assert run_here(own.spec(work, **changes))[0] == DONE
    assert losses(work)[-1] < losses(work)[0]
    loaded, facts = AutoModelForCausalLM.from_pretrained(work / "export", output_loading_info=True)
    assert loaded.dtype == torch.bfloat16 and not facts["missing_keys"]


@pytest.mark.slow
def test_two_processes_round_alike(world: World, tmp_path: Path) -> None:
    """Each holds all weights and draws its own chance; at the end both must hold the same bits, or it is refused."""
    work = started(
        world, tmp_path / "two", **changes_of(world, **ALL, identity__last_step=6, execution__micro_batch=1)
    )
    train_together(work)
    assert len(losses(work)) == 6
    alone = tmp_path / "one"
    changes = changes_of(world, **ALL, identity__last_step=6, execution__micro_batch=1)
    assert run_here(world.spec(alone, **(CHANGES | changes)))[0] == DONE
    assert losses(work) == pytest.approx(losses(alone), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"identity__precision": "bf16_weights"},
            r"stochastic_rounding must be true .* an update below a 256th",
        ),
        ({"identity__optimizer__stochastic_rounding": True}, r"stochastic_rounding must be false"),
        ({"identity__optimizer__states": "4bit"}, r"optimizer\.states must be fp32 or 8bit"),
        ({"identity__optimizer__pull_to_base": -1.0}, r"pull_to_base must be at least 0"),
        ({"identity__optimizer__pull_to_base": 1.0}, r"identity\.base names the model"),
        ({"identity__base": {"digest": "b"}, "paths__base": "b"}, r"identity\.base names the model"),
        (
            {"identity__optimizer__pull_to_base": 1.0, "identity__base": {"digest": "b"}},
            r"paths\.base lies where",
        ),
        (
            {
                "identity__optimizer__pull_to_base": 101.0,
                "identity__base": {"digest": "b"},
                "paths__base": "b",
            },
            r"times training.learning_rate must be at most 1",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    world: World, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec(world.spec(tmp_path, **changes))
