"""The loader's memory, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT


def test_the_loaders_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """A shard of 320 MB is read through: pages come from the file, and the process's own memory stays as it was."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.training.read_through", str(tmp_path)],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shard"] > 320e6 and found["tokens"] > 0.9 * found["shard"] / 2
    assert found["anonymous"] < 24e6, found  # of which little more than one batch is the loader's
    assert found["file"] > 0.5 * found["shard"], (
        found
    )  # it was read, and can be dropped by the kernel at any time
