"""onward compare, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.config import parse_config
from storage.runs import RunRecord, write_record
from storage.store import Store
from tests.support import ROOT
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


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    run_of(world, "small-aaaaaa", world.outcome(), training__learning_rate=1e-3)
    run_of(
        world,
        "small-bbbbbb",
        world.outcome(last=5),
        training__learning_rate=2e-3,
        training__execution={"threads": 2},
    )
    return world


def test_the_command_prints_one_answer(world: World, tmp_path: Path) -> None:
    def onward(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows.cli", "compare", *arguments]
        command += ["--store", str(world.root / "store")]
        return subprocess.run(
            command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
        )

    page = tmp_path / "page"
    done = onward("aaaaaa", "bbbbbb", "--json", "--to", str(page))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][1]["run"] == "small-bbbbbb" and (page / "compare.html").is_file()
    text = onward("aaaaaa", "bbbbbb")
    assert text.stdout.startswith("# A and B, compared") and text.returncode == 0
    wrong = onward("aaaaaa", "nowhere")
    assert wrong.returncode == 2 and "is no run" in wrong.stderr and wrong.stdout == ""
