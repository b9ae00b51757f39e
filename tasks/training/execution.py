"""Where and how it runs: `auto` resolved by rule from the model's shape and the device's memory, never by timing.

Threads, micro-batch, device and the like change the last bits of a sum. So they are resolved once, written to
execution.json before the first step and reused by every restart; what a changed specification asks for then is
named in a warning and left alone. Only the number of processes may change on the way: what was is kept beside.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from storage.errors import ConfigError
from tasks.training.attention import varlen
from tasks.training.checkpoint import write_json
from tasks.training.config import AUTO, Execution, Identity
from tasks.training.model import Shape
from tasks.training.processes import ALONE, Processes

CPU_TOKENS = 4096
"""Tokens of a micro-batch on CPU: enough for the products, little enough for the caches."""
CUDA_TOKENS = 65536
"""No gain is expected beyond on a GPU."""
MEMORY_SHARE = 0.85
"""Of the device's memory; the rest is for the allocator and kernels."""
_LOSS_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}  # of float32 logits at once; on CPU, what a cache holds
_BITS = ("device", "micro_batch", "threads", "compile", "gradient_checkpointing", "loss_chunk")


def resolve(
    asked: Execution, shape: Shape, identity: Identity, processes: Processes = ALONE
) -> dict[str, Any]:
    """The execution by rule, as plain JSON. Raises ConfigError for a device that is not here."""
    device = _device(asked.device)
    _check_processes(device, identity, processes)
    share = math.ceil(identity.sequences_per_step / processes.count)
    kind = torch.device(device).type
    memory = torch.cuda.get_device_properties(device).total_memory if kind == "cuda" else None
    checkpointing = asked.gradient_checkpointing
    micro = asked.micro_batch
    if memory is not None and checkpointing == AUTO:
        fits = _sequences_that_fit(shape, identity, memory, checkpointed=False)
        checkpointing = fits < (1 if micro == AUTO else int(micro))
    checkpointing = bool(checkpointing) if checkpointing != AUTO else False
    if micro == AUTO:
        most = max(1, (CPU_TOKENS if memory is None else CUDA_TOKENS) // identity.sequence_length)
        if memory is not None:
            most = max(1, min(most, _sequences_that_fit(shape, identity, memory, checkpointed=checkpointing)))
        # as few micro-batches as `most` allows, of nearly one size
        parts = math.ceil(share / most)
        micro = math.ceil(share / parts)
    return {
        "device": device,
        "micro_batch": min(int(micro), share),
        "processes": processes.count,
        "threads": asked.threads or max(1, usable_cores() // processes.local_count),
        "compile": bool(asked.compile) if asked.compile != AUTO else False,
        "gradient_checkpointing": checkpointing,
        "precision": identity.precision,
        "loss_chunk": _loss_chunk(kind, shape.vocabulary),
        "attention": "varlen" if kind == "cuda" and identity.precision == "bf16" and varlen() else "sdpa",
        "versions": versions(),
    }


def settle(
    path: Path, resolved: dict[str, Any], asked: Execution, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write the resolved execution, or take the one that an earlier attempt wrote.

    Begun by another number of processes, it goes on with this one: the batches stay, the last bits do not. Raises
    ConfigError when the earlier attempt's device is not here.
    """
    try:
        earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_json(path, resolved)
        return resolved
    _device(earlier["device"])
    if earlier.get("processes", 1) != resolved["processes"]:
        earlier = _go_on_by_others(path, earlier, resolved, say)
    for name in _BITS:
        if earlier[name] != resolved[name] and getattr(asked, name, AUTO) not in (AUTO, None):
            say(
                f"warning: {name} stays {earlier[name]} as this work began, not {resolved[name]}: it touches rounding."
            )
    if earlier["versions"] != resolved["versions"]:
        say(
            f"warning: begun with {earlier['versions']}, now {resolved['versions']}: the last bits may differ."
        )
    return earlier


def _go_on_by_others(
    path: Path, earlier: dict[str, Any], resolved: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    before = {name: earlier.get(name, 1) for name in ("processes", "threads")}
    say(
        f"warning: begun by {before['processes']} processes, goes on with {resolved['processes']}: the same batches in "
        "the same order, but the last bits will differ from a run that never changed."
    )
    now = {name: resolved[name] for name in ("processes", "threads")}
    changed = {**earlier, **now, "before": [*earlier.get("before", []), before]}
    write_json(path, changed)
    return changed


def apply(execution: dict[str, Any]) -> None:
    """Set threads, and for this process's own device: which GPU of several, deterministic algorithms on CPU."""
    torch.set_num_threads(execution["threads"])
    device = torch.device(execution["device"])
    if device.index is not None:
        torch.cuda.set_device(device)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        # every buffer is written before it is read
        deterministic: Any = torch.utils.deterministic
        deterministic.fill_uninitialized_memory = False


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its control group (version 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second of a known GPU, from its data sheet; None where unknown, and on CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
    return next((flops for mark, flops in known.items() if mark in name), None)


def _sequences_that_fit(shape: Shape, identity: Identity, memory: int, checkpointed: bool) -> int:
    """Sequences per micro-batch in `memory` bytes.

    State: 16 bytes a parameter (float32 weights, gradients, two moments) and 2 for the bf16 copies. Saved
    activations, bytes a token and layer, under bf16 autocast: 32·width + 8·feed-forward (895 KiB a token were
    measured for SmolLM2-135M), twice that in float32; checkpointed 6·width a layer and one layer whole. The loss
    holds one chunk of logits.
    """
    wide = 1 if identity.precision == "bf16" else 2
    layer = wide * (32 * shape.width + 8 * shape.feed_forward)
    token = shape.layers * 6 * shape.width + layer if checkpointed else shape.layers * layer
    left = MEMORY_SHARE * memory - 18 * shape.parameters - 3 * _LOSS_BYTES["cuda"]
    return max(0, int(left // (token * identity.sequence_length)))


def _loss_chunk(kind: str, vocabulary: int) -> int:
    """Tokens whose float32 logits are held at once, in steps of 256."""
    return max(256, _LOSS_BYTES.get(kind, _LOSS_BYTES["cpu"]) // (4 * vocabulary) // 256 * 256)


def _device(asked: str) -> str:
    if asked == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise ConfigError(f"execution.device must be auto, cpu, cuda or cuda:N, not {asked!r}.") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"execution.device must be auto, cpu, cuda or cuda:N, not {asked!r}.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"The device {asked} is not available here. Checkpoints are kept: go on where it is, or start "
            "in another work directory with execution.device: cpu."
        )
    return asked


def _check_processes(device: str, identity: Identity, processes: Processes) -> None:
    if processes.count > identity.sequences_per_step:
        raise ConfigError(
            f"{processes.count} processes for {identity.sequences_per_step} sequences a step: each needs one at least. "
            "Lower training.execution.processes, or raise training.batch_tokens."
        )
    if torch.device(device).type == "cuda" and processes.count > 1:
        here = torch.cuda.device_count()
        if processes.local_count > here or torch.device(device).index is not None:
            raise ConfigError(
                f"{processes.local_count} processes on this machine need a GPU each, and execution.device: cuda; "
                f"it has {here} (device: {device}). Lower training.execution.processes."
            )


def versions() -> dict[str, str]:
    """What computes: Python, torch, transformers."""
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
