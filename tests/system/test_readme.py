"""README's first steps, as they are written: a stranger's folder of notes, and the commands one after the other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.small import write_text

pytestmark = pytest.mark.slow


def first_steps() -> list[str]:
    """The lines of the section's block of commands."""
    section = (ROOT / "README.md").read_text().split("\n## First steps\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    return [line for line in block.splitlines() if line.strip()]


def test_the_first_steps_lead_to_a_report_with_a_verdict(tmp_path: Path, runs_share_a_server: object) -> None:
    notes, here = tmp_path / "stranger/notes", tmp_path / "clean"
    notes.mkdir(parents=True)
    here.mkdir()
    write_text(tmp_path / "words", 60)
    lines = (tmp_path / "words/domain-0.jsonl").read_text().splitlines()
    for number, line in enumerate(lines):
        (notes / f"note {number}{'.md' if number % 2 else '.txt'}").write_text(json.loads(line)["text"][:800])
    (here / ".venv").symlink_to(Path(sys.prefix))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONWARD_")}
    environment |= {"HOME": str(tmp_path / "stranger"), "PREFECT_HOME": str(tmp_path / "prefect")}
    environment["PREFECT_API_URL"] = runs_share_a_server.api_url  # type: ignore[attr-defined]
    install, *commands = first_steps()
    assert install.split() == ["make", "install"], "what it does, the tests run in"
    assert [command.split()[:2] for command in commands] == [
        [".venv/bin/onward", word] for word in ("init", "plan", "run")
    ]
    said = ""
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=here, env=environment, capture_output=True, text=True, timeout=600
        )
        said = done.stdout + done.stderr
        to_do = command.startswith(".venv/bin/onward plan ")
        assert done.returncode == (2 if to_do else 0), f"{command}: {said[-3000:]}"
        assert "Traceback" not in said
    page = Path(re.findall(r"^report: (.*)$", said, re.M)[0])
    assert page.is_relative_to(here / "stores/notes") and page.is_file()
    first = page.with_suffix(".md").read_text().split("\n## ")[0]
    assert re.search(r"perplexity on domain fell from [\d,.]+ to ", first, re.I), first
    assert "too few documents" not in first
