"""What a model's card says beyond its artifacts: licences from the runs that made it, and the newest report that has it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from storage.artifact import Artifact
from storage.errors import DamagedArtifact
from storage.runs import RunRecord, read_records
from storage.store import Store
from tasks.models.card import About
from tasks.pages.report import report


def about_of(store: Store, model: Artifact) -> About:
    """What the runs of a store know of a model: those that name it among their artifacts."""
    runs = [one for one in read_records(store) if (model.stage, model.key) in one.artifacts]
    bases: dict[str, str] = {}
    chats: set[str] = set()
    licences: dict[str, str] = {}
    for run in runs:
        trained, added = _bases_of(store, run)
        chats |= added
        for section, keys in (("model", trained), ("merge", added)):
            if licence := (run.config.get(section) or {}).get("licence"):
                bases |= dict.fromkeys(keys, str(licence))
        for source in (run.config.get("corpus") or {}).get("sources") or ():
            if source.get("licence"):
                licences[str(source["name"])] = str(source["licence"])
    return About(bases, frozenset(chats), licences, _report_of(store, runs, model))


def _bases_of(store: Store, run: RunRecord) -> tuple[set[str], set[str]]:
    """Keys of the bases that a run trains, and of those that it adds the difference of: its chat model.

    Trunks begin at the one, and what no trunk begins at is the other. Before there is a trunk there is no chat model.
    """
    bases = {key for stage, key in run.artifacts if stage == "base"}
    trained = set()
    for stage, key in run.artifacts:
        if stage == "train":
            with contextlib.suppress(DamagedArtifact):
                trunk = store.lookup(stage, key)
                if trunk is not None and (start := trunk.manifest.inputs.get("start")):
                    trained.add(str(start["key"]))
    trained &= bases
    return (trained, bases - trained) if trained else (bases, set())


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
