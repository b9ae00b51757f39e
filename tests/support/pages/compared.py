"""Runs to be compared: their reports and their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.config import parse_config
from storage.runs import RunRecord, write_record
from storage.store import Store
from tests.support.pages.report_world import World, made
from tests.support.runs import minimal


def run_of(world: World, name: str, outcome: Any, **over: Any) -> RunRecord:
    """A run that came to `outcome`: its report in the store, and its record."""
    report, _ = made(world, outcome)
    config = parse_config(minimal(**over)).model_dump(mode="json")
    record = RunRecord(
        name, name.rpartition("-")[0], config, ((report.stage, report.key),), state="completed"
    )
    write_record(Store(world.root / "store"), record)
    return record


def two_runs_in(root: Path) -> World:
    """Two runs that differ in the learning rate and in threads."""
    world = World(root)
    run_of(world, "small-aaaaaa", world.outcome(), training__learning_rate=1e-3)
    run_of(
        world,
        "small-bbbbbb",
        world.outcome(last=5),
        training__learning_rate=2e-3,
        training__execution={"threads": 2},
    )
    return world
