"""What each memory option saves and costs: peak memory and tokens per second of the trainer itself, in one run.

    python benchmarks/memory.py                     # a 30M-parameter model at 512 on the CPU, four minutes on two cores
    python benchmarks/memory.py --device cuda       # SmolLM2-135M's shape at 2,048 on a GPU
    python benchmarks/memory.py --rule              # the rule's predictions beside the measurements

Every row is a trainer (`tasks.training` with checks and journal) in its own process, over the same packed batches.
A row's name says how it differs from the first row. On CPU, memory is the peak of the resident set minus what the
process had before the first weight (Python, torch, transformers); on a GPU, torch's peak of allocated bytes. The
rate is the median over all steps after the first two. Prints a Markdown table and a JSON line for each row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One trainer, and its differences from the first row, by dotted names of the specification."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    whole_logits: bool = False
    fused: bool = True


BF16_WEIGHTS = {"identity.precision": "bf16_weights", "identity.optimizer.stochastic_rounding": True}
EIGHT_BIT = {"identity.optimizer.states": "8bit"}
ROWS = (
    Row("bf16 autocast, fp32 states, chunked loss, fused, no checkpointing"),
    Row("whole logits at once", whole_logits=True),
    Row("selective checkpointing", {"execution.gradient_checkpointing": "selective"}),
    Row("full checkpointing", {"execution.gradient_checkpointing": "full"}),
    Row("fp32", {"identity.precision": "fp32"}),
    Row("bf16 weights, stochastic rounding", BF16_WEIGHTS),
    Row("8-bit states", EIGHT_BIT),
    Row("AdamW not fused", fused=False),
    Row(
        "all that saves: bf16 weights, 8-bit states, full checkpointing",
        {**BF16_WEIGHTS, **EIGHT_BIT, "execution.gradient_checkpointing": "full"},
    ),
)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--shape", help="one of benchmarks/training_world.py's")
    parser.add_argument("--length", type=int)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--rule", action="store_true", help="compare the rule's prediction with what is measured"
    )
    parser.add_argument("--row", help="(internal) run this one, given as JSON")
    asked = parser.parse_args(arguments)
    if asked.row:
        print(json.dumps(train_one(json.loads(asked.row))))
        return
    with tempfile.TemporaryDirectory(prefix="onward-memory-") as directory:
        world = Path(directory)
        (_compare_rule if asked.rule else _compare_options)(asked, world)


def _compare_options(asked: argparse.Namespace, world: Path) -> None:
    cuda = asked.device == "cuda"
    shape = asked.shape or ("smollm2-135m" if cuda else "llama-30m")
    length, micro = asked.length or (2048 if cuda else 512), asked.micro_batch or (8 if cuda else 4)
    found = []
    for row in ROWS:
        result = _in_a_process(world, asked.device, shape, length, micro, asked.steps, row)
        found.append((row.name, result))
        print(json.dumps({"row": row.name, **result}), file=sys.stderr, flush=True)
    _print_heading(
        asked.device, f"{shape}, {micro} sequences of {length} tokens in a micro-batch, one a step"
    )
    print("| options | peak MiB | beside the first | tokens/s | beside the first |")
    print("| --- | ---: | ---: | ---: | ---: |")
    first = found[0][1]
    for number, (name, result) in enumerate(found):
        peak, rate = result["peak"] / _MIB, result["tokens_per_second"]
        against = peak - first["peak"] / _MIB
        beside = (
            ("", "") if not number else (f"{against:+,.0f}", f"× {rate / first['tokens_per_second']:.2f}")
        )
        print(f"| {name} | {peak:,.0f} | {beside[0]} | {rate:,.0f} | {beside[1]} |")


RULE_POINTS = {
    "cpu": (
        ("llama-30m", 512, (2, 8), ("bf16", "fp32")),
        ("gpt2-17m", 512, (2, 8), ("bf16", "fp32")),
        ("llama-9m", 1024, (2, 4), ("bf16",)),
    ),
    "cuda": (
        ("smollm2-135m", 2048, (2, 16), ("bf16", "fp32")),
        ("gpt2-124m", 1024, (4, 32), ("bf16",)),
    ),
}


def _compare_rule(asked: argparse.Namespace, world: Path) -> None:
    _print_heading(asked.device, "predicted by tasks/training/device/memory.py, measured")
    print(
        "| shape | length | precision | checkpointing | micro-batch | predicted MiB | measured MiB | ratio |"
    )
    print("| --- | ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for shape, length, sizes, precisions in RULE_POINTS[asked.device]:
        if asked.shape not in (None, shape):
            continue
        for precision in precisions:
            for mode in ("none", "selective", "full"):
                for micro in sizes:
                    changes = {"identity.precision": precision, "execution.gradient_checkpointing": mode}
                    row = Row(f"{precision} {mode}", changes)
                    result = _in_a_process(world, asked.device, shape, length, micro, 3, row)
                    predicted, measured = result["predicted"] / _MIB, result["peak"] / _MIB
                    print(
                        f"| {shape} | {length} | {precision} | {mode} | {micro} | {predicted:,.0f} | {measured:,.0f} "
                        f"| {predicted / measured:.2f} |",
                        flush=True,
                    )


def _in_a_process(
    world: Path, device: str, shape: str, length: int, micro: int, steps: int, row: Row
) -> dict[str, Any]:
    order = {
        "device": device,
        "shape": shape,
        "length": length,
        "micro": micro,
        "steps": steps,
        **asdict(row),
    }
    root = world / f"{shape}-{length}-{micro}-{steps}"
    if not root.exists():
        _run({**order, "root": str(root), "make": True})
    return _run({**order, "root": str(root), "make": False})


def _run(order: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), "--row", json.dumps(order)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    if done.returncode:
        raise SystemExit(f"{order['name']}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def train_one(order: dict[str, Any]) -> dict[str, Any]:
    """Make the world of a row, or train in it. Returns peak bytes, the rule's prediction, and tokens per second."""
    from benchmarks.training_world import Plan, make_world

    plan = Plan(
        shape=order["shape"],
        length=order["length"],
        sequences_per_step=order["micro"],
        micro_batch=order["micro"],
        peer_micro_batch=1,
        steps=order["steps"],
        precision="bf16",
        device=order["device"],
        compile=False,
        threads=len(os.sched_getaffinity(0)),
        root=order["root"],
    )
    if order["make"]:
        make_world(plan)
        return {}
    spec = json.loads(plan.path("spec.json").read_text(encoding="utf-8"))
    spec["identity"]["optimizer"] = dict(spec["identity"]["optimizer"])
    for name, value in order["changes"].items():
        *path, last = name.split(".")
        at = spec
        for step in path:
            at = at[step]
        at[last] = value
    return _measured(spec, plan, order)


def _measured(raw: dict[str, Any], plan: Any, order: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers.models.auto.modeling_auto  # noqa: F401

    from tasks.training.device import memory
    from tasks.training.device.activations import counter
    from tasks.training.device.execution import memory_of
    from tasks.training.loop import train
    from tasks.training.model import read_config, shape_of
    from tasks.training.read_spec import parse_spec

    if order["whole_logits"]:
        memory._LOSS_BYTES = {"cpu": 1 << 60, "cuda": 1 << 60}
        memory.Device.loss_chunk = lambda self, vocabulary, width: 1 << 30  # type: ignore[method-assign]
    if not order["fused"]:
        fused = torch.optim.AdamW
        torch.optim.AdamW = lambda *a, **k: fused(*a, **{**k, "fused": False})  # type: ignore[assignment,misc]
    spec = parse_spec(raw)
    config = read_config(spec.paths.start, spec.identity)
    cuda = plan.device == "cuda"
    room = memory.Device(
        plan.device, memory_of(plan.device, spec.execution.device_memory), threads=plan.threads
    )
    step = memory.Step(shape_of(config), spec.identity, room, counter(config, spec.identity))
    predicted = step.peak(spec.execution.gradient_checkpointing or "none", plan.micro_batch)
    before = _resident("VmRSS")
    shutil.rmtree(spec.paths.work, ignore_errors=True)
    spec.paths.work.mkdir(parents=True)
    # the outputs at the end (saved, copied) are not part of a step
    at_the_end: dict[str, int] = {}

    def stop() -> bool:
        lines = _journal(spec.paths.work)
        if len(lines) >= plan.steps - 1:
            at_the_end["peak"] = torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM") - before
        return False

    train(spec, stop, lambda text: None)
    rates = [line["tokens_per_second"] for line in _journal(spec.paths.work)[2:]]
    return {
        **at_the_end,
        "predicted": predicted,
        "tokens_per_second": statistics.median(rates),
        "before": before,
    }


def _journal(work: Path) -> list[dict[str, Any]]:
    path = work / "journal.jsonl"
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak so far) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status says nothing of {field}")


def _print_heading(device: str, what: str) -> None:
    print("\n".join(_heading(device, what)))


def _heading(device: str, what: str) -> Iterator[str]:
    from tasks.training.device.execution import versions

    used = versions()
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run(
        [*git, "rev-parse", "--short", "HEAD"], capture_output=True, encoding="utf-8"
    ).stdout.strip()
    changed = subprocess.run(
        [*git, "status", "--porcelain", "-uno"], capture_output=True, encoding="utf-8"
    ).stdout.strip()
    yield (
        f"{what}; {_machine(device)}; Python {used['python']}, torch {used['torch']}, transformers "
        f"{used['transformers']}; commit {commit}{' with changes' if changed else ''}\n"
    )


def _machine(device: str) -> str:
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [
        line
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main(sys.argv[1:])
