"""A billion tokens of text, from files to a packing manifest: seconds, CPU time and memory, stage by stage.

    python benchmarks/billion_text.py TEXT
    python benchmarks/billion.py TEXT --base MODEL [--scale 1] [--kill-at SECONDS] [--directory DIR] [--plot FILE.png]

Runs `onward run --until pack` for 400M and then 1B tokens (times --scale) of the text that billion_text.py made, with the
tokenizer of MODEL and ten benchmarks to look for (../shared/data/benchmarks, ONWARD_TEST_DATA). Everything is as a person
would have it: Prefect's own server, a worker process for each core, files synced, in a new store in DIR (kept; default:
a temporary directory). With --kill-at every process of the run is killed after so many seconds, and the run is started
again.

Each second the whole tree of processes is looked at: its CPU seconds, those of ended processes included, and its
memory. That is the sum of proportional set sizes: a page that two processes share counts once, and pages of mapped
files count. A stage's CPU time is that of the tree between its begin and its end. Documents and tokens are added up as
in ledger.py; exits with 1 if any is missing. Prints Markdown tables; a JSON with all samples goes to --to, or to
DIR/billion.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from benchmarks import ledger

ROOT = ledger.ROOT

BENCHMARKS = (
    "mmlu, arc_easy, arc_challenge, openbookqa, hellaswag, piqa, winogrande, sciq, boolq, lambada_openai"
)
BUDGETS = (400_000_000, 1_000_000_000)
CONFIG = """name: billion
store: stores/billion
seed: 0
benchmark_files: {benchmarks}
corpus:
  sources:
    - {{name: educational, role: domain, weight: {domain}, files: ["{text}/educational/part-*"]}}
    - {{name: general, role: replay, weight: {replay}, files: ["{text}/general/part-*"]}}
  slice_bytes: {slice_bytes}
  decontaminate:
    benchmarks: [{names}]
model: {{base: {base}}}
packing: {{sequence_length: {length}, window_tokens: {window}}}
training:
  token_budgets: [{first}, {second}]
  batch_tokens: {batch}
"""


def write_config(
    home: Path, text: Path, base: Path, scale: float, slice_bytes: int, replay: float, length: int
) -> Path:
    """Write the run's configuration. Budgets shrink with the scale; slices do not."""
    first, second = (round(budget * scale) for budget in BUDGETS)
    path = home / "billion.yaml"
    path.write_text(
        CONFIG.format(
            benchmarks=(ledger.DATA / "benchmarks").resolve(),
            names=BENCHMARKS,
            text=text.resolve(),
            base=base.resolve(),
            slice_bytes=slice_bytes,
            window=max(round(64_000_000 * scale), 1_000_000),
            first=first,
            second=second,
            batch=524_288 if scale > 0.1 else 65_536,
            length=length,
            domain=round(1 - replay, 4),
            replay=replay,
        ),
        encoding="utf-8",
    )
    return path


class Watch:
    """Looks at a tree of processes each second. samples: seconds since 1970, CPU seconds, bytes, by name of process."""

    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.spent = 0.0  # by runs before this one

    def run(self, command: list[str], home: Path, kill_at: float | None) -> str | None:
        """What the command prints. None: it was killed, with all its processes, after `kill_at` seconds."""
        environment = {**os.environ, "ONWARD_HOME": str(home), "PYTHONPATH": str(ROOT)}
        with (home / "output.json").open("w+", encoding="utf-8") as output:
            began = time.monotonic()
            run = subprocess.Popen(command, cwd=home, env=environment, stdout=output, start_new_session=True)
            tree = psutil.Process(run.pid)
            while run.poll() is None:
                self._look(tree)
                if kill_at is not None and time.monotonic() - began > kill_at:
                    self._kill(tree)
                    run.wait()
                    self.spent = self.samples[-1]["cpu"]
                    return None
                time.sleep(1)
            if run.returncode:
                raise SystemExit(f"{' '.join(command)} ended with {run.returncode}")
            output.seek(0)
            return output.read()

    def _look(self, tree: psutil.Process) -> None:
        bytes_, cpu = {}, self.spent
        with contextlib.suppress(psutil.Error):
            for process in (tree, *tree.children(recursive=True)):
                with contextlib.suppress(psutil.Error, OSError, StopIteration, ValueError):
                    times = process.cpu_times()
                    cpu += times.user + times.system + times.children_user + times.children_system
                    rollup = (
                        Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
                    )
                    kilobytes = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
                    bytes_[f"{_name(process)} {process.pid}"] = kilobytes * 1024
        cpu = max(
            cpu, self.samples[-1]["cpu"] if self.samples else 0.0
        )  # a process that ends is not yet its parent's
        self.samples.append(
            {"at": time.time(), "cpu": cpu, "bytes": sum(bytes_.values()), "processes": bytes_}
        )

    @staticmethod
    def _kill(tree: psutil.Process) -> None:
        for process in (*tree.children(recursive=True), tree):
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)

    def between(self, begin: float, end: float) -> tuple[float, int]:
        """CPU seconds and the largest size of the tree in a span of time."""
        import numpy as np

        at = [one["at"] for one in self.samples]
        spent = np.interp([begin, end], at, [one["cpu"] for one in self.samples])
        inside = [one["bytes"] for one in self.samples if begin <= one["at"] <= end]
        nearest = min(self.samples, key=lambda one: abs(one["at"] - end))["bytes"]
        return float(spent[1] - spent[0]), max(inside, default=nearest)


def _name(process: psutil.Process) -> str:
    command = " ".join(process.cmdline())
    for sign, name in (
        ("services.server", "server"),
        ("spawn_main", "worker"),
        ("resource_tracker", "tracker"),
    ):
        if sign in command:
            return name
    return "run" if "flows.cli" in command else Path(command.split(" ")[0] or "?").name


def stage_rows(made: dict[str, list[dict[str, Any]]], watch: Watch) -> list[dict[str, Any]]:
    """What each stage took: {stage, artifacts, seconds, cpu, peak, bytes}."""
    rows = []
    for stage, artifacts in made.items():
        row = {"stage": stage, "artifacts": len(artifacts), "seconds": 0.0, "cpu": 0.0, "peak": 0, "bytes": 0}
        for one in artifacts:
            begin, end = (
                datetime.fromisoformat(one["provenance"][name]).timestamp() for name in ("started", "ended")
            )
            cpu, peak = watch.between(begin, end)
            row["seconds"] += end - begin
            row["cpu"] += cpu
            row["peak"] = max(row["peak"], peak)
            came = "bytes_out" if stage == "ingest" else "bytes_in"  # text; a file may lie in two slices
            row["bytes"] += one["stats"].get(came, 0)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], watch: Watch) -> str:
    """The table for results.md."""
    lines = [
        "| stage | artifacts | MB in | wall, s | CPU, s | MB per core-second | share of CPU | peak of the tree, GB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    total = watch.samples[-1]["cpu"]
    wall = watch.samples[-1]["at"] - watch.samples[0]["at"]
    other = {"stage": "between stages, start, end", "artifacts": "", "bytes": 0, "peak": 0}
    other |= {
        name: whole - sum(row[name] for row in rows) for name, whole in (("cpu", total), ("seconds", wall))
    }
    for row in (*rows, other):
        megabytes = row["bytes"] / 1e6
        rate = f"{megabytes / row['cpu']:.1f}" if megabytes and row["cpu"] else ""
        peak = f"{row['peak'] / 1e9:.2f}" if row["peak"] else ""
        lines.append(
            f"| {row['stage']} | {row['artifacts']} | {f'{megabytes:,.0f}' if megabytes else ''} | {row['seconds']:,.0f} "
            f"| {row['cpu']:,.0f} | {rate} | {row['cpu'] / total:.0%} | {peak} |"
        )
    most, read = max(one["bytes"] for one in watch.samples), max(row["bytes"] for row in rows) / 1e6
    lines.append(
        f"| **all** | | {read:,.0f} | **{wall:,.0f}** | {total:,.0f} | {read / total:.1f} | | **{most / 1e9:.2f}** |"
    )
    return "\n".join(lines)


def plot(watch: Watch, made: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Memory of the tree over time, and when each stage ran."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    begin = watch.samples[0]["at"]
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 4), height_ratios=(3, 2))
    minutes = [(one["at"] - begin) / 60 for one in watch.samples]
    kinds: dict[str, list[float]] = {}
    for number, one in enumerate(watch.samples):
        for name, size in one["processes"].items():
            kinds.setdefault(name.split()[0], [0.0] * len(minutes))[number] += size / 1e9
    above.stackplot(minutes, list(kinds.values()), labels=list(kinds))
    above.set_ylabel("GB (proportional)")
    above.legend(loc="upper left", fontsize=7, ncols=4)
    for height, (_, artifacts) in enumerate(made.items()):
        for one in artifacts:
            from_, to = (
                datetime.fromisoformat(one["provenance"][name]).timestamp() for name in ("started", "ended")
            )
            below.barh(height, (to - from_) / 60, left=(from_ - begin) / 60)
    below.set_yticks(range(len(made)), list(made), fontsize=7)
    below.set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def reasons(made: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Of the documents read, the share that is kept, and that each reason dropped."""
    read = sum(one["stats"]["documents_in"] for one in made["ingest"])
    found = {"kept": sum(one["stats"]["documents_out"] for one in made["tokenize"]) / read}
    for stage in ("dedup", "filter", "decontaminate"):
        for one in made[stage]:
            for name, count in one["stats"]["dropped_by_reason"].items():
                found[name] = found.get(name, 0.0) + count / read
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def main() -> int:
    from storage.counts import parse_count

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="a directory that billion_text.py wrote")
    parser.add_argument("--base", type=Path, required=True, help="a model's directory; its tokenizer is used")
    parser.add_argument("--scale", type=float, default=1.0, help="of the budgets")
    parser.add_argument("--replay", type=float, default=0.4, help="weight of the general source")
    parser.add_argument("--slice-bytes", type=parse_count, default=256_000_000)
    parser.add_argument("--length", type=int, default=1024, help="of a sequence, in tokens")
    parser.add_argument("--kill-at", type=float, help="seconds after which the run is killed, once")
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--to", type=Path)
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onward-billion-") as directory:
        home = (chosen.directory or Path(directory)).resolve()
        home.mkdir(parents=True, exist_ok=True)
        config = write_config(
            home, chosen.text, chosen.base, chosen.scale, chosen.slice_bytes, chosen.replay, chosen.length
        )
        command = [sys.executable, "-m", "flows.cli", "run", config.name, "--until", "pack", "--json"]
        watch = Watch()
        printed = watch.run(command, home, chosen.kill_at)
        if printed is None:
            print(f"killed after {chosen.kill_at:g} s; started again", file=sys.stderr)
            printed = watch.run(command, home, None)
        assert printed is not None
        made = ledger.manifests(json.loads(printed), home / "stores" / "billion")
        documents, wrong = ledger.documents(made)
        tokens, wrong_tokens = ledger.tokens(made)
        rows = stage_rows(made, watch)
        found = {"stages": rows, "samples": watch.samples, "shares": reasons(made), "kill_at": chosen.kill_at}
        (chosen.to or home / "billion.json").write_text(json.dumps(found), encoding="utf-8")
        if chosen.plot:
            plot(watch, made, chosen.plot)
        for path in () if chosen.directory else home.rglob("*"):  # artifacts are read-only
            if path.is_dir():
                path.chmod(0o755)
    print(table(rows, watch), "\n".join(documents), "\n".join(tokens), sep="\n\n")
    print("\n" + ", ".join(f"{name} {share:.2%}" for name, share in found["shares"].items()))
    wrong += wrong_tokens
    print("\n".join(wrong) or "Everything adds up.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
