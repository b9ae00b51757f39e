"""Freed memory is used again, in a process of its own: the setting holds to the end of a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

_SCRIPT = """
import resource, sys, torch
from tasks.training.device.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for turn in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones((1 + size) << 20) for size in range(12)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
"""Twelve times tensors of 4 to 48 MiB, as a step has them. The first turns find out where each of them fits."""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_pages_are_made_once() -> None:
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", _SCRIPT, how], cwd=ROOT, capture_output=True, check=True
            ).stdout
        )
        for how in ("given back", "kept")
    ]
    assert faults[0] > 10_000 and faults[1] < faults[0] / 20, faults  # 312 MiB are 79,872 pages
