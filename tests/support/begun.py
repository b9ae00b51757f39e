"""Stores in which a run has not come to its budgets yet, made from one in which it has."""

from __future__ import annotations

import shutil
from pathlib import Path

from storage.store import Store


def begin(source: Path, home: Path, store: str = "store") -> None:
    """Copy a finished run's text and store, without what its budgets made: no trunk, no decay, nothing of either.

    What is left: the corpus stages, the tokenizer, the base, its training in round 0, and what was measured of that.
    """
    if not (home / "text").exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source / "text", home / "text")
    root = source / "store"
    manifests = {
        artifact.path: (artifact, (artifact.path / "manifest.json").read_text())
        for artifact in Store(root).artifacts()
    }
    dropped = {
        artifact.key
        for artifact, _ in manifests.values()
        if artifact.stage in ("decay", "data", "report")
        or (artifact.stage == "train" and artifact.manifest.config["kind"] != "pretrain")
    }
    assert dropped
    for path, (_, text) in manifests.items():
        if not any(key in text for key in dropped):
            shutil.copytree(path, home / store / path.relative_to(root), symlinks=True)
