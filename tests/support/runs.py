"""Configurations for the tests of flows."""

from __future__ import annotations

from flows.config import RunConfig, parse_config


def run_with(budgets: list[int], decay_fraction: float = 0.1, schedule: dict | None = None) -> RunConfig:
    """A configuration with these budgets; a step is 16 sequences of 256 tokens."""
    return parse_config(
        {
            "name": "small",
            "corpus": {"sources": [{"name": "a", "role": "domain", "weight": 1, "python_docs": "domain"}]},
            "model": {"base": "somewhere/model"},
            "packing": {"sequence_length": 256},
            "training": {
                "token_budgets": budgets,
                "batch_tokens": 4096,
                "schedule": schedule
                or {"kind": "wsd", "warmup_tokens": 4096, "decay_fraction": decay_fraction},
            },
        }
    )


def minimal(**over) -> dict:
    raw = {
        "name": "small",
        "corpus": {"sources": [{"name": "a", "role": "domain", "weight": 1, "python_docs": "domain"}]},
        "model": {"base": "somewhere/model"},
        "packing": {"sequence_length": 256},
        "training": {"token_budgets": ["400K", "1M"], "batch_tokens": "4096", "learning_rate": "5e-4"},
    }
    for dotted, value in over.items():
        *path, last = dotted.split("__")
        node = raw
        for step in path:
            node = node.setdefault(step, {})
        node[last] = value
    return raw
