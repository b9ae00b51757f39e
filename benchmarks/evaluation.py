"""Evaluation compared with the harness's own command line: same model, rows, length and machine, in one run.

    python benchmarks/evaluation.py                              # shared model, some ten minutes on two cores
    python benchmarks/evaluation.py --model DIRECTORY --rows 100 # a larger model, fewer questions
    python benchmarks/evaluation.py --workloads all --repeats 1  # the scores of every benchmark side by side
    python benchmarks/evaluation.py --rows 20 --repeats 1        # a quick check that it runs

By default there are two workloads: `arc_easy` alone, and a mixture of requests of very different lengths (a word
after a passage, answers of a sentence, letters, passages of 200 tokens). Each side is a process of its own, timed
from start to scores. A second pair of runs with two questions each measures imports and loading; the difference is
the scoring. The command line runs with its default batch size (1) and with the other batch sizes given. Sides take
turns, and the median of the repeats counts. Scores are compared too: speed counts only if the scores are the same.
Prints Markdown tables and a JSON line for each row.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.evaluation import command_line  # noqa: E402

WORKLOADS = {
    "arc_easy": ("arc_easy",),
    "mixture": ("lambada_openai", "boolq", "hellaswag", "sciq", "mmlu_continuation", "mmlu"),
    "all": (*command_line.DEFINITIONS, "mmlu_continuation", "mmlu"),
}
WARM_UP_ROWS = 2
_LEAST_SECONDS = 0.3
"""Least seconds of scoring. With less, the noise in a process's start would matter too much."""
OURS = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from storage.artifact import Input
from storage.draft import Draft
from tasks.evaluation import evaluate
export, rows, work, length, names = json.loads(sys.argv[1])
files = tuple(path.name for path in Path(export).iterdir())
found = {{}}
for name in names:
    inputs = evaluate.harness_inputs(Input("base", "0" * 64, "export", "0" * 64, Path(export), files), name, rows)
    draft = Draft(Path(work) / name)
    stats = evaluate.run(evaluate.evaluate_config(name, None, 0, length, "cpu"), inputs, draft)
    found[name] = stats.metrics
print(json.dumps(found))
"""


@dataclass
class Row:
    """One side on one workload. Seconds are medians, by the clock and (`cpu`) over all cores."""

    workload: str
    side: str
    questions: int
    whole_seconds: float
    scoring_seconds: float
    scoring_cpu_seconds: float
    scoring_faster: float | None = None
    scoring_cpu_less: float | None = None
    whole_faster: float | None = None


@dataclass(frozen=True)
class Case:
    """The rows of one workload, and the harness's task files for them."""

    names: tuple[str, ...]
    rows: Path
    include: Path
    tasks: list[str]
    questions: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = ROOT.parent / "shared" / "data"
    parser.add_argument("--model", type=Path, default=shared / "models" / "stories260K-hf")
    parser.add_argument("--data", type=Path, default=shared / "benchmarks")
    parser.add_argument("--rows", type=int, default=400, help="questions of each benchmark (arc_easy: all)")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--batch-sizes", default="1,16", help="batch sizes of the command line; the first is its default"
    )
    parser.add_argument("--workloads", default="arc_easy,mixture", help=f"some of {', '.join(WORKLOADS)}")
    given = parser.parse_args()
    agreement: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        rows = [
            row
            for name in given.workloads.split(",")
            for row in workload(name, given, Path(work) / name, agreement)
        ]
    print(
        f"{platform.processor() or platform.machine()}, {given.threads} threads, model {given.model.name}\n"
    )
    print("| workload | side | questions | whole, s | scoring, s | CPU s | ours: scoring | CPU | whole |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        ratios = (row.scoring_faster, row.scoring_cpu_less, row.whole_faster)
        faster = " | ".join(f"{ratio:.2f} × faster" if ratio else "" for ratio in ratios)
        seconds = f"{row.whole_seconds:.1f} | {row.scoring_seconds:.1f} | {row.scoring_cpu_seconds:.1f}"
        print(f"| {row.workload} | {row.side} | {row.questions:,} | {seconds} | {faster} |")
    print("\n| benchmark | metric | here | by the command line |\n| --- | --- | --- | --- |")
    print("\n".join(dict.fromkeys(agreement)) + "\n")
    for row in rows:
        print(json.dumps(asdict(row)))


def workload(name: str, given: argparse.Namespace, work: Path, agreement: list[str]) -> list[Row]:
    """Both sides on one workload, taking turns. Adds a line for each benchmark to `agreement`."""
    count = 10**9 if name == "arc_easy" and given.rows >= 400 else given.rows
    full, small = (
        prepare(name, given.data, work / label, size)
        for label, size in (("full", count), ("small", WARM_UP_ROWS))
    )
    sides = ["ours", *(f"lm_eval, batch size {size}" for size in given.batch_sizes.split(","))]
    taken: dict[tuple[str, bool], list[tuple[float, float]]] = defaultdict(list)
    found: dict[str, Any] = {}
    for repeat in range(given.repeats):
        for number, side in enumerate(sides):
            for whole, case in ((True, full), (False, small)):
                began, used = time.monotonic(), cpu_of_children()
                scores = measure(side, case, given, work / f"{repeat}-{number}-{whole}")
                taken[side, whole].append((time.monotonic() - began, cpu_of_children() - used))
                found |= {side: scores} if whole else {}
    for side in sides[1:]:
        same(found["ours"], found[side])
    for (benchmark, metric), theirs in found[sides[1]].items():
        value = found["ours"][benchmark, metric]
        agreement.append(f"| {benchmark} | {metric} | {value:.6f} | {theirs:.6f} |")
    rows = []
    for side in sides:
        (whole, cpu), (start, start_cpu) = (
            tuple(map(statistics.median, zip(*taken[side, one], strict=True))) for one in (True, False)
        )
        scoring, scoring_cpu = max(whole - start, 1e-3), max(cpu - start_cpu, 1e-3)
        rows.append(Row(name, side, full.questions, whole, scoring, scoring_cpu))
    for row in rows[1:]:
        if (
            min(row.scoring_seconds, rows[0].scoring_seconds) > _LEAST_SECONDS
        ):  # otherwise the machine is busy, or there are too few rows
            row.scoring_faster = row.scoring_seconds / rows[0].scoring_seconds
            row.scoring_cpu_less = row.scoring_cpu_seconds / rows[0].scoring_cpu_seconds
        row.whole_faster = row.whole_seconds / rows[0].whole_seconds
    return rows


def cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare(name: str, data: Path, work: Path, rows: int) -> Case:
    """Write the rows as local copies, and the harness's own task definitions for them."""
    include, copies = work / "include", work / "rows"
    include.mkdir(parents=True)
    tasks, questions = [], 0
    for benchmark in WORKLOADS[name]:
        source = benchmark.removesuffix("_continuation")
        each = max(2, rows // 10) if source == "mmlu" else rows
        file = command_line.copy_rows(data, copies, source, each)
        questions += sum(1 for line in file.read_text(encoding="utf-8").splitlines() if line)
        if source == "mmlu":
            form = "default" if benchmark == source else "continuation"
            tasks.append(command_line.define_mmlu(include, form, file))
        else:
            tasks.append(command_line.define(include, benchmark, file))
    return Case(WORKLOADS[name], copies, include, tasks, questions)


def measure(side: str, case: Case, given: argparse.Namespace, work: Path) -> dict[tuple[str, str], float]:
    """Time one process from start to scores. Scores are by benchmark and metric."""
    work.mkdir(parents=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(given.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work),
    }
    if side == "ours":
        asked = json.dumps([str(given.model), str(case.rows), str(work), given.length, case.names])
        command = [sys.executable, "-c", OURS.format(root=str(ROOT)), asked]
    else:
        command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"]
        command += ["--model_args", f"pretrained={given.model},max_length={given.length}"]
        command += ["--tasks", ",".join(case.tasks), "--include_path", str(case.include)]
        command += ["--batch_size", side.rsplit(" ", 1)[1], "--output_path", str(work / "out")]
    done = subprocess.run(
        command, env=environment, cwd=work, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        sys.exit(f"{side}: {done.stderr[-3000:]}")
    if side == "ours":
        ours = json.loads(done.stdout.splitlines()[-1])
        return {(name, metric): value for name, metrics in ours.items() for metric, value in metrics.items()}
    found = json.loads(next((work / "out").rglob("results*.json")).read_text(encoding="utf-8"))
    results = {**found["results"], **found.get("groups", {})}
    return {
        (name, metric.removesuffix(",none")): value
        for name, task in zip(case.names, case.tasks, strict=True)
        for metric, value in results[task].items()
        if metric.endswith(",none") and "_stderr" not in metric
    }


def same(ours: dict[tuple[str, str], float], theirs: dict[tuple[str, str], float]) -> None:
    """Stop if the two sides' scores differ. Perplexities may differ by the rounding of batched sums."""
    for name, value in theirs.items():  # for groups, our side has more metrics
        if not math.isclose(ours.get(name, math.nan), value, rel_tol=1e-5, abs_tol=1e-9):
            sys.exit(f"{' · '.join(name)}: ours {ours.get(name)}, the command line {value}")


if __name__ == "__main__":
    main()
