"""Does the forecast of a later budget come true? `python -m benchmarks.forecast DIRECTORY`.

A small new model is trained on Python's own documentation and sources to a first budget and to four times as much, with
five training seeds: whole runs, in a store below DIRECTORY. After the first budget each run said what held-out loss the
second one would end with, and an interval; this prints both beside what happened, and beside the guess that nothing
changes any more. `--seeds N`, `--first 250K`. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from storage.counts import count_text, parse_count

_TIMES = 4


def configuration(directory: Path, first: int) -> Path:
    """The run's file: a model of 1.3M parameters, measured every hundredth of its budgets."""
    raw: dict[str, Any] = {
        "name": "forecast",
        "store": str(directory / "store"),
        "corpus": {
            "sources": [
                {"name": "domain", "role": "domain", "weight": 0.8, "python_docs": "domain"},
                {"name": "general", "role": "replay", "weight": 0.2, "python_docs": "general"},
            ],
            "slice_bytes": "12M",
            "holdout_fraction": 0.02,
            "filter": {"language": "any", "gopher": False, "c4": False, "fineweb": False},
            "decontaminate": {"benchmarks": []},
        },
        "model": {
            "base": {
                "init": {
                    "hidden_size": 128,
                    "layers": 4,
                    "heads": 4,
                    "max_positions": 256,
                    "tokenizer": {"vocabulary": 2048},
                    "pretrain_tokens": "16K",
                }
            }
        },
        "packing": {"sequence_length": 256},
        "training": {
            "token_budgets": [first, _TIMES * first],
            "batch_tokens": 4096,
            "learning_rate": 2e-3,
            "schedule": {"kind": "wsd", "warmup_tokens": first // 20, "decay_fraction": 0.1},
            "precision": "fp32",
            "execution": {"device": "cpu", "heldout_every_tokens": max(4096, first // 30)},
        },
        "evaluation": {"domain": [], "general": [], "own": [], "sample_tokens": 0},
    }
    path = directory / "forecast.yaml"
    path.write_text(json.dumps(raw, indent=1), encoding="utf-8")
    return path


def run(directory: Path, config: Path, seeds: int) -> list[dict[str, Any]]:
    """The outlooks of every seed's run, as their pages have them."""
    command = [sys.executable, "-m", "flows.cli", "run", str(config), "--json"]
    command += ["--seeds", str(seeds)] if seeds > 1 else []
    environment = {**os.environ, "ONWARD_HOME": str(directory), "DO_NOT_TRACK": "true", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    answer = json.loads(done.stdout)
    found = []
    for one in answer.get("runs", [answer]):
        page = directory / "store" / "runs" / f"report-{Path(one['report']).name}" / "outlook.json"
        found.append({"seed": one.get("seed", 0), "outlook": json.loads(page.read_text(encoding="utf-8"))})
    return found


def table(found: list[dict[str, Any]], first: int) -> str:
    """A Markdown table: a row for each seed and source; below it how often the intervals held."""
    later = count_text(_TIMES * first)
    lines = [
        f"| seed | text | at {count_text(first)} | forecast for {later} | came to | held |",
        "| ---: | --- | ---: | ---: | ---: | --- |",
    ]
    held, errors, guesses, refused = [], [], [], []
    for one in found:
        for source in one["outlook"]:
            start = source["models"][0][2]
            told = [each for each in source["foretold"] if each["happened"] is not None]
            if not told:
                refused.append(source["why"])
                lines.append(
                    f"| {one['seed']} | {source['source']} | {start:.3f} | cannot tell: {source['why']} | | |"
                )
                continue
            [each] = told
            expected, happened = each["expected"], each["happened"]
            held.append(expected["low"] <= happened <= expected["high"])
            errors.append(abs(expected["value"] - happened))
            guesses.append(abs(start - happened))
            interval = f"{expected['value']:.3f} [{expected['low']:.3f}, {expected['high']:.3f}]"
            lines.append(
                f"| {one['seed']} | {source['source']} | {start:.3f} | {interval} | {happened:.3f} | "
                f"{'yes' if held[-1] else 'no'} |"
            )
    if held:
        lines += [
            "",
            f"{sum(held)} of {len(held)} intervals (95 %) held what happened; mean error {np.mean(errors):.3f} nats "
            f"per token, of the guess that nothing changes any more {np.mean(guesses):.3f}; {len(refused)} times it "
            "could not tell.",
        ]
    return "\n".join(lines)


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=parse_count, default=250_000, help="tokens of the first budget")
    asked = parser.parse_args()
    directory = asked.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    first = int(asked.first)
    print(table(run(directory, configuration(directory, first), asked.seeds), first))


if __name__ == "__main__":
    main()
