"""A loss that climbs is warned of, and ends training beyond guessing, the same whatever it was stopped at."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import StageFailed
from tasks.models.train import warnings_of
from tasks.training import loop
from tasks.training.state.climb import RISE, WINDOW, Climb
from tests.support.training.world import VOCABULARY, World, after_calls, journal_steps, run_here

GUESSING = math.log(500)
FALLING = np.linspace(8.0, 3.7, 40) + np.random.default_rng(0).normal(0, 0.2, 40)


def climb(*losses: float | None) -> Climb:
    return Climb(500, losses)


def test_a_loss_that_falls_or_stays_is_neither() -> None:
    for losses in (FALLING, [9.0] * 100, [3.0, 3.9] * 50, [3.0] * 40 + [50.0] * 3 + [3.0] * 13):
        found = Climb(500)
        for loss in losses:
            found.add(float(loss))
            assert not found.diverged
        assert not found.risen and found.at_the_end == {}


def test_a_base_that_begins_beyond_guessing_may_learn() -> None:
    assert not climb(*np.linspace(30.0, 20.0, 60)).diverged


def test_what_rises_below_guessing_is_warned_of_and_what_is_beyond_it_for_sixteen_steps_ends() -> None:
    worse = climb(*[3.7] * 20, *[5.5] * WINDOW)
    assert worse.risen and not worse.diverged
    limit = GUESSING + RISE
    assert climb(*[3.7] * 20, *[limit + 0.01] * WINDOW).diverged
    assert not climb(*[3.7] * 20, *[limit - 0.01] * WINDOW).diverged
    assert not climb(*[3.7] * 20, *[59.0] * (WINDOW - 1)).diverged
    assert climb(3.7, *[59.0] * WINDOW).diverged, "from the second step on"
    assert climb(3.7, *[59.0, None, math.nan] * WINDOW).diverged, "skipped steps do not count"


def test_a_short_segment_that_ends_well_above_says_so() -> None:
    found = climb(3.7, 20.0, 40.0, 59.0).at_the_end
    assert found["lowest_loss"] == 3.7 and found["last_loss"] == 30.0
    [line] = warnings_of({}, found)
    assert "the loss rose" in line and "training.learning_rate" in line
    assert list(warnings_of({}, {})) == []


@given(st.lists(st.none() | st.floats(0, 100), max_size=60), st.integers(0, 60))
def test_what_was_told_to_another_process_goes_on_alike(losses: list[float | None], cut: int) -> None:
    whole = climb(*losses)
    told = Climb(500).restored(json.loads(json.dumps(climb(*losses[:cut]).state())))
    for loss in losses[cut:]:
        told.add(loss)
    assert told.state() == whole.state()


CHANGES = {
    "identity__last_step": 60,
    "identity__schedule__peak": 1.0,
    "identity__sequences_per_step": 2,
    "execution__checkpoint_every": 1e9,
}


@pytest.mark.parametrize("stopped_after", [5, 15, 16])
def test_a_rate_that_diverges_ends_at_the_same_step_however_it_was_stopped(
    world: World, tmp_path: Path, stopped_after: int
) -> None:
    with pytest.raises(
        StageFailed, match=r"Training diverged: .* worse than guessing \(.*learning_rate"
    ) as whole:
        run_here(world.spec(tmp_path / "whole", **CHANGES))
    spec = world.spec(tmp_path / "stopped", **CHANGES)
    assert run_here(spec, after_calls(stopped_after + 1))[0] == loop.RESUMABLE
    with pytest.raises(StageFailed) as parts:
        run_here(spec)
    assert str(parts.value) == str(whole.value) and not whole.value.passing
    steps = journal_steps(tmp_path / "stopped")
    assert steps == journal_steps(tmp_path / "whole") and WINDOW < len(steps) < 60
    kept = [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("step-*")]
    assert f"step-{len(steps):08d}" in kept, "the checkpoint of that step is there"
    with pytest.raises(StageFailed) as again:
        run_here(spec)
    assert str(again.value) == str(whole.value) and journal_steps(tmp_path / "stopped") == steps


def test_a_run_that_learns_says_nothing_new(world: World, tmp_path: Path) -> None:
    code, said = run_here(world.spec(tmp_path / "w", identity__last_step=24, identity__sequences_per_step=2))
    assert code == loop.DONE and not any("warning" in line for line in said)
    result = json.loads((tmp_path / "w" / "result.json").read_text())
    assert not {"last_loss", "lowest_loss", "guessing"} & set(result) and VOCABULARY > 1
