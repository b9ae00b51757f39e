"""What checkpoints cost the steps: none, written in the step path, written beside the steps (state/writer.py).

    python benchmarks/checkpoints.py [--shape llama-9m] [--steps 4] [--rounds 5] [--device cpu]

Prints a table. The trainer itself takes the steps. Blocks of steps with each way of saving take turns, so that
other load on the machine affects all alike. "In the path" uses the same writer and waits for it at once. On a CPU,
writing and hashing take cores from the steps; beside a GPU they do not.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from training_world import Plan, make_world  # noqa: E402

from tasks.training.outputs import save  # noqa: E402
from tasks.training.process.processes import ALONE  # noqa: E402
from tasks.training.read_spec import read_spec  # noqa: E402
from tasks.training.segment import Segment, open_segment  # noqa: E402
from tasks.training.step import take_step  # noqa: E402


def main() -> None:
    """Open the segment once, time the blocks, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-9m")
    parser.add_argument("--steps", type=int, default=4, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    ways: dict[str, Callable[[Segment, int], None]] = {
        "none": lambda segment, number: None,
        "one a block, in the path": lambda segment, number: _in_path(segment) if number == 0 else None,
        "one a block, beside": lambda segment, number: save(segment) if number == 0 else None,
        "after every step, in the path": lambda segment, number: _in_path(segment),
        "after every step, beside": lambda segment, number: save(segment),
    }
    said: list[str] = []
    with tempfile.TemporaryDirectory(prefix="onward-checkpoints-") as root:
        segment = _opened(root, asked.shape, 1 + asked.steps * asked.rounds * len(ways), asked.device, said)
        take_step(segment)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(asked.rounds):
            for name, saving in ways.items():
                seconds[name].append(_block(segment, asked.steps, saving))
        segment.close()
    cuda = torch.device(asked.device).type == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} thread(s)"
    print(
        f"{asked.shape}, {segment.shape.parameters / 1e6:.1f}M parameters, {where}, torch {torch.__version__}, "
    )
    print(f"Python {platform.python_version()}; medians of {asked.rounds} blocks of {asked.steps} steps\n")
    print("| checkpoints | step, s | beside none |\n| --- | --- | --- |")
    least = statistics.median(seconds["none"]) / asked.steps
    for name, found in seconds.items():
        step = statistics.median(found) / asked.steps
        print(f"| {name} | {step:.3f} | {step / least:.2f} |")
    pairs = [
        found.groups()
        for line in said
        if (found := re.search(r"copied in (\S+) s, written in (\S+) s", line))
    ]
    copying, writing = (statistics.median(float(pair[place]) for pair in pairs) for place in (0, 1))
    print(f"\nof a checkpoint, median of {len(pairs)}: copied in {copying:.2f} s, written in {writing:.2f} s")


def _opened(root: str, shape: str, steps: int, device: str, said: list[str]) -> Segment:
    cuda = torch.device(device).type == "cuda"
    plan = Plan(
        shape=shape,
        length=1024 if cuda else 256,
        sequences_per_step=64 if cuda else 2,
        micro_batch=32 if cuda else 2,
        peer_micro_batch=1,
        steps=steps,
        precision="bf16" if cuda else "fp32",
        device=device,
        compile=False,
        threads=1,
        root=root,
    )
    make_world(plan)
    plan.path("work").mkdir()
    return open_segment(read_spec(plan.path("spec.json")), said.append, ALONE)


def _block(segment: Segment, steps: int, saving: Callable[[Segment, int], None]) -> float:
    """Seconds for this many steps. A write still under way at the end is counted in the next block."""
    began = time.perf_counter()
    for number in range(steps):
        take_step(segment)
        saving(segment, number)
    seconds = time.perf_counter() - began
    assert segment.writer is not None
    segment.writer.wait()
    return seconds


def _in_path(segment: Segment) -> None:
    save(segment)
    assert segment.writer is not None
    segment.writer.wait()


if __name__ == "__main__":
    main()
