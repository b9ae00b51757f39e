"""What a rehearsal measured, as a file of the store: `<store>/.rehearsed/<name>-<run>.json`.

The plan of a run takes the newest one of the same machine and the same way to train. Budgets, rates of learning,
seeds and thresholds may have changed since: what a stage takes for a byte, a token or a question does not follow them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.config import RunConfig
from flows.quote.rates import Rates
from storage.atomic import write_bytes
from storage.provenance import host_name
from storage.workers import usable_cores
from tasks.models.config import resolve_precision

DIRECTORY = ".rehearsed"
_FORMAT = 1


@dataclass(frozen=True)
class Rehearsed:
    """Figures of one rehearsal. Seconds, and bytes."""

    run: str
    when: str
    """UTC, to the second, as ISO 8601."""
    budgets: Sequence[int]
    """In tokens, of the run that was quoted."""
    basis: Mapping[str, Any]
    rates: Rates
    start_seconds: float
    checkpoint_seconds: float
    """What a checkpoint takes from the steps beside which it is written."""
    checkpoint_bytes: float
    memory: Mapping[str, float] = field(default_factory=dict)
    """Peak of all processes together, by stage."""
    device_memory: float | None = None
    seconds: float = 0.0
    """Of the rehearsal itself."""
    quote: Mapping[str, Any] = field(default_factory=dict)
    """The quote of the run when it was rehearsed."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, which `of_json` reads back."""
        return {"format": _FORMAT, **vars(self), "rates": self.rates.to_json()}

    @classmethod
    def of_json(cls, raw: dict[str, Any]) -> Rehearsed:
        """Raises ValueError, TypeError and KeyError for anything but the result of `to_json`."""
        if raw.pop("format") != _FORMAT:
            raise ValueError("of another format")
        return cls(**{**raw, "rates": Rates.of_json(raw["rates"])})


def basis_of(run: RunConfig) -> dict[str, Any]:
    """What measured rates depend on, besides the text: the machine, the model, and the way to train and measure it."""
    asked, base = run.training.execution, run.model.base
    shape: Any = base
    if not isinstance(base, str):
        shape = {
            name: value for name, value in base.model_dump(mode="json").items() if name != "pretrain_tokens"
        }
    return {
        "host": host_name(),
        "cores": usable_cores(),
        "workers": run.corpus.execution.count,
        "executor": run.corpus.execution.executor,
        "device": asked.device,
        "processes": asked.processes * asked.nodes,
        "threads": asked.threads,
        "micro_batch": asked.micro_batch,
        "base": shape,
        "sequence_length": run.packing.sequence_length,
        "precision": resolve_precision(run.training),
        "measured_in": run.evaluation.precision,
        "overlap": run.evaluation.overlap,
        "document_masking": run.training.document_masking,
    }


def file_of(run: RunConfig, name: str) -> Path:
    """Where the rehearsal of a run is kept. `name`: of the run, with its digest."""
    return run.store_path / DIRECTORY / f"{name}.json"


def save(path: Path, rehearsed: Rehearsed) -> None:
    """Write or replace the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(rehearsed.to_json(), indent=1, ensure_ascii=False) + "\n").encode())


def newest(run: RunConfig) -> Rehearsed | None:
    """The newest rehearsal in the run's store that holds for it; None if there is none. What cannot be read is left out."""
    found = []
    basis = json.loads(json.dumps(basis_of(run)))
    for path in sorted((run.store_path / DIRECTORY).glob("[!.]*.json")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            one = Rehearsed.of_json(json.loads(path.read_bytes()))
            if one.basis == basis:
                found.append(one)
    return max(found, key=lambda one: one.when, default=None)
