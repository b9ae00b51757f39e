"""Helpers for tests of stages: a draft that runs its shards in this process, and a stage run through a real store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.artifact import Artifact
from storage.draft import Draft
from storage.settings import Settings
from storage.store import Making, Request, Store
from storage.workers import Workers


def draft_in(directory: Path) -> Draft:
    """A draft in `directory`/draft."""
    return Draft(directory / "draft")


def artifact_of(
    module: Any, config: Settings, inputs: Any, store: Path, workers: Workers | None = None
) -> Artifact:
    """The artifact that a stage makes from a configuration and inputs, in the store at this path."""
    return Store(store).ensure(Request(module, config, inputs), Making(workers=workers)).artifact
