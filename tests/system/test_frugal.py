"""A run with the whole optimizer family on: narrow weights and moments, a pull to the base, models that are means."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from storage.store import Store
from tests.support.begun import begin
from tests.support.small import digests, environment, write_config

pytestmark = pytest.mark.slow
ON: dict[str, Any] = {
    "model__base__init__hidden_size": 64,
    "training__precision": "bf16_weights",
    "training__optimizer": {"states": "8bit", "stochastic_rounding": True, "pull_to_base": 5.0},
    "training__average": {"checkpoints": 3, "every_tokens": 512},
}


def made(home: Path, *budgets: str, **over: Any) -> dict[str, dict[str, Any]]:
    """Make a run's models by the store alone; the manifests of its training stages by stage and key."""
    home.mkdir(exist_ok=True)
    config = write_config(home, budgets=budgets, **over)
    command = [sys.executable, "-m", "tests.support.driver", str(config), "decay"]
    answer = subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=900
    )
    assert answer.returncode == 0, answer.stderr[-4000:]
    return trained(home / "store")


def trained(store: Path) -> dict[str, dict[str, Any]]:
    """The manifests of a store's training stages by stage and key."""
    return {
        f"{artifact.stage}/{artifact.key}": json.loads((artifact.path / "manifest.json").read_bytes())
        for artifact in Store(store).artifacts()
        if artifact.stage in ("train", "decay")
    }


def test_two_budgets_at_once_are_one_after_the_other_and_keys_name_the_base(tmp_path: Path) -> None:
    at_once = made(tmp_path / "once", "8K", "20K", **ON)
    begin(tmp_path / "once", tmp_path / "later")
    one_first = made(tmp_path / "later", "8K", **ON)
    later = made(tmp_path / "later", "8K", "20K", **ON)
    assert one_first.keys() < later.keys() == at_once.keys()
    direct, extended = digests(tmp_path / "once" / "store"), digests(tmp_path / "later" / "store")
    assert {key: extended[key] for key in direct} == direct

    zero = [m for m in at_once.values() if m["config"]["kind"] == "pretrain"]
    rounds = [m for m in at_once.values() if m["config"]["kind"] != "pretrain"]
    assert (len(zero), len(rounds)) == (1, 4)
    assert zero[0]["inputs"]["base"] is None and zero[0]["config"]["optimizer"]["pull_to_base"] == 0
    base = zero[0]["parts"]["export"]["digest"]
    assert {m["inputs"]["base"]["digest"] for m in rounds} == {base}
    averaged = {m["config"]["kind"]: m["config"]["average"] for m in at_once.values()}
    expected = {"checkpoints": 3, "every_steps": 2}
    assert averaged == {"pretrain": None, "trunk": None, "decay": expected}
    for stage in ("train", "decay"):
        for path in (tmp_path / "once" / "store" / stage).glob("[0-9a-f]*/*/model.safetensors"):
            assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}


def test_without_a_pull_no_key_names_the_base(reference_run: Path) -> None:
    found = trained(reference_run / "store")
    assert len(found) == 5
    assert {m["inputs"]["base"] for m in found.values()} == {None}
    assert all("base" not in m["config"] for m in found.values())
