from __future__ import annotations

import pytest

from storage.errors import ConfigError
from tasks.corpus.packing.budgets import needed_tokens, sequences_for, sequences_per_step, steps_for


def test_a_round_ends_at_the_step_that_reaches_its_budget() -> None:
    assert steps_for(400_000_000, 524_288) == 763
    assert steps_for(524_288, 524_288) == 1
    assert steps_for(524_289, 524_288) == 2
    assert sequences_for(400_000_000, 524_288, 1024) == 763 * 512


def test_a_batch_that_is_no_whole_number_of_sequences_names_the_nearest() -> None:
    assert sequences_per_step(524_288, 1024) == 512
    with pytest.raises(ConfigError, match="499712 or 500736"):
        sequences_per_step(500_000, 1024)
    with pytest.raises(ConfigError, match="allowed: 1024"):
        sequences_per_step(1000, 1024)
    for tokens in (0, -1024):
        with pytest.raises(ConfigError):
            sequences_per_step(tokens, 1024)
        with pytest.raises(ConfigError):
            steps_for(tokens, 1024)


def test_needed_tokens_follow_the_weights() -> None:
    assert needed_tokens([0.9, 0.1], 1000, 64) == [57_600, 6_400]
    assert sum(needed_tokens([0.6, 0.3, 0.1], 7, 64)) == 7 * 64
