"""Losses that stand out are marked, the same whatever training was stopped at."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tasks.training import loop
from tasks.training import step as steps
from tasks.training.state.spikes import LEAST, SIGMAS, WINDOW, Spikes
from tests.support.training.world import World, after_calls, outputs, run_here

LOSSES = np.random.default_rng(0).normal(3.0, 0.1, 400)


def test_a_spike_is_six_deviations_above_the_mean_of_the_last() -> None:
    before = LOSSES[-WINDOW:]
    limit = float(before.mean() + SIGMAS * before.std(ddof=1))
    for loss, marked in ((limit - 1e-9, False), (limit + 1e-9, True), (0.0, False)):
        spikes = Spikes()
        assert not any(spikes.is_spike(float(value)) for value in LOSSES)
        assert spikes.is_spike(loss) is marked


def test_a_few_losses_tell_nothing_and_what_is_not_finite_does_not_count() -> None:
    spikes = Spikes(LOSSES[: LEAST - 1])
    assert not spikes.is_spike(math.nan) and not spikes.is_spike(None) and not spikes.is_spike(math.inf)
    assert not spikes.is_spike(100.0)
    assert Spikes(LOSSES[:LEAST]).is_spike(100.0)


@pytest.mark.parametrize("stopped_after", [34, 40, 41])
def test_marked_in_the_journal_as_if_never_stopped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    plain = steps._forward_backward

    def jumps(segment: loop.Segment, *rest: Any) -> torch.Tensor:
        losses = plain(segment, *rest)
        return losses * {36: math.nan, 39: 20.0, 44: 20.0}.get(segment.progress.step, 1.0)

    monkeypatch.setattr(steps, "_forward_backward", jumps)
    changes = {
        "identity__last_step": 48,
        "identity__sequences_per_step": 2,
        "execution__checkpoint_every": 1e9,
    }
    assert run_here(world.spec(tmp_path / "whole", **changes))[0] == loop.DONE
    spec = world.spec(tmp_path / "stopped", **changes)
    assert run_here(spec, after_calls(stopped_after + 1))[0] == loop.RESUMABLE
    assert run_here(spec)[0] == loop.DONE
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "whole")
    table = pq.read_table(tmp_path / "stopped" / "journal" / "journal.parquet").to_pydict()
    assert [step for step, spike in zip(table["step"], table["spike"], strict=True) if spike] == [40]
    assert json.loads((tmp_path / "stopped" / "result.json").read_text())["spikes"] == 1
