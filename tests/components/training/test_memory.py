"""The memory that a trainer takes, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.training.read_spec import parse_spec
from tasks.training.spec import Identity
from tests.support import ROOT
from tests.support.training.world import World


@pytest.fixture
def identity(world: World, tmp_path: Path) -> Identity:
    return replace(parse_spec(world.spec(tmp_path)).identity, sequence_length=2048, precision="bf16")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "full"])
def test_a_trainer_takes_what_the_rule_predicts_and_no_more(tmp_path: Path, mode: str) -> None:
    order = {"device": "cpu", "shape": "llama-9m", "length": 512, "micro": 4, "steps": 3, "fused": True}
    order |= {"name": mode, "root": str(tmp_path / "world"), "whole_logits": False}
    order |= {"changes": {"identity.precision": "fp32", "execution.gradient_checkpointing": mode}}
    script = ROOT / "benchmarks" / "memory.py"
    for making in (True, False):
        row = json.dumps({**order, "make": making})
        answer = subprocess.run([sys.executable, str(script), "--row", row], capture_output=True, text=True)
        assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["peak"] - (192 << 20) < found["predicted"] < 1.4 * found["peak"]
