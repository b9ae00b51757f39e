"""Evaluation compared with the harness's own command line: same model, rows, length and machine, in one run.

    python benchmarks/evaluation.py                          # SmolLM2-135M, 100 questions of each benchmark, half an hour
    python benchmarks/evaluation.py --questions 1000         # as many as the published figures have
    python benchmarks/evaluation.py --workloads hellaswag --sides fp32 --batch-sizes 8
    python benchmarks/evaluation.py --small                  # a model of 260K parameters, where start-up decides
    python benchmarks/evaluation.py --small --workloads all  # the scores of every benchmark side by side

The sides are Onward and the harness, each in fp32 and in bf16; the harness with each of the given batch sizes, and by
its default in the precision of the model's file. Each side is a process of its own, timed from start to scores. A
process with two questions measures imports and loading; the difference is the scoring. Sides take turns; the
median of the repeats counts. Answers are compared question by question: the table has the number of questions whose
score differs, and the largest difference of an answer's log-likelihood. Between two sides in fp32 more than one
question in a hundred is an error: speed counts only if the scores are the same.

The model is made by `shared/data/models/make_smollm2` where the directory is not there. Prints Markdown and a JSON line
for each row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.evaluation import command_line  # noqa: E402

SHARED = ROOT.parent / "shared" / "data"
WORKLOADS = {
    **{name: (name,) for name in ("hellaswag", "arc_easy", "mmlu", "lambada_openai")},
    "mixture": ("lambada_openai", "boolq", "hellaswag", "sciq", "mmlu_continuation", "mmlu"),
    "all": (*command_line.DEFINITIONS, "mmlu_continuation", "mmlu"),
}
WARM_UP_ROWS = 2
_LEAST_SECONDS = 0.3
"""Least seconds of scoring for a ratio. With less, the noise in a process's start would matter too much."""
OURS = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from storage.artifact import Input
from storage.draft import Draft
from tasks.evaluation import evaluate
export, rows, work, length, precision, asked = json.loads(sys.argv[1])
files = tuple(path.name for path in Path(export).iterdir())
model = Input("base", "0" * 64, "export", "0" * 64, Path(export), files)
for name, shots in asked:
    inputs = evaluate.harness_inputs(model, name, rows, shots=shots)
    config = evaluate.evaluate_config(name, None, 0, length, "cpu", precision=precision)
    evaluate.run(config.model_copy(update={{"shots": shots}}), inputs, Draft(Path(work) / name))
"""

Questions = dict[tuple[str, str, int], tuple[dict[str, float], list[float]]]
"""By benchmark, subject and row: the metrics of a question, and the log-likelihoods of its answers."""


@dataclass(frozen=True)
class Side:
    """One side. `batch`: of the harness; None: ours."""

    precision: str
    batch: int | None = None

    def __str__(self) -> str:
        return (
            f"lm_eval, {self.precision}, batch size {self.batch}"
            if self.batch
            else f"onward, {self.precision}"
        )


@dataclass
class Row:
    """One side on one workload. Seconds are medians, by the clock and (`cpu`) over all cores. Ratios are to ours in the
    same precision."""

    workload: str
    side: str
    questions: int
    whole_seconds: float
    scoring_seconds: float
    scoring_cpu_seconds: float
    scoring_ratio: float | None = None
    cpu_ratio: float | None = None
    otherwise: int | None = None
    """Questions with another score than ours in the same precision; ours in bf16: than ours in fp32."""
    apart: float | None = None
    """The largest difference of a log-likelihood, in nats."""
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """The rows of one workload, and the harness's task files for them."""

    names: tuple[str, ...]
    rows: Path
    include: Path
    tasks: list[str]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="stories260K at 512 tokens, 400 questions, fp32")
    parser.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "smollm2-135m")
    parser.add_argument("--data", type=Path, default=SHARED / "benchmarks")
    parser.add_argument("--questions", type=int, default=100, help="of each benchmark")
    parser.add_argument("--shots", type=int, default=5, help="of MMLU")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument(
        "--batch-sizes", default="1,8", help="batch sizes of the command line; its default is 1"
    )
    parser.add_argument("--sides", default="fp32,bf16", help="precisions")
    parser.add_argument("--workloads", default="hellaswag,arc_easy,mmlu,lambada_openai")
    given = parser.parse_args()
    if given.small:
        parser.set_defaults(
            model=SHARED / "models" / "stories260K-hf",
            questions=400,
            shots=0,
            length=512,
            repeats=3,
            batch_sizes="1,16",
            sides="fp32",
            workloads="arc_easy,mixture",
        )
        given = parser.parse_args()
    if not given.model.exists():
        made = SHARED / "models" / "make_smollm2"
        subprocess.run([sys.executable, str(made), sys.executable, str(given.model)], check=True)
    rows: list[Row] = []
    print(
        "| workload | side | questions | whole, s | scoring, s | CPU s | ours: scoring | CPU | differ | apart |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as work:
        for name in given.workloads.split(","):
            for row in workload(name, given, Path(work) / name):
                rows.append(row)
                print(line_of(row), flush=True)
    sides = dict.fromkeys(row.side for row in rows)
    print("\n| benchmark | metric | " + " | ".join(sides) + " |")
    print("| --- | --- |" + " ---: |" * len(sides))
    for name in dict.fromkeys(name for row in rows for name in row.scores):
        values = (f"{row.scores[name]:.6f}" for row in rows if name in row.scores)
        print(f"| {name} | " + " | ".join(values) + " |")
    print(f"\n{platform.processor() or platform.machine()}, {given.threads} threads, {given.model.name}")
    for row in rows:
        print(json.dumps(asdict(row)))
    if wrong := [
        row for row in rows if "fp32" in row.side and (row.otherwise or 0) > max(1, row.questions / 100)
    ]:
        sys.exit(f"{wrong[0].workload}: {wrong[0].otherwise} questions have another score by {wrong[0].side}")


def line_of(row: Row) -> str:
    """A row of the table."""
    seconds = f"{row.whole_seconds:.1f} | {row.scoring_seconds:.1f} | {row.scoring_cpu_seconds:.1f}"
    ratios = (f"{ratio:.2f} ×" if ratio else "" for ratio in (row.scoring_ratio, row.cpu_ratio))
    differ = "" if row.otherwise is None else f"{row.otherwise} | {row.apart:.1e}"
    return f"| {row.workload} | {row.side} | {row.questions:,} | {seconds} | {' | '.join(ratios)} | {differ or ' | '} |"


def workload(name: str, given: argparse.Namespace, work: Path) -> list[Row]:
    """All sides on one workload, taking turns."""
    full = prepare(name, given, work / "full", given.questions)
    small = prepare("arc_easy", given, work / "small", WARM_UP_ROWS)
    sizes = [None, *map(int, given.batch_sizes.split(","))]
    sides = [Side(precision, size) for precision in given.sides.split(",") for size in sizes]
    taken: dict[tuple[Side, bool], list[tuple[float, float]]] = defaultdict(list)
    found: dict[Side, Questions] = {}
    for repeat in range(given.repeats):
        for number, side in enumerate(sides):
            for whole, case in ((True, full), (False, small)):
                if not whole and side.batch not in sizes[:2]:
                    continue  # starting takes as long with any batch size
                began, used = time.monotonic(), cpu_of_children()
                questions = measure(side, case, given, work / f"{repeat}-{number}-{whole}")
                taken[side, whole].append((time.monotonic() - began, cpu_of_children() - used))
                found |= {side: questions} if whole else {}
    rows = []
    for side in sides:
        first = side if side.batch is None else Side(side.precision, sizes[1])
        (whole, cpu), (start, start_cpu) = (
            tuple(map(statistics.median, zip(*taken[one], strict=True)))
            for one in ((side, True), (first, False))
        )
        scoring, scoring_cpu = max(whole - start, 1e-3), max(cpu - start_cpu, 1e-3)
        row = Row(name, str(side), len(found[side]), whole, scoring, scoring_cpu, scores=means(found[side]))
        ours = Side(side.precision if side.batch else sides[0].precision)
        if side != ours:
            row.otherwise, row.apart = differences(found[ours], found[side])
        if side.batch:
            mine = rows[sides.index(ours)]
            if min(scoring, mine.scoring_seconds) > _LEAST_SECONDS:
                row.scoring_ratio = scoring / mine.scoring_seconds
                row.cpu_ratio = scoring_cpu / mine.scoring_cpu_seconds
        rows.append(row)
    return rows


def cpu_of_children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def means(questions: Questions) -> dict[str, float]:
    """The mean of each metric over a benchmark's questions, as the harness has it."""
    values: dict[str, list[float]] = defaultdict(list)
    for (name, _, _), (metrics, _) in questions.items():
        for metric, value in metrics.items():
            values[f"{name} | {metric}"].append(value)
    return {name: statistics.fmean(some) for name, some in values.items()}


def differences(ours: Questions, theirs: Questions) -> tuple[int, float]:
    """Number of questions with another score, and the largest difference of a log-likelihood."""
    if ours.keys() != theirs.keys():
        sys.exit(f"the sides were asked other questions: {len(ours)} and {len(theirs)}")
    other, apart = 0, 0.0
    for question, (metrics, values) in theirs.items():
        mine, my_values = ours[question]
        other += any(mine[name] != value for name, value in metrics.items() if name.startswith("acc"))
        apart = max([apart, *(abs(a - b) for a, b in zip(my_values, values, strict=True))])
    return other, apart


def prepare(name: str, given: argparse.Namespace, work: Path, rows: int) -> Case:
    """Write the rows as local copies, and the harness's own task definitions for them."""
    include, copies = work / "include", work / "rows"
    include.mkdir(parents=True)
    tasks = []
    for benchmark in WORKLOADS[name]:
        source = benchmark.removesuffix("_continuation")
        each = max(2, rows // 10) if source == "mmlu" else rows
        file = command_line.copy_rows(given.data, copies, source, each)
        if source == "mmlu":
            form = "default" if benchmark == source else "continuation"
            examples = given.data / "mmlu" / "dev.jsonl"
            (copies / "mmlu" / "dev.jsonl").write_bytes(examples.read_bytes())
            tasks.append(command_line.define_mmlu(include, form, file, examples, given.shots))
        else:
            tasks.append(command_line.define(include, benchmark, file))
    return Case(WORKLOADS[name], copies, include, tasks)


def measure(side: Side, case: Case, given: argparse.Namespace, work: Path) -> Questions:
    """One process from start to scores."""
    work.mkdir(parents=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(given.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work),
    }
    if side.batch is None:
        shots = [(name, given.shots if name.startswith("mmlu") else 0) for name in case.names]
        asked = [str(given.model), str(case.rows), str(work), given.length, side.precision, shots]
        command = [sys.executable, "-c", OURS.format(root=str(ROOT)), json.dumps(asked)]
    else:
        kind = {"fp32": "float32", "bf16": "bfloat16"}[side.precision]
        command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--log_samples"]
        command += ["--model_args", f"pretrained={given.model},max_length={given.length},dtype={kind}"]
        command += ["--tasks", ",".join(case.tasks), "--include_path", str(case.include)]
        command += ["--batch_size", str(side.batch), "--output_path", str(work / "out")]
    done = subprocess.run(
        command, env=environment, cwd=work, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        sys.exit(f"{side}: {done.stderr[-3000:]}")
    return our_questions(case, work) if side.batch is None else their_questions(case, work / "out")


def our_questions(case: Case, work: Path) -> Questions:
    """What the stage wrote for each question."""
    found: Questions = {}
    for name in case.names:
        for row in pl.read_parquet(work / name / "questions.parquet").to_dicts():
            metrics = {
                metric: value
                for metric, value in row.items()
                if metric not in ("subject", "doc", "loglikelihoods", "unconditional", "target", "perplexity")
            }
            found[name, row["subject"] or "", row["doc"]] = (metrics, row["loglikelihoods"])
    return found


def their_questions(case: Case, out: Path) -> Questions:
    """What the command line wrote for each question."""
    found: Questions = {}
    names = dict(zip(case.tasks, case.names, strict=True))
    for path in out.rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        name, subject = names.get(task), ""
        if name is None:  # a subject of mmlu
            form = "_continuation" if task.endswith("_continuation") else ""
            name, subject = f"mmlu{form}", task.removeprefix("cli_").removesuffix("_continuation")
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            values = [float(value) for value, _ in row["filtered_resps"]]
            metrics = {metric: float(row[metric]) for metric in row["metrics"] if metric != "perplexity"}
            found[name, subject, row["doc_id"]] = (metrics, values)
    return found


if __name__ == "__main__":
    main()
