"""The arithmetic of rounds: a longer list of budgets leaves the rounds before as they were."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from runs import run_with

from flows.rounds import decay_schedule, rounds_of, short_count, trunk_schedule


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


def test_short_names_of_counts():
    assert [short_count(n) for n in (400_000_000, 10**9, 1_500_000, 200_000, 12)] == [
        "400M",
        "1B",
        "1.5M",
        "200K",
        "12",
    ]
