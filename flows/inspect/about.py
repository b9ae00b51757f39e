"""What a model's card says beyond its artifacts: licences from the runs that made it, and the newest report that has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from storage.artifact import Artifact
from storage.runs import RunRecord, read_records
from storage.store import Store
from tasks.models.card import About
from tasks.pages.report import report


def about_of(store: Store, model: Artifact) -> About:
    """What the runs of a store know of a model: those that name it among their artifacts."""
    runs = [one for one in read_records(store) if (model.stage, model.key) in one.artifacts]
    licence, licences = None, {}
    for run in runs:
        licence = (run.config.get("model") or {}).get("licence") or licence
        for source in (run.config.get("corpus") or {}).get("sources") or ():
            if source.get("licence"):
                licences[str(source["name"])] = str(source["licence"])
    return About(licence, licences, _report_of(store, runs, model))


def _report_of(store: Store, runs: list[RunRecord], model: Artifact) -> Mapping[str, Any] | None:
    """The content of the newest report that has the model; None if there is none."""
    keys = {key for run in runs for stage, key in run.artifacts if stage == report.STAGE}
    found = [one for key in sorted(keys) if (one := store.lookup(report.STAGE, key)) is not None]
    found.sort(key=lambda one: str(one.manifest.provenance.get("ended", "")), reverse=True)
    for one in found:
        if model.key in _models_of(one):
            facts: Mapping[str, Any] = json.loads((one.path / "report.json").read_bytes())
            return facts
    return None


def _models_of(made: Artifact) -> Iterator[str]:
    inputs = made.manifest.inputs
    for one in (*inputs.get("models", ()), *(inputs.get("merging") or {}).get("models", ())):
        yield str(one["key"])
