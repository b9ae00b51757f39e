"""Tokens per second of Onward's trainer compared with others, on the same packed batches, in one run.

    python benchmarks/training.py    # two shapes, two lengths, in quiet and beside a busy process: 45 minutes on two cores
    python benchmarks/training.py --shapes smollm2-135m --lengths 512 --busy 0       # one row: six minutes on two cores
    python benchmarks/training.py --shapes smollm2-135m --lengths 512 --busy 1       # the same beside another busy process
    python benchmarks/training.py --device cuda --shapes gpt2-124m --lengths 1024     # one shape on a GPU: five minutes

| peer | what it is |
| --- | --- |
| onward | `tasks.training` itself: journal, checks, the next rows made ahead |
| onward_compiled | the same with `compile: true`, not the default for a short run on a CPU; compiles for a minute |
| onward_together, onward_apart | compiled, with q, k and v as one product, and gate and up; with each apart |
| onward_tuned | compiled, with kernels chosen by timing (torch's mode max-autotune-no-cudagraphs), which no rule chooses |
| hf_trainer | transformers' Trainer as run_clm.py sets it up; documents apart by position_ids that restart, sdpa |
| plain_loop | a loop like nanoGPT's: sdpa with a boolean mask, whole logits, autocast, fused AdamW, clipping |
| plain_apart | the same loop with Onward's attention by document |
| raw | forward and backward alone, of the same model as onward: the limit |

Each peer is a process of its own, warmed up by two steps in quiet. Then they take turns: in every round each does the
same number of steps while the others wait. All of them mask documents; the losses of the first step must agree. A
round's rate is target tokens (no padding) per second; the table shows the median over rounds. The operations per
token are Shape.flops: 6·P + 6·L·d·(Σ length²)/tokens, with causal attention counted once over documents.

All peers stay in memory to the end: about 5 GiB each at 135M parameters on a CPU. --peers takes fewer of them.

Prints a Markdown table and a JSON line for each shape and length. Exits with 1 if first losses differ.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.training_world import SHAPES, Plan, config_of, make_world, sequences_of  # noqa: E402
from tasks.training.device.execution import peak_flops, usable_cores, versions  # noqa: E402
from tasks.training.model import shape_of  # noqa: E402

PEERS = (
    "onward",
    "onward_compiled",
    "onward_together",
    "onward_apart",
    "onward_tuned",
    "hf_trainer",
    "plain_loop",
    "plain_apart",
    "raw",
)
ON_CPU = ("onward", "onward_compiled", "hf_trainer", "plain_loop")
ON_GPU = ("onward", "onward_apart", "hf_trainer", "plain_loop", "raw")
TUNED = {"TORCHINDUCTOR_MAX_AUTOTUNE": "1", "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING": "1"}
WARM_UP = 2
COLUMNS = (
    "peer",
    "tokens/s",
    "lowest – highest",
    "× hf_trainer",
    "× plain_loop",
    "× raw",
    "TFLOP/s",
    "MFU",
    "CPU s a step",
    "peak GiB",
    "compiled after warm-up",
)
SAME_LOSS = {"fp32": 1e-4, "bf16": 5e-3}
"""Relative difference of first losses that rounding can explain."""


class Peer:
    """A process that takes steps on command."""

    def __init__(self, name: str, plan: Plan, plan_path: Path) -> None:
        self.name = name
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(plan.threads)}
        if name.startswith("onward"):  # as a run starts its trainer (flows/machine/environment.py)
            environment.setdefault("GOMP_SPINCOUNT", "20000")
        if name == "onward_tuned":
            environment |= TUNED
        self._log = plan.path(f"{name}.log").open("w+", encoding="utf-8")
        began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "training_peers.py"), name, str(plan_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            encoding="utf-8",
            env=environment,
        )
        self.warm = self._answer()
        self.seconds_to_warm = time.monotonic() - began
        self.last = self.warm

    def go(self, steps: int) -> dict[str, Any]:
        """Take this many steps."""
        self._pipe(self._process.stdin).write(f"{steps}\n")
        self._pipe(self._process.stdin).flush()
        self.last = self._answer()
        return self.last

    def leave(self) -> None:
        """Let it end by itself, and wait for it."""
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        for line in self._pipe(self._process.stdout):
            if line.startswith("{") and '"first_loss"' in line:  # some peers print other lines too
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._process.wait()
        self._log.seek(0)
        raise PeerFailed(f"{self.name} ended with {self._process.returncode}:\n{self._log.read()[-3000:]}")

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


class PeerFailed(Exception):
    """A peer's process ended before it answered."""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many other processes that compute all the time."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def compare(plan: Plan, peers: list[str], rounds: int, steps: int, others: int = 0) -> dict[str, Any]:
    """Run all peers over the plan, taking turns, beside so many others. Returns a row of results."""
    make_world(plan)
    plan_path = plan.path("plan.json")
    plan_path.write_text(json.dumps(asdict(plan)), encoding="utf-8")
    running, left_out = [], {}
    for name in peers:
        try:
            running.append(Peer(name, plan, plan_path))
        except PeerFailed as error:
            left_out[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
    seconds: dict[str, list[float]] = {peer.name: [] for peer in running}
    cpu_seconds: dict[str, list[float]] = {peer.name: [] for peer in running}
    with busy(others):
        for number in range(rounds):
            for peer in running if number % 2 == 0 else reversed(running):
                answer = peer.go(steps)
                seconds[peer.name].append(answer["seconds"])
                cpu_seconds[peer.name].append(answer["cpu_seconds"])
    for peer in running:
        peer.leave()
    per_step, squared = _targets_and_squares(plan)
    shape = shape_of(config_of(plan.shape, plan.length))
    operations = shape.flops(per_step, squared)
    peak = peak_flops(torch.device(plan.device))
    found = {}
    for peer in running:
        rates = [per_step * steps / taken for taken in seconds[peer.name]]
        rate = statistics.median(rates)
        found[peer.name] = {
            "tokens_per_second": round(rate),
            "lowest": round(min(rates)),
            "highest": round(max(rates)),
            "cpu_seconds_per_step": round(statistics.median(cpu_seconds[peer.name]) / steps, 4),
            "teraflops": round(rate / per_step * operations / 1e12, 4),
            "mfu": round(rate / per_step * operations / peak, 4) if peak else None,
            "peak_memory": peer.last["peak_memory"],
            "first_loss": peer.warm["first_loss"],
            "compiled_after_warm_up": peer.last["compiled"] - peer.warm["compiled"],
            "seconds_to_warm": round(peer.seconds_to_warm, 1),
        }
    return {
        "shape": plan.shape,
        "parameters": shape.parameters,
        "length": plan.length,
        "tokens_per_step": plan.sequences_per_step * plan.length,
        "targets_per_step": round(per_step),
        "micro_batch": plan.micro_batch,
        "peer_micro_batch": plan.peer_micro_batch,
        "precision": plan.precision,
        "compile": plan.compile,
        "busy": others,
        "rounds": rounds,
        "steps_per_round": steps,
        "data_wait": _data_wait(plan),
        "peak_teraflops": peak / 1e12 if peak else None,
        "peers": found,
        "left_out": left_out,
        **machine(plan),
    }


def machine(plan: Plan) -> dict[str, Any]:
    """The machine and software that it ran on."""
    cuda = plan.device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name() if cuda and torch.cuda.is_available() else _processor(),
        "threads": plan.threads,
        "versions": versions(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def _git(*arguments: str) -> str:
    """What git says of this tree; nothing where there is no git, or no repository."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, encoding="utf-8")
    except OSError:
        return ""
    return answer.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _targets_and_squares(plan: Plan) -> tuple[float, int]:
    """Totals over steps: target tokens, and the sum of squared document lengths, per step."""
    rows = sequences_of(plan, 0, plan.steps * plan.sequences_per_step)
    targets = int((rows["targets"] >= 0).sum()) / plan.steps
    numbers = rows["documents"].numpy()
    counts = np.bincount(numbers[numbers > 0])
    return targets, int((counts.astype(np.int64) ** 2).sum() / plan.steps)


def _data_wait(plan: Plan) -> float | None:
    path = plan.path("work") / "journal.jsonl"
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][WARM_UP:]
    waited = sum(line["data_wait"] * line["seconds"] for line in lines)
    return round(waited / max(1e-9, sum(line["seconds"] for line in lines)), 5)


def table(row: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    peers = row["peers"]
    wait = "?" if row["data_wait"] is None else f"{row['data_wait']:.2%}"
    beside = f", beside {row['busy']} busy" if row["busy"] else ""
    head = (
        f"{row['shape']} ({row['parameters'] / 1e6:.1f}M), length {row['length']}, {row['precision']}"
        f"{', compiled' if row['compile'] else ''}, {row['tokens_per_step']} tokens a step"
        f"{beside}; {row['device']}, "
        f"{row['threads']} threads, torch {row['versions']['torch']}, transformers {row['versions']['transformers']}, "
        f"commit {row['commit']}, {row['date']}; medians of {row['rounds']} rounds of {row['steps_per_round']} steps. "
        f"onward waited for data {wait} of its time."
    )
    lines = [head, "", "| " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
    for name, found in peers.items():
        ratios = [
            f"{found['tokens_per_second'] / peers[other]['tokens_per_second']:.2f}" if other in peers else "–"
            for other in ("hf_trainer", "plain_loop", "raw")
        ]
        mfu = "–" if found["mfu"] is None else f"{found['mfu']:.1%}"
        cells = [
            name,
            f"{found['tokens_per_second']:,}",
            f"{found['lowest']:,} – {found['highest']:,}",
            *ratios,
            f"{found['teraflops']:.3g}",
            mfu,
            f"{found['cpu_seconds_per_step']:.2f}",
            f"{found['peak_memory'] / 2**30:.2f}",
            str(found["compiled_after_warm_up"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def same_losses(row: dict[str, Any]) -> bool:
    """Whether the first losses agree, which shows that all peers saw the same tokens with the same masks."""
    losses = [found["first_loss"] for found in row["peers"].values()]
    middle = statistics.median(losses)
    return all(abs(loss - middle) <= SAME_LOSS[row["precision"]] * middle for loss in losses)


def main() -> int:
    """Run the comparisons asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--lengths", nargs="+", type=int)
    parser.add_argument("--peers", nargs="+", choices=PEERS)
    parser.add_argument("--rounds", type=int, help="default 4, on a GPU 3, beside busy processes 2")
    parser.add_argument("--steps", type=int, help="steps of each peer in a round; default 1, on a GPU 3")
    parser.add_argument("--batch-tokens", type=int, help="tokens of a step; default 2048, on a GPU 524288")
    parser.add_argument(
        "--micro-tokens", type=int, help="tokens of a micro-batch; default 2048, on a GPU 65536"
    )
    parser.add_argument(
        "--peer-micro-tokens",
        type=int,
        help="the same, for peers that hold all logits; default 2048, on a GPU 16384",
    )
    parser.add_argument(
        "--busy",
        nargs="+",
        type=int,
        help="numbers of other processes that compute all the time; default 0 and 1, on a GPU 0",
    )
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--compile", choices=("auto", "true", "false"), default="auto", help="auto: on a GPU")
    parser.add_argument("--threads", type=int, default=usable_cores())
    asked = parser.parse_args()
    cuda = asked.device.startswith("cuda")
    cases = list(
        itertools.product(
            asked.shapes or ["smollm2-135m", "gpt2-124m"],
            asked.lengths or ([1024, 2048] if cuda else [512, 1024]),
            asked.busy or ([0] if cuda else [0, 1]),
        )
    )
    steps = asked.steps or (3 if cuda else 1)
    tokens = asked.batch_tokens or (524_288 if cuda else 2048)
    micro = asked.micro_tokens or (65_536 if cuda else 2048)
    peer_micro = asked.peer_micro_tokens or (16_384 if cuda else 2048)
    code = 0
    for shape, length, others in cases:
        rounds = asked.rounds or (3 if cuda else 2 if others else 4)
        with tempfile.TemporaryDirectory(prefix="onward-training-") as root:
            plan = Plan(
                shape=shape,
                length=length,
                sequences_per_step=max(1, tokens // length),
                micro_batch=max(1, min(micro, tokens) // length),
                peer_micro_batch=max(1, min(peer_micro, tokens) // length),
                steps=WARM_UP + rounds * steps + 2,
                precision=asked.precision,
                device=asked.device,
                compile=cuda if asked.compile == "auto" else asked.compile == "true",
                threads=asked.threads,
                root=root,
            )
            peers = asked.peers or list(ON_GPU if cuda else ON_CPU)
            row = compare(plan, peers, rounds, steps, others)
        print(table(row) + "\n", flush=True)
        print(json.dumps(row), flush=True)
        if not same_losses(row):
            print(
                "the first losses differ: not all trained on the same tokens, masked alike", file=sys.stderr
            )
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
