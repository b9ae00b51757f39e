"""Where and how training runs. `auto` is resolved by rule, from the model's shape and the device's memory, never by
timing.

Threads, micro-batch, device and the like change the last bits of a sum. They are therefore resolved once, written
to execution.json before the first step, and reused by every restart that goes on from a checkpoint. If a changed
specification then asks for other values, a warning names them and they are ignored. Only the number of processes and
the sharding may change on the way; the earlier values are kept beside the new ones. As long as there is no checkpoint,
nothing depends on them, and the specification's values count.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from storage.errors import ConfigError, DamagedArtifact
from tasks.training.attention import VARLEN
from tasks.training.combinations import of_processes, of_products, of_sharding, refuse
from tasks.training.device import memory
from tasks.training.device.allocator import keep_freed_memory
from tasks.training.model import Shape
from tasks.training.process.processes import ALONE, Processes
from tasks.training.process.sharding import FULL, NONE
from tasks.training.spec import AUTO, FP32, Execution, SegmentSpec, as_mode
from tasks.training.state.sealed import read_sealed, write_sealed

_BITS = (
    "device",
    "micro_batch",
    "threads",
    "compile",
    "fuse_products",
    "gradient_checkpointing",
    "deterministic",
    "loss_chunk",
)
CPU_FLOPS = 50e9
"""Assumed operations per second of one thread in training (78e9 was measured on an AMD EPYC in bf16)."""
_EARLIER = {"sharding": NONE, "deterministic": True, "fuse_products": False}
"""Values for fields that files of earlier versions lack."""
VARLEN_PATH = "varlen"
FA3 = "varlen FA3"
_CUBLAS = ":4096:8"
"""A workspace that makes cuBLAS deterministic: 8 buffers of 4 MiB per stream (NVIDIA's cuBLAS manual)."""


def resolve(
    asked: Execution,
    shape: Shape,
    identity: SegmentSpec,
    processes: Processes = ALONE,
    *,
    count: memory.Count,
) -> dict[str, Any]:
    """Resolve the execution by rule, as plain JSON. Raises ConfigError, for example if the device is not here.

    `count` returns the activations at a mode of checkpointing; it is called only if something is `auto`.
    """
    device = device_of(asked.device)
    refuse(of_processes(processes.count, identity.sequences_per_step))
    _check_gpus(device, processes)
    refuse(of_sharding(asked, identity.optimizer, identity.precision, processes.count))
    refuse(of_products(asked))
    share = math.ceil(identity.sequences_per_step / processes.count)
    kind = torch.device(device).type
    threads = asked.threads or max(1, usable_cores() // processes.local_count)
    room = memory.Device(kind, memory_of(device, asked.device_memory), processes.local_count, threads)
    shards = processes.count if asked.sharding == FULL else 1
    attention = attention_path(device, identity, asked.deterministic)
    checkpointing: str = asked.gradient_checkpointing
    micro = asked.micro_batch
    if AUTO in (checkpointing, micro):
        step = memory.Step(shape, identity, room, count, shards)
        checkpointing, micro = memory.choose(step, share, checkpointing, micro)
    compiled = asked.sharding == NONE and (
        compiles(kind, attention, identity, shape, threads) if asked.compile == AUTO else bool(asked.compile)
    )
    together = kind == "cuda" if asked.fuse_products == AUTO else bool(asked.fuse_products)
    return {
        "device": device,
        "device_name": device_name(device),
        "micro_batch": min(int(micro), share),
        "processes": processes.count,
        "sharding": asked.sharding,
        "threads": threads,
        "compile": compiled,
        "fuse_products": compiled and together,
        "gradient_checkpointing": checkpointing,
        "precision": identity.precision,
        "deterministic": kind == "cpu" or asked.deterministic,
        "loss_chunk": room.loss_chunk(shape.vocabulary, shape.width),
        "attention": attention,
        "versions": versions(),
    }


def attention_path(device: str, identity: SegmentSpec, deterministic: bool) -> str:
    """How documents are kept apart: "sdpa" (a call for each), or on a GPU in bf16 "varlen", or "varlen FA3".

    The last is torch's own switch to FlashAttention 3 for variable lengths. It needs the module `flash_attn_interface`
    and a GPU of compute capability 9.0 (H100, H200), and is never taken with `deterministic`.
    """
    if torch.device(device).type != "cuda" or identity.precision == FP32 or VARLEN is None:
        return "sdpa"
    switch = hasattr(torch.nn.attention, "activate_flash_attention_impl")
    if deterministic or not switch or importlib.util.find_spec("flash_attn_interface") is None:
        return VARLEN_PATH
    return FA3 if torch.cuda.get_device_capability(device)[0] == 9 else VARLEN_PATH


def compiles(kind: str, attention: str, identity: SegmentSpec, shape: Shape, threads: int) -> bool:
    """Whether `compile: auto` means true: the model can be traced, the compiler is there, and compiling pays.

    A GPU needs variable-length attention, Triton and a C compiler. A CPU needs a C++ compiler, and an hour of
    arithmetic at `CPU_FLOPS` per thread: compiling takes a minute, at each start of the segment.
    """
    if identity.dropout > 0.0:
        return False
    if attention in (VARLEN_PATH, FA3):
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        return importlib.util.find_spec("triton") is not None and compiler is not None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    steps = identity.last_step - identity.first_step
    operations = shape.flops(steps * identity.sequences_per_step * identity.sequence_length, 0)
    return kind == "cpu" and compiler is not None and operations >= 3600 * CPU_FLOPS * threads


def settle(
    path: Path,
    resolved: dict[str, Any],
    asked: Execution,
    say: Callable[[str], None],
    *,
    begun: bool,
    checkpoint: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the resolved execution, or return the one that an earlier attempt wrote.

    `begun`: there is a checkpoint. Without one, only what was learned from running out of memory is kept.
    `checkpoint`: the execution that the checkpoint names, which counts where the file was damaged.
    If the number of processes or the sharding has changed, training goes on with the new values: the batches stay
    the same, the last bits do not. Raises ConfigError if the earlier attempt's device is not here.
    """
    try:
        earlier = read_sealed(path)
    except FileNotFoundError:
        write_sealed(path, resolved)
        return resolved
    except DamagedArtifact as error:
        earlier = checkpoint or resolved
        say(f"warning: {error} It is written anew.")
        write_sealed(path, earlier)
    if not begun:
        again = _with_less_memory(earlier, resolved)
        if again != earlier:
            write_sealed(path, again)
        return again
    device_of(earlier["device"])
    earlier = {**_EARLIER, **earlier, "gradient_checkpointing": as_mode(earlier["gradient_checkpointing"])}
    if any(earlier.get(name, 1) != resolved[name] for name in ("processes", "sharding")):
        earlier = _go_on_by_others(path, earlier, resolved, say)
    changed = {name for entry in earlier.get("before", []) for name in entry}  # reported when they changed
    for name in (name for name in _BITS if name not in changed):
        if earlier[name] != resolved[name] and getattr(asked, name, AUTO) not in (AUTO, None, False):
            say(
                f"warning: {name} stays {earlier[name]} as this work began, not {resolved[name]}: it touches rounding."
            )
    if earlier["versions"] != resolved["versions"]:
        say(
            f"warning: begun with {earlier['versions']}, now {resolved['versions']}: the last bits may differ."
        )
    return earlier


def _with_less_memory(earlier: dict[str, Any], resolved: dict[str, Any]) -> dict[str, Any]:
    """The resolved execution, but with what an attempt needed that was asked for the same and ran out of memory."""
    steps = [entry for entry in earlier.get("before", []) if "out_of_memory_at_step" in entry]
    names = ("micro_batch", "gradient_checkpointing")
    same = ("device", "processes", "sharding")
    if not steps or any(steps[0].get(name) != resolved[name] for name in names):
        return resolved
    if any(earlier.get(name) != resolved[name] for name in same):
        return resolved
    return {**resolved, **{name: earlier[name] for name in names}, "before": steps}


def _go_on_by_others(
    path: Path, earlier: dict[str, Any], resolved: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    names = ("processes", "threads", "sharding")
    before = {name: earlier.get(name, 1) for name in names}
    now = {name: resolved[name] for name in names}
    if now["sharding"] == FULL:  # does not go together with a compiled model
        now |= {"compile": False, "fuse_products": False}
    say(
        f"warning: begun by {_group(before)}, goes on with {_group(now)}: the same batches in the same order, but the "
        "last bits will differ from a run that never changed."
    )
    changed = {**earlier, **now, "before": [*earlier.get("before", []), before]}
    write_sealed(path, changed)
    return changed


def _group(of: dict[str, Any]) -> str:
    return f"{of['processes']} processes" + (" that share the weights out" if of["sharding"] == FULL else "")


def apply(execution: dict[str, Any], most_memory: int | None = None) -> None:
    """Set the threads, this process's GPU, and deterministic kernels: always on CPU, on a GPU if `deterministic` is
    set.

    torch refuses to take more than `most_memory` bytes of the GPU. Must be called before anything is computed.
    """
    torch.set_num_threads(execution["threads"])
    device = torch.device(execution["device"])
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda" and execution["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS)  # read when the first product is computed
    if device.index is not None:
        torch.cuda.set_device(device)
    if execution.get("attention") == FA3:
        _use_fa3()
    if device.type == "cuda" and most_memory is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, most_memory / total), device)
    if device.type == "cuda" and execution["deterministic"]:
        inductor: Any = importlib.import_module("torch._inductor.config")
        inductor.deterministic = (
            True  # or it chooses kernels by their timing; torch 2.13 sets it below, older ones do not
        )
    if execution["deterministic"]:
        torch.use_deterministic_algorithms(True)
        # every buffer is written before it is read
        deterministic: Any = torch.utils.deterministic
        deterministic.fill_uninitialized_memory = False


def _use_fa3() -> None:
    switch: Any = torch.nn.attention
    try:
        switch.activate_flash_attention_impl("FA3")
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"This training began with FlashAttention 3, which does not load here ({error}): install "
            "flash_attn_interface, as it was where training began."
        ) from error


def device_name(device: str) -> str:
    """The name that the GPU or the processor reports."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and the quota of its control group (version 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 operations per second of a known GPU, from its data sheet; None on CPU and for unknown GPUs."""
    return known_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def known_peak(name: str) -> float | None:
    """Dense bf16 operations per second by a GPU's name, such as "NVIDIA H100 80GB HBM3" or "H100"; None if unknown."""
    known = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
    return next((flops for mark, flops in known.items() if mark in name), None)


def memory_of(device: str, most: int | None = None) -> int:
    """Bytes of memory of the GPU, or of the host; `most` at most."""
    if torch.device(device).type == "cuda":
        total = int(torch.cuda.get_device_properties(device).total_memory)
    else:
        total = memory.host_memory()
    return total if most is None else min(total, most)


def device_of(asked: str) -> str:
    """Resolve `auto`. Raises ConfigError for a device that is not here."""
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
            f"The device {asked} is not available here. Go on where it is, or set training.execution.device to auto or "
            "cpu; what has checkpoints stays on the device that it began on."
        )
    return asked


def _check_gpus(device: str, processes: Processes) -> None:
    if torch.device(device).type == "cuda" and processes.count > 1:
        here = torch.cuda.device_count()
        if processes.local_count > here or torch.device(device).index is not None:
            raise ConfigError(
                f"{processes.local_count} processes on this machine need a GPU each, and execution.device: cuda; "
                f"it has {here} (device: {device}). Lower training.execution.processes."
            )


def versions() -> dict[str, str]:
    """Versions of the software that computes: Python, torch, transformers."""
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
