"""How far a quote holds: a configuration is rehearsed, then run, and both are set side by side, stage by stage.

    python benchmarks/quote.py DIRECTORY [CONFIG]     # DIRECTORY: a new project directory; CONFIG: the demo's

Each half can be run alone on a quiet machine: `--only rehearse`, then `--only run`, in the same directory. Seconds of
stages are those of the run's own summary. Prints a Markdown table; `in all` is from the start of the command to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("config", type=Path, nargs="?", default=ROOT / "configs" / "demo.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--only", choices=("rehearse", "run"))
    asked = parser.parse_args(arguments)
    home = asked.directory.resolve()
    home.mkdir(parents=True, exist_ok=True)
    for command in ("rehearse", "run"):
        if asked.only in (None, command):
            began = time.monotonic()
            answer = _onward(home, command, str(asked.config.resolve()), asked.overrides)
            answer["wall"] = time.monotonic() - began
            (home / f"{command}.json").write_text(json.dumps(answer), encoding="utf-8")
    if asked.only != "rehearse":
        _compare(
            *(
                json.loads((home / f"{command}.json").read_text(encoding="utf-8"))
                for command in ("rehearse", "run")
            )
        )


def _onward(home: Path, command: str, config: str, overrides: list[str]) -> dict[str, Any]:
    words = [sys.executable, "-m", "flows.cli", command, config, "--json"]
    for override in overrides:
        words += ["--set", override]
    environment = {
        **os.environ,
        "ONWARD_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _compare(rehearsed: dict[str, Any], done: dict[str, Any]) -> None:
    took: dict[str, float] = defaultdict(float)
    for stage in done["stages"]:
        if stage["state"] == "built":
            took[stage["stage"]] += stage["seconds"]
    print(f"rehearsed in {rehearsed['wall']:.0f} s\n")
    print("| stage | quoted | took | off |\n| --- | ---: | ---: | ---: |")
    for line in rehearsed["quote"]["lines"]:
        quoted = line["seconds"] or 0.0
        off = f"{took[line['stage']] / quoted - 1:+.0%}" if quoted else "–"
        print(f"| {line['stage']} | {quoted:.1f} s | {took[line['stage']]:.1f} s | {off} |")
    quoted = rehearsed["quote"]["seconds"]
    print(f"| in all | {quoted:.0f} s | {done['wall']:.0f} s | {done['wall'] / quoted - 1:+.0%} |")


if __name__ == "__main__":
    main(sys.argv[1:])
