"""How long one waits where there is nothing to do: a plan, a cached run, and `onward up`.

    python benchmarks/starting.py [CONFIG] [--home DIR] [--rounds 5] [--set KEY=VALUE …]

Makes the run of CONFIG (the demo) in a fresh home, or finds it in `--home`. Then it measures whole commands, from the start
of Python to its end, in rounds: `plan`, `run` alone (with a Prefect server of its own), `up`, `run` beside those servers,
`down`. Before each `up` nothing of Onward's runs. Prints a JSON line and a table of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_SETTLED_SECONDS = 5.0
"""After `up`: its worker and the first sweep are still at work when it returns."""
COMMANDS = ("plan", "run, alone", "up", "run, beside servers", "down")


def timed(home: Path, *arguments: str) -> float:
    """Wall seconds of a command, which must succeed."""
    environment = {**os.environ, "ONWARD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.monotonic() - began


def free_ports() -> tuple[str, str]:
    """Two ports that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return str(one.getsockname()[1]), str(other.getsockname()[1])


def measure(home: Path, config: str, over: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    prefect, mlflow = free_ports()
    for _ in range(rounds):
        found["plan"].append(timed(home, "plan", config, *over))  # fails where there is work to do
        found["run, alone"].append(timed(home, "run", config, *over))
        found["up"].append(timed(home, "up", config, "--prefect-port", prefect, "--mlflow-port", mlflow))
        time.sleep(_SETTLED_SECONDS)
        try:
            found["run, beside servers"].append(timed(home, "run", config, *over))
        finally:
            found["down"].append(timed(home, "down"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--home", type=Path, help="where the run is finished already")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="over", metavar="KEY=VALUE")
    chosen = parser.parse_args()
    config = str(chosen.config.resolve())
    over = [word for one in chosen.over for word in ("--set", one)]
    with tempfile.TemporaryDirectory(prefix="onward-starting-") as directory:
        home = (chosen.home or Path(directory)).resolve()
        timed(home, "run", config, *over)
        found = measure(home, config, over, chosen.rounds)
    print(json.dumps({name: [round(one, 2) for one in seconds] for name, seconds in found.items()}))
    for name, seconds in found.items():
        print(f"{name:20} {statistics.median(seconds):5.1f} s  ({min(seconds):.1f}–{max(seconds):.1f})")


if __name__ == "__main__":
    main()
