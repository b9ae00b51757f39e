"""A run from files to packing manifest, and its ledger: what came in and what became of it, stage by stage.

    python benchmarks/ledger.py [CONFIG] [--directory DIR]        # benchmarks/all_data.yaml: all of shared/data

Runs `onward run CONFIG --until pack` in a temporary directory (or in DIR, which is kept) and adds up the stages'
manifests. Exits with 1 if, at any stage, documents in are not documents out + dropped + held out, the input is not
the output of the stage before, or `dropped.parquet` has another number of rows; or if tokens are not conserved from
tokenize to pack. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tasks import stages

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ONWARD_TEST_DATA", ROOT.parent / "shared" / "data"))
STAGES = stages.CORPUS[1:]  # without extract: its sources are rows
BYTES = {"ingest": "bytes_out", "dedup": "bytes_out", "filter": "bytes_out", "decontaminate": "bytes_out"}


def run(config: Path, home: Path) -> dict[str, Any]:
    """The output of `onward run --json`."""
    text = config.read_text(encoding="utf-8").replace("../shared/data", str(DATA.resolve()))
    (home / config.name).write_text(text, encoding="utf-8")
    environment = {**os.environ, "ONWARD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", config.name, "--until", "pack", "--json"],
        cwd=home,
        env=environment,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def manifests(summary: dict[str, Any], store: Path) -> dict[str, list[dict[str, Any]]]:
    """By stage: the manifest, slice and directory of each of its artifacts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in summary["stages"]:
        path = store / row["path"]
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        manifest |= {"slice": row["slice"], "path": path}
        found.setdefault(row["stage"], []).append(manifest)
    return found


def documents(made: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[str]]:
    """Rows of the table of documents, and everything that does not add up."""
    import pyarrow.parquet as pq

    lines, wrong = [], []
    before: dict[int, int] = {}
    for stage in STAGES:
        total: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for one in made[stage]:
            stats = one["stats"]
            held = stats.get("documents_held_out", 0)
            if stats["documents_in"] != stats["documents_out"] + stats["documents_dropped"] + held:
                wrong.append(f"{stage}, slice {one['slice']}: in is not out + dropped + held out")
            if stage != "ingest" and stats["documents_in"] != before[one["slice"]]:
                wrong.append(f"{stage}, slice {one['slice']}: was not given what the stage before it gave")
            if (one["path"] / "dropped.parquet").exists():
                rows = pq.read_metadata(one["path"] / "dropped.parquet").num_rows
                if rows != stats["documents_dropped"]:
                    wrong.append(f"{stage}, slice {one['slice']}: dropped.parquet has {rows} rows")
            before[one["slice"]] = stats["documents_out"]
            reasons.update(stats.get("dropped_by_reason", {}))
            total.update(
                {
                    "in": stats["documents_in"],
                    "out": stats["documents_out"],
                    "dropped": stats["documents_dropped"],
                    "held": held,
                    "bytes": stats.get(BYTES.get(stage, ""), stats.get("bytes_in", 0)),
                    "tokens": stats.get("tokens", 0),
                }
            )
        top = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common(4))
        lines.append(
            f"| {stage} | {len(made[stage])} | {total['in']:,} | {total['out']:,} | {total['dropped']:,} "
            f"| {total['held']:,} | {total['bytes'] / 1e6:.1f} | {total['tokens'] / 1e6:.2f} "
            f"| {top or ('' if stage == 'tokenize' else 'none')} |"
        )
    return lines, wrong


def tokens(made: dict[str, list[dict[str, Any]]]) -> tuple[list[str], list[str]]:
    """Rows of the table of tokens by source, and everything that does not add up."""
    lines, wrong = [], []
    last = made["pack"][-1]["stats"]
    given = sum(one["stats"]["tokens"] for one in made["tokenize"])
    available = sum(source["tokens_available"] for source in last["sources"].values())
    if given != available:
        wrong.append(f"pack: {given} tokens were made, {available} were there")
    for name, source in last["sources"].items():
        left = source["tokens_placed"] + source["tokens_carried"] + source["tokens_not_taken"]
        if source["tokens_available"] + source["tokens_repeated"] != left:
            wrong.append(f"pack, {name}: available + repeated is not placed + carried + not taken")
        columns = ("available", "repeated", "placed", "carried", "not_taken")
        counts = " | ".join(f"{source['tokens_' + column]:,}" for column in columns)
        lines.append(f"| {name} | {counts} | {source['epochs']:.2f} |")
    return lines, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "benchmarks" / "all_data.yaml")
    parser.add_argument("--directory", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onward-ledger-") as directory:
        home = (chosen.directory or Path(directory)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        summary = run(chosen.config, home)
        store = next(home.glob("stores/*"))
        made = manifests(summary, store)
        documents_, wrong = documents(made)
        tokens_, wrong_tokens = tokens(made)
        for path in () if chosen.directory else home.rglob("*"):  # artifacts are read-only
            if path.is_dir():
                path.chmod(0o755)
    print(
        "| stage | slices | documents in | out | dropped | held out | MB of text out | M tokens | most dropped |"
    )
    print("\n".join(["| " + " | ".join(["---"] * 9) + " |", *documents_]))
    print("\n| source | tokens made | repeated | placed | carried on | not taken | epochs |")
    print("\n".join(["| " + " | ".join(["---"] * 7) + " |", *tokens_]))
    packed = made["pack"][-1]["stats"]
    print(
        f"\n{packed['sequences']:,} sequences, {packed['tokens']:,} tokens, {packed['padding_fraction']:.3%} padding, "
        f"{packed['documents_cut']:,} documents longer than a sequence cut, {packed['concatenation_cuts']:,} kept whole "
        f"that concatenate-and-cut would cut"
    )
    wrong += wrong_tokens
    print("\n".join(wrong) or "Everything adds up.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
