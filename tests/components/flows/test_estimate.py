"""What a plan imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.config import parse_config
from tests.support import ROOT
from tests.support.training.world import llama_config

SMOLLM = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    llama_config(**SMOLLM).save_pretrained(tmp_path / "smollm")
    return tmp_path


def config(base: Any = "smollm", **training: Any) -> Any:
    source = {"name": "text", "role": "domain", "weight": 1.0, "files": ["*.txt"]}
    given = {"token_budgets": ["400M"], "batch_tokens": 524288, "precision": "bf16", **training}
    raw = {
        "name": "test",
        "corpus": {"sources": [source]},
        "model": {"base": base},
        "packing": {"sequence_length": 2048},
        "training": given,
    }
    return parse_config(raw)


def test_torch_is_not_loaded_where_nothing_is_to_be_trained(home: Path) -> None:
    (home / "run.json").write_text(config().model_dump_json())
    program = (
        "import sys; from flows.config import parse_config; from flows.runs.estimate import with_estimates; "
        "from flows.dag.plan import PlanRow; import json; run = parse_config(json.load(open('run.json'))); "
        "rows = [PlanRow('train', None, 1, None, 'cached', 'k'), PlanRow('pack', None, 1, None, 'to build', 'k')]; "
        "assert with_estimates(run, rows) == rows; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=home, env={"PYTHONPATH": str(ROOT), "ONWARD_HOME": str(home)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr
