"""The names of a run, and a configuration in a few words. Light to import."""

from __future__ import annotations

import hashlib
from typing import Any

from flows.config import RunConfig
from storage.counts import count_text
from storage.keys import canonical_json
from storage.paths import from_home
from storage.settings import identity_of


def run_id(run: RunConfig) -> str:
    """Six hex digits that identify the configuration: its identity, and the names of its base, sources and benchmarks."""
    named = _named(run)
    if run.benchmark_files is not None:
        named["benchmarks"] = from_home(run.benchmark_files)
    return _digits(named)


def id_before(run: RunConfig) -> str:
    """The digits that 0.1.0 gave the configuration: the same for all directories of benchmarks."""
    return _digits(_named(run))


def _named(run: RunConfig) -> dict[str, Any]:
    model = run.model.model_dump(mode="json", exclude={"licence"})
    if isinstance(run.model.base, str):
        model["base"] = from_home(run.model.base)
    return {
        "identity": identity_of(run),
        "base": model,
        "files": [[from_home(pattern) for pattern in source.files or ()] for source in run.corpus.sources],
        "revisions": [source.hub.revision for source in run.corpus.sources if source.hub],
    }


def _digits(named: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(named)).hexdigest()[:6]


def run_name(run: RunConfig) -> str:
    """`edu-125m · 400M→1B · 3f9a2c`."""
    budgets = "→".join(count_text(budget) for budget in run.training.token_budgets)
    return f"{run.name} · {budgets} · {run_id(run)}"


def summary_of(run: RunConfig) -> dict[str, str]:
    """A configuration in a few words, for people: what is read, which model, how much, and when it is measured."""
    training = run.training
    base = run.model.base if isinstance(run.model.base, str) else "a new model"
    sources = ", ".join(f"{source.name} ({source.role}, {source.weight:g})" for source in run.corpus.sources)
    budgets = " → ".join(count_text(budget) for budget in training.token_budgets)
    return {
        "base": base,
        "sources": sources,
        "budgets": f"{budgets} tokens",
        "batch": f"{training.batch_tokens:,} tokens",
        "learning rate": f"{training.learning_rate:g}, {training.schedule.kind}",
        "sequence length": f"{run.packing.sequence_length:,} tokens",
        "seed": str(run.seed),
    }
