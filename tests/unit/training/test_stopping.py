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
from tasks.models.train import warnings_of
from tasks.training import loop
from tasks.training import outputs as writes
from tasks.training.heldout import Heldout
from tasks.training.spec import Stop
from tasks.training.state.stopping import BEST, Stopping, lowest_of, no_longer_needed, stopped_of
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


def test_what_lies_where_a_budget_ends_says_only_what_can_be_gone_back_to() -> None:
    rule = Stop("web", patience_tokens=100, every_tokens=25, lowest=2.0, lowest_tokens=10)
    found = Stopping.begun(rule, 115)
    assert (
        found.add(1.0, 5, 115, counts=False) and not found.over
    )  # 105 tokens after, but not where the rule measures
    assert (found.lowest, found.lowest_tokens, found.best) == (2.0, 10, 1.0)
    assert not found.add(2.1, 6, 125) and found.over


def test_a_stop_says_where_the_lowest_of_all_trunks_was() -> None:
    found = Stopping.begun(Stop("web", 100, 25, lowest=2.0, lowest_tokens=110), 145)
    assert found.add(2.04, 6, 145, counts=False) and not found.add(2.06, 8, 200)
    assert not found.add(2.05, 9, 225) and found.over
    [line] = warnings_of({}, {"tokens_seen": 225, "stopping": found.facts})
    assert "lowest at 110 tokens (2.0000 nats per token)" in line
    assert "ends with its own lowest, of 145 tokens (2.0400)" in line
    own = told([3.0, 2.0, 2.5, 2.5, 2.5, 2.5])
    [line] = warnings_of({}, {"tokens_seen": 125, "stopping": own.facts})
    assert lowest_of(own.facts) == (25, 2.0)
    assert "lowest at 25 tokens (2.0000 nats per token); the trunk ends with the weights of then" in line


def test_kept_states_stay_while_a_checkpoint_may_need_them(tmp_path: Path) -> None:
    for step in (0, 10, 20, 30):
        (tmp_path / BEST / f"step-{step:08d}").mkdir(parents=True)
    assert no_longer_needed(tmp_path, 15, 25) == [0, 30]
    assert no_longer_needed(tmp_path, 5, 5) == [10, 20, 30]
    assert no_longer_needed(tmp_path, 30, 40) == [0, 10, 20]


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


@pytest.mark.parametrize("at", ["rename", "write_tables", "note_written", "write_bytes"])
def test_a_kill_while_the_outputs_are_written_pays_for_no_step_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    text = some_text(tmp_path / "text.json")
    whole = run(world, tmp_path / "whole", **asked(text))
    spec = world.spec(tmp_path / "work", **asked(text))

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if at == "rename":
            patch.setattr(writes, "read_journal", killed)  # right after it
        else:
            patch.setattr(writes, at, killed)
        run_here(spec)
    for _ in range(2):  # also if only what was finished is distrusted afterwards
        assert run_here(spec, lambda: pytest.fail("a step is taken again"))[0] == loop.DONE
        assert outputs(tmp_path / "work") == outputs(whole)
        (tmp_path / "work" / "result.json").unlink()


def test_few_states_are_kept_between_two_checkpoints(world: World, tmp_path: Path) -> None:
    text = tmp_path / "text.json"
    text.write_text(json.dumps({"web": [[EOT, *([7] * 40)]]}))  # learned better at each measurement
    work, there = tmp_path / "work", []

    def look() -> bool:
        there.append(sorted(path.name for path in (work / BEST).iterdir()))
        return False

    spec = world.spec(work, **asked(text), execution__checkpoint_every=1e9)
    assert run_here(spec, look)[0] == loop.DONE
    assert len({name for names in there for name in names if name.startswith("step-")}) > 3
    assert max(map(len, there)) <= 4  # two states, and their digests


def test_losses_that_are_not_finite_at_first_are_not_measured_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = some_text(tmp_path / "text.json")
    measure = Heldout.measure

    def without_loss(self: Heldout, model: Any, step: int, *more: Any) -> dict[str, Any]:
        line = measure(self, model, step, *more)
        return line | {"heldout/web": None} if step < 6 else line

    monkeypatch.setattr(Heldout, "measure", without_loss)
    whole = run(world, tmp_path / "whole", **asked(text))
    work = tmp_path / "work"
    spec = world.spec(work, **asked(text))
    for _ in range(4):
        assert run_here(spec, after_calls(2))[0] == loop.RESUMABLE
    assert run_here(spec)[0] == loop.DONE
    steps = [
        [json.loads(line)["step"] for line in (one / "stop.jsonl").read_text().splitlines()]
        for one in (whole, work)
    ]
    assert steps[0] == steps[1] and outputs(work) == outputs(whole)


def test_a_later_trunk_begins_without_a_measurement_that_counts(world: World, tmp_path: Path) -> None:
    text = some_text(tmp_path / "text.json")
    changes = asked(text)
    changes["identity__stop"] |= {
        "lowest": 100.0,
        "lowest_tokens": 0,
        "min_delta": 50.0,
    }  # undercut once only
    work = run(world, tmp_path / "work", **changes)
    first, second, *_ = [json.loads(line) for line in (work / "stop.jsonl").read_text().splitlines()]
    facts = json.loads((work / "result.json").read_text())["stopping"]
    assert first["tokens"] == 0 and facts["lowest_tokens"] == second["tokens"]
    assert facts["stopped"]["step"] == 0  # the state that it can go back to


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
