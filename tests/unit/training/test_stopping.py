"""A trunk that may end before its budget: the rule alone, and a small model that learns its text by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ConfigError, StageFailed
from tasks.training import loop
from tasks.training.spec import Stop
from tasks.training.state.stopping import BEST, Stopping, no_longer_needed, stopped_of
from tests.support.training.world import EOT, SEQUENCE, VOCABULARY, World, after_calls, outputs, run, run_here

RULE = Stop("web", patience_tokens=100, every_tokens=25, min_delta=0.1)


def told(losses: list[float | None], rule: Stop = RULE) -> Stopping:
    found = Stopping.begun(rule, 0)
    for number, loss in enumerate(losses):
        if not found.over:
            found.add(loss, number, 25 * number)
    return found


def test_it_ends_when_nothing_lower_was_seen_for_the_patience() -> None:
    found = told([3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0])
    assert found.over and (found.tokens, found.best_tokens, found.best) == (125, 25, 2.0)
    assert not told([3.0, 2.0, 2.5, 2.5, 2.5]).over
    assert not told([3.0, 2.8, 2.6, 2.4, 2.2, 2.0]).over


def test_what_falls_by_less_than_is_asked_for_does_not_count() -> None:
    assert told([3.0, 2.95, 2.92, 2.91, 2.905]).over
    assert not told([3.0, 2.95, 2.92, 2.89, 2.88]).over  # lower than 3.0 by more than 0.1


def test_a_loss_that_is_not_finite_is_no_lower_one() -> None:
    assert told([3.0, None, None, None, None]).over
    assert not told([None, None, None, None, None]).over  # there is no state to end with


def test_it_goes_on_from_what_the_trunks_before_came_to() -> None:
    rule = Stop("web", patience_tokens=100, every_tokens=25, lowest=1.0, lowest_tokens=80)
    found = Stopping.begun(rule, 100)
    assert found.add(2.0, 4, 100) and not found.over
    assert found.add(1.9, 7, 175) and not found.over
    assert not found.add(1.95, 8, 180) and found.over
    assert (found.lowest_tokens, found.best_tokens) == (80, 175)


@given(st.lists(st.floats(0, 10) | st.none(), min_size=1, max_size=30), st.integers(1, 29))
def test_its_state_is_all_that_it_needs(losses: list[float | None], at: int) -> None:
    whole, found = told(losses), Stopping.begun(RULE, 0)
    for number, loss in enumerate(losses):
        if not found.over:
            found.add(loss, number, 25 * number)
        if number == at:
            found = Stopping.restored(RULE, json.loads(json.dumps(found.state)))
    assert found == whole and found.facts == whole.facts


def test_kept_states_stay_while_a_checkpoint_may_need_them(tmp_path: Path) -> None:
    for step in (0, 10, 20, 30):
        (tmp_path / BEST / f"step-{step:08d}").mkdir(parents=True)
    steps = [int(path.name[5:]) for path in no_longer_needed(tmp_path, 25)]
    assert steps == [0, 10] and not no_longer_needed(tmp_path, 5)


def some_text(path: Path) -> Path:
    """Text with fewer of the world's commonest word than it has: learned better for some steps, and worse from there."""
    random = np.random.default_rng(5)
    words = random.integers(1, VOCABULARY, (6, SEQUENCE))
    words[random.random(words.shape) < 0.2] = 7
    path.write_text(json.dumps({"web": [[EOT, *document] for document in words.tolist()]}))
    return path


def asked(text: Path, **changes: Any) -> dict[str, Any]:
    rule = {"source": "web", "patience_tokens": 500, "every_tokens": 150}
    return {
        "identity__stop": rule,
        "identity__stop_text": {"digest": "text"},
        "identity__last_step": 16,
        "paths__stop_text": str(text),
        **changes,
    }


def test_a_trunk_ends_with_the_weights_of_its_lowest_loss_however_often_it_was_stopped(
    world: World, tmp_path: Path
) -> None:
    text = some_text(tmp_path / "text.json")
    whole = run(world, tmp_path / "whole", **asked(text), execution__checkpoint_every=1e9)
    result = json.loads((whole / "result.json").read_text())
    best = stopped_of(result)
    assert best is not None and best["step"] < result["step"] < 16
    state = json.loads((whole / "trunk" / "state.json").read_text())
    assert (state["step"], state["tokens"]) == (best["step"], best["tokens"])
    assert not (whole / "trunk" / "digests.json").exists()

    without = {"identity__last_step": best["step"]}  # a trunk that was to end there from the start
    there = run(world, tmp_path / "there", **without)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (whole / "trunk" / name).read_bytes() == (there / "trunk" / name).read_bytes()

    last = result["step"]
    for step, every in (
        (0, 1e9),
        (best["step"], 1e-9),
        (best["step"] + 1, 1e9),
        (last - 1, 1e-9),
        (last - 1, 1e9),
    ):
        work = tmp_path / f"stopped-{step}-{every}"
        spec = world.spec(work, **asked(text), execution__checkpoint_every=every)
        assert run_here(spec, after_calls(step + 1))[0] == loop.RESUMABLE
        assert run_here(spec)[0] == loop.DONE
        assert outputs(work) == outputs(whole)
        assert json.loads((work / "result.json").read_text()) == result


def test_a_trunk_that_learns_goes_on_to_its_end_and_says_how_low_it_came(
    world: World, tmp_path: Path
) -> None:
    text = tmp_path / "text.json"
    text.write_text(json.dumps({"web": [[EOT, *([7] * 40)]]}))  # the word that half of all text is
    work = run(world, tmp_path / "work", **asked(text))
    result = json.loads((work / "result.json").read_text())
    assert result["step"] == 16 and stopped_of(result) is None
    assert result["stopping"]["lowest_tokens"] > 0
    plain = run(world, tmp_path / "plain", identity__last_step=16)
    assert outputs(work)["trunk/model.safetensors"] == outputs(plain)["trunk/model.safetensors"]


def test_a_kept_state_that_rotted_is_not_ended_with(world: World, tmp_path: Path) -> None:
    text = some_text(tmp_path / "text.json")
    whole = run(world, tmp_path / "whole", **asked(text))
    last = json.loads((whole / "result.json").read_text())["step"]
    work = tmp_path / "work"
    spec = world.spec(work, **asked(text))
    assert run_here(spec, after_calls(last))[0] == loop.RESUMABLE
    for path in (work / BEST).glob("step-*/model.safetensors"):
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    with pytest.raises(StageFailed, match="begins anew"):
        run_here(spec)
    assert run_here(spec)[0] == loop.DONE
    assert outputs(work) == outputs(whole)


def test_what_does_not_go_together_is_refused(world: World, tmp_path: Path) -> None:
    text = some_text(tmp_path / "text.json")
    for changes, words in (
        ({"identity__kind": "decay"}, "only a trunk"),
        ({"identity__stop_text": None}, "both, or neither"),
        ({"paths__stop_text": None}, "no held-out text"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(world, tmp_path / words, **asked(text, **changes))
