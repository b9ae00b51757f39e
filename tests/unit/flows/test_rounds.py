"""The arithmetic of rounds: a longer list of budgets leaves the rounds before as they were."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.dag.rounds import averaging, decay_schedule, rounds_of, stopped_round, trunk_schedule
from storage.errors import ConfigError
from tasks.models.config import AveragePlan
from tasks.training.spec import Average
from tests.support.runs import run_with


@given(st.lists(st.integers(10_000, 10**7), min_size=2, max_size=4, unique=True), st.floats(0, 0.5))
def test_a_prefix_of_the_budgets_gives_a_prefix_of_the_rounds(budgets, fraction):
    budgets = [budget * 5000 for budget in sorted(budgets)]
    run = run_with(budgets, decay_fraction=fraction)
    rounds = rounds_of(run)
    shorter = run_with(budgets[:-1], decay_fraction=fraction)
    assert rounds_of(shorter) == rounds[:-1]
    for one, same in zip(rounds_of(shorter), rounds, strict=False):
        assert trunk_schedule(shorter, one) == trunk_schedule(run, same)
        assert decay_schedule(shorter, one) == decay_schedule(run, same)


@given(st.lists(st.integers(10_000, 10**7), min_size=1, max_size=4, unique=True), st.floats(0, 0.5))
def test_trunks_and_manifests_join_without_gap(budgets, fraction):
    rounds = rounds_of(run_with([budget * 5000 for budget in sorted(budgets)], decay_fraction=fraction))
    step = sequence = 0
    for one in rounds:
        assert one.first_step == step
        assert one.first_sequence == sequence
        assert one.first_step <= one.branch_step <= one.last_step
        step, sequence = one.branch_step, one.first_sequence + one.sequences
    assert sequence == rounds[-1].last_step * 16


def test_a_rewarm_round_is_one_segment():
    rounds = rounds_of(run_with([40_960, 81_920], schedule={"kind": "rewarm", "warmup_tokens": 4096}))
    assert [(r.first_step, r.branch_step, r.last_step) for r in rounds] == [(0, 10, 10), (10, 20, 20)]


def test_rounds_are_called_by_their_exact_budgets():
    """K3: both were `1M`, and `1B`; the report then showed the scores of one model under both."""
    names = [one.name for one in rounds_of(run_with([1_000_000, 1_004_100, 10**9, 1_000_400_000]))]
    assert names == ["1M", "1.0041M", "1B", "1.0004B"]
    usual = [200_000, 1_500_000, 400_000_000, 10**9]
    assert [one.name for one in rounds_of(run_with(usual))] == ["200K", "1.5M", "400M", "1B"]


def averaged(run, checkpoints, every_tokens):
    average = AveragePlan(checkpoints=checkpoints, every_tokens=every_tokens)
    return run.model_copy(update={"training": run.training.model_copy(update={"average": average})})


def test_an_average_is_counted_in_steps_and_must_fit_every_round():
    run = run_with([409_600, 819_200])  # branches of 10 and 20 steps of 4,096 tokens
    assert averaging(run) is None
    assert averaging(averaged(run, 4, 12_000)) == Average(checkpoints=4, every_steps=3)
    assert rounds_of(averaged(run, 4, 12_000)) == rounds_of(run)
    with pytest.raises(
        ConfigError, match=r"training\.average: 6 weights 2 steps apart span 10 .* of 409\.6K has 10"
    ):
        rounds_of(averaged(run, 6, 8192))
    rewarm = run_with([40_960, 61_440], schedule={"kind": "rewarm", "warmup_tokens": 4096})
    assert rounds_of(averaged(rewarm, 5, 4096))
    with pytest.raises(ConfigError, match=r"but the round of 61\.44K has 5"):
        rounds_of(averaged(rewarm, 6, 4096))


@given(st.integers(50_000, 10**7), st.floats(0, 0.5), st.floats(0, 1))
def test_a_stopped_trunk_is_decayed_over_the_same_share_of_its_steps(budget, fraction, where):
    run = run_with([budget * 100], decay_fraction=fraction)
    [whole] = rounds_of(run)
    step = int(where * whole.branch_step)
    found = stopped_round(run, whole, step)
    assert (found.number, found.budget, found.first_step, found.branch_step) == (1, budget * 100, 0, step)
    assert step + (fraction > 0) <= found.last_step <= whole.last_step
    if fraction and step > 100:
        assert (found.last_step - step) / found.last_step == pytest.approx(fraction, abs=0.02)
    schedule = decay_schedule(run, found)
    assert (schedule.decay_from, schedule.decay_to) == (step, found.last_step)


def test_a_stopped_trunk_is_decayed_over_the_steps_of_its_average():
    run = averaged(
        run_with([409_600]), 4, 12_000
    )  # the branch has 10 steps of 4,096 tokens, the average spans 9
    [whole] = rounds_of(run)
    for step in range(whole.branch_step + 1):
        found = stopped_round(run, whole, step)
        assert found.last_step - step > 9 and found.last_step <= whole.last_step
