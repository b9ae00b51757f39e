"""What orchestration costs: the share of a run's wall time outside the bodies of its stages, and a fully cached
run.

    python benchmarks/orchestration.py [CONFIG] [--cached-runs 5]

Runs CONFIG (the demo) in a fresh directory with `onward run --json`, then again with everything cached. The wall
time covers the whole command, including the start of Python and of its own Prefect server. A stage's body lasts
from its request until its artifact is committed. Prints a JSON line and a sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def timed_run(home: Path, config: Path) -> tuple[float, dict[str, Any]]:
    """Wall seconds of `onward run --json`, and its output."""
    environment = {**os.environ, "ONWARD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    answer = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(config), "--json"],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    return time.monotonic() - began, json.loads(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--cached-runs", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onward-orchestration-") as directory:
        wall, summary = timed_run(Path(directory), chosen.config.resolve())
        inside = sum(stage["seconds"] for stage in summary["stages"])
        again = []
        for _ in range(chosen.cached_runs):
            seconds, repeated = timed_run(Path(directory), chosen.config.resolve())
            if {stage["state"] for stage in repeated["stages"]} != {"cached"}:
                raise SystemExit("the second run made something again")
            again.append(seconds)
    outside = 1 - inside / wall
    row = {
        "wall_seconds": round(wall, 1),
        "inside_stages_seconds": round(inside, 1),
        "outside_share": round(outside, 4),
        "stages": len(summary["stages"]),
        "cached_seconds": [round(seconds, 2) for seconds in again],
    }
    print(json.dumps(row))
    print(
        f"{outside:.1%} of {wall:.0f} s outside the bodies of {row['stages']} stages; "
        f"all cached: {statistics.median(again):.1f} s (median of {len(again)})"
    )


if __name__ == "__main__":
    main()
