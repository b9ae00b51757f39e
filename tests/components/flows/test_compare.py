"""onward compare, as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.pages.compared import two_runs_in
from tests.support.pages.report_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return two_runs_in(tmp_path)


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
