"""What the plan tells of training stages: the trainer's own rule, a rate from the store or called an estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.config import load_config
from flows.dag.plan import PlanRow, render
from flows.quote.training import ASSUMED_MFU, with_estimates
from flows.runs.checks import advice
from flows.services.doctor import intentions
from storage.errors import ConfigError
from tasks.training.device import memory
from tasks.training.device.activations import counter
from tasks.training.device.execution import resolve
from tasks.training.model import read_config, shape_of
from tasks.training.read_spec import parse_spec
from tasks.training.spec import Execution
from tests.support.smollm import config, smollm_home
from tests.support.training.world import World, make_corpus, make_tokenizer

ROWS = [
    PlanRow("base", None, None, None, "to build", "k"),
    PlanRow("train", None, 1, "400M", "open", None, ("waits for pack",)),
    PlanRow("decay", None, 1, "400M", "open", None, ("waits for train",)),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return smollm_home(tmp_path, monkeypatch)


def told(run: Any, **target: Any) -> list[dict[str, Any]]:
    return [row.training for row in with_estimates(run, ROWS, **target) if row.training is not None]


def test_a_line_for_each_training_stage(home: Path) -> None:
    trunk, branch = told(config(), memory=8 * 10**9, name="H100")
    assert trunk["line"].startswith("135M at 2048 in 8 GB: micro-batch ")
    assert " checkpointing, about " in trunk["line"] and "an estimate: 40% of 989 TFLOP/s" in trunk["line"]
    assert trunk["fits"] and trunk["peak_bytes"] < 8 * 10**9
    assert branch["tokens"] == pytest.approx(trunk["tokens"] / 9, rel=0.02)
    assert trunk["tokens"] + branch["tokens"] == 763 * 524288
    assert trunk["hours"] == pytest.approx(trunk["tokens"] / trunk["tokens_per_second"] / 3600)
    whole, _ = told(config(), memory=141 * 10**9, name="NVIDIA H200")
    assert (whole["micro_batch"], whole["gradient_checkpointing"]) == (52, "none")
    operations = 6 * 134_515_008 + 6 * 30 * 576 * 2048
    assert whole["tokens_per_second"] == pytest.approx(ASSUMED_MFU * 989e12 / operations, rel=0.05)
    assert whole["tokens_per_second"] > trunk["tokens_per_second"]
    assert "135M at 2048 in 8 GB" in render(with_estimates(config(), ROWS, 8 * 10**9, "H100"))


def test_it_is_what_the_trainer_resolves_to(home: Path, tmp_path: Path) -> None:
    run = config(precision="fp32", execution={"device": "cpu"}, batch_tokens=16384)
    trunk, _ = told(run)
    manifest, shards, sequences = make_corpus(tmp_path)
    world = World(
        tmp_path, home / "smollm", make_tokenizer(tmp_path / "tokenizer"), manifest, shards, sequences
    )
    spec = world.spec(tmp_path / "work", identity__sequence_length=2048, identity__sequences_per_step=8)
    identity = parse_spec(spec).identity
    model = read_config(home / "smollm", identity)
    found = resolve(Execution(device="cpu"), shape_of(model), identity, count=counter(model, identity))
    for name in ("micro_batch", "gradient_checkpointing"):
        assert trunk[name] == found[name]
    assert f"in {memory.host_memory() / 1e9:.0f} GB" in trunk["line"]
    assert "GFLOP/s on each of" in trunk["line"]


def test_what_is_not_known_is_said_so(home: Path) -> None:
    trunk, _ = told(config(), memory=24 * 10**9, name="Radeon VII")
    assert trunk["tokens_per_second"] is None and "tokens/s unknown" in trunk["line"]
    small = {"hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 2048}
    init = {"init": {**small, "tokenizer": {"vocabulary": 400}, "pretrain_tokens": "1M"}}
    trunk, _ = told(config(base=init), memory=8 * 10**9, name="H100")
    assert trunk["tokens_per_second"] is None and "no estimate" in trunk["line"]
    trunk, _ = told(config(), memory=10**9, name="H100")
    assert not trunk["fits"] and "it will not fit" in trunk["line"]
    trunk, _ = told(config(base="openai-community/gpt2"), memory=8 * 10**9, name="H100")
    assert trunk["line"] == "memory and speed: open until the base model is imported"
    with pytest.raises(ConfigError, match="--memory"):
        told(config(), name="H100")


def test_a_new_model_is_known_from_its_shape(home: Path) -> None:
    shape = {"hidden_size": 576, "layers": 30, "heads": 9, "kv_heads": 3, "intermediate_size": 1536}
    init = {
        "init": {**shape, "max_positions": 2048, "tokenizer": {"vocabulary": 49152}, "pretrain_tokens": "1B"}
    }
    rows = [PlanRow("train", None, 0, None, "open", None), *ROWS]
    new = [row.training for row in with_estimates(config(base=init), rows, 8 * 10**9, "H100") if row.training]
    old = told(config(), memory=8 * 10**9, name="H100")
    assert new[1:] == old
    assert new[0]["tokens"] == 1908 * 524288


def test_few_steps_are_warned_of_for_each_budget_and_the_base(home: Path) -> None:
    assert advice(config()) == []
    said = [line for line in advice(config(token_budgets=["10M", "30M", "100M"])) if "steps of" in line]
    assert len(said) == 2 and "10M has only 20 steps" in said[0] and "30M has only 58 steps" in said[1]
    assert said[0].endswith("18,432 would give 543")
    shape = {"hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 2048}
    init = {"init": {**shape, "tokenizer": {"vocabulary": 400}, "pretrain_tokens": "1M"}}
    assert any("pretrain_tokens 1M has only 2 steps" in line for line in advice(config(base=init)))
    assert json.dumps(said)


@pytest.mark.parametrize("kind", ["wsd", "rewarm"])
def test_a_warm_up_that_does_not_fit_the_budget_is_warned_of(home: Path, kind: str) -> None:
    def said(warmup: str | None, *budgets: str) -> list[str]:
        schedule = {"kind": kind} | ({"warmup_tokens": warmup} if warmup else {})
        run = config(token_budgets=list(budgets), batch_tokens=2048, schedule=schedule)
        return [line for line in advice(run) if "warmup" in line]

    [never] = said(None, "60K")
    assert "warmup_tokens 10M is longer than the training up to 60K" in never
    assert "never reached; a tenth of the budget would be 6K" in never
    reached = 100 * (27 if kind == "wsd" else 30) / 4883
    assert f"ends at {reached:.2g} % of training.learning_rate" in never
    [half] = said("30K", "60K", "1M")
    assert "takes 50 % of the steps of 60K" in half
    assert said("6K", "60K") == said(None, "100M") == said("0", "60K") == []


def test_the_demo_is_warned_of_nothing() -> None:
    for path in sorted((Path(__file__).resolve().parents[3] / "configs").glob("*.yaml")):
        assert advice(load_config(path)) == [], path.name


def test_doctor_names_what_does_not_fit(home: Path) -> None:
    run = config(token_budgets=["60K"], batch_tokens=2048)
    notes = list(intentions(run))
    assert [one.state for one in notes] == ["note"]
    assert "never reached" in notes[0].what and notes[0].do == "a tenth of the budget would be 6K"
