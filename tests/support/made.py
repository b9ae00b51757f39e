"""A whole small run in a store, that tests only read, and told to a tracker as a flow would.

`python made.py STORE ADDRESS FLOW_RUN EXPERIMENT [PAUSE]` tells it in a process of its own, that can be killed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flows.dag.call import Call
from flows.tracking.tracker import Tracked, Tracker
from storage.artifact import Artifact
from storage.store import Store

REGISTERED = "small-model"
NAMES = ("base", "8K", "20K")
GROUPS = {"continuation": "domain"}
ROLES = {"domain": "domain", "general": "replay"}
URL = "http://127.0.0.1:4200/runs/flow-run/a1"


@dataclass
class Made:
    """The store of a run for two budgets, with the models that its report names."""

    home: Path
    store: Store
    artifacts: dict[str, Artifact]
    models: list[Any]
    report: Artifact
    items: dict[str, str]
    """Benchmark or source of an evaluation, by its key."""

    def tracker(
        self,
        address: str,
        flow_run: str,
        experiment: str = "small",
        warn: Callable[[str], None] | None = None,
    ) -> Tracker:
        """A tracker of a flow run of this run."""
        tags = {"prefect.flow_run": flow_run, "prefect.url": URL, "onward.run": "3f9a2c"}
        local = address.startswith("sqlite:///")  # MLflow's own choice would be the working directory
        tracked = Tracked(
            experiment,
            "3f9a2c",
            "small · 8K→20K · 3f9a2c",
            address,
            Path(address.removeprefix("sqlite:///")).parent / "files" if local else None,
            {"seed": "3"},
            tags,
            "note",
            f"{REGISTERED}-{experiment}",
        )
        return Tracker(tracked, self.store, warn or _fail)

    def ordered(self) -> list[Artifact]:
        """As they were made."""
        return sorted(self.artifacts.values(), key=lambda one: one.manifest.provenance["started"])

    def stage(self, tracker: Tracker, artifact: Artifact) -> None:
        """Tell the tracker that a stage began and ended."""
        call = self.call(artifact)
        tracker.listen("begin", call, None)
        tracker.listen("end", call, artifact)

    def call(self, artifact: Artifact) -> Call:
        """The artifact's stage, as the flow knows it."""
        request: Any = SimpleNamespace(stage=artifact.stage, key=artifact.key)
        return Call(request, None, 1, self.items.get(artifact.key), began=time.time())

    def tell(self, tracker: Tracker, pause: float = 0.0) -> None:
        """Tell the tracker of the whole run."""
        for artifact in self.ordered():
            self.stage(tracker, artifact)
            time.sleep(pause)
        self.tell_end(tracker)

    def tell_end(self, tracker: Tracker) -> None:
        """Tell it of models, scores and report."""
        tracker.measured(self.models, NAMES)
        tracker.champion(self.models, NAMES, GROUPS, ROLES)
        tracker.files(self.report)


def _fail(words: str) -> None:
    raise AssertionError(words)


def opened(home: Path, store: Path) -> Made:
    """The run that a store holds."""
    found = Store(store)
    artifacts = {one.key: one for one in found.artifacts()}
    report = next(one for one in artifacts.values() if one.stage == "report")
    inputs = report.manifest.inputs
    items: dict[str, str] = {}
    models = []
    for entry in inputs["models"]:
        name = entry["name"]
        scores = {item: artifacts[one["key"]] for item, one in inputs["scores"][name].items()}
        perplexity = {item: artifacts[one["key"]] for item, one in inputs["perplexity"][name].items()}
        items |= {one.key: item for item, one in (*scores.items(), *perplexity.items())}
        export = artifacts[entry["key"]]
        models.append(
            SimpleNamespace(
                name=name,
                tokens=entry["tokens"],
                export=export,
                scores=scores,
                perplexity=perplexity,
                journals=_journals(export, artifacts),
            )
        )
    return Made(home, found, artifacts, models, report, items)


def _journals(export: Artifact, artifacts: dict[str, Artifact]) -> list[Artifact]:
    """Of the training segments after the base, oldest first."""
    found: list[Artifact] = []
    at: Artifact | None = export
    while at is not None and at.stage in ("train", "decay") and at.manifest.config["kind"] != "pretrain":
        found.insert(0, at)
        at = artifacts.get(at.manifest.inputs["start"]["key"])
    return found


def main() -> None:
    """Tell a run, and wait to be killed."""
    store, address, flow_run, experiment, *pause = sys.argv[1:]
    os.environ.setdefault("DO_NOT_TRACK", "true")
    made = opened(Path(store).parent, Path(store))
    tracker = made.tracker(address, flow_run, experiment, lambda words: None)
    tracker.call_with_parent(lambda run, _: print("parent", run, flush=True))
    tracker.start()
    made.tell(tracker, float(pause[0]) if pause else 0.0)
    print("told", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
