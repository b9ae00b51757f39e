"""A run that goes on from a model of SmolLM2-135M's shape, for what is told of it before it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.config import parse_config
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


def smollm_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of runs, and in it the configuration of the model, without weights."""
    monkeypatch.setenv("ONWARD_HOME", str(home))
    llama_config(**SMOLLM).save_pretrained(home / "smollm")
    return home


def config(base: Any = "smollm", **training: Any) -> Any:
    """A run of one source and one budget; `training` over what its section says."""
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
