"""Out of memory in training: halve the micro-batch, then checkpoint all layers, and go on from the newest
checkpoint.

The global batches stay the same; the last bits of their sums may change. So the change is first made durable in
execution.json, which every restart follows. The earlier values are kept there under `before`.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from typing import Any

import torch

from storage.errors import StageFailed
from tasks.training.recompute import FULL
from tasks.training.spec import as_mode
from tasks.training.state.sealed import read_sealed, write_sealed

_M_MMAP_THRESHOLD = -3
"""A parameter of glibc (mallopt(3)): a larger block is mapped on its own and returns to the system when it is
freed. By default the threshold grows to 32 MiB, and freed blocks below it stay with a process that is already at
its limit.
"""
AT_STEP = "out_of_memory_at_step"
"""Key in an entry of `before`: the step at which memory ran out."""
_TEXTS = (
    "CUDA out of memory",
    "HIP out of memory",
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a memory object",
    "could not create a primitive",
    "std::bad_alloc",
)
"""Messages of torch and of libraries below it for errors that have no class of their own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch or a library below it failed to get memory, on a GPU or on the host.

    torch.compile raises errors of its own around the one that it met (BackendCompilerFailed, InductorError): as their
    cause, as `inner_exception`, or only in their text. A StageFailed is somebody's decision and is not looked into.
    """
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen or isinstance(one, StageFailed):
            continue
        seen.add(id(one))
        if isinstance(one, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(one, RuntimeError) and any(text in str(one) for text in _TEXTS):
            return True
        inner = getattr(one, "inner_exception", None)
        pending.append(inner if isinstance(inner, BaseException) else None)
        pending.append(one.__cause__ or (None if one.__suppress_context__ else one.__context__))
    return False


def smaller(execution: dict[str, Any], step: int, checkpointed: bool = True) -> dict[str, Any] | None:
    """An execution that needs less memory than `execution`, which ran out of it at `step`; None if there is none.

    It has half the micro-batch. If the micro-batch is one sequence, it checkpoints all layers instead.
    """
    mode = as_mode(execution["gradient_checkpointing"])
    before = {"micro_batch": execution["micro_batch"], "gradient_checkpointing": mode, AT_STEP: step}
    if execution["micro_batch"] > 1:
        now: dict[str, Any] = {"micro_batch": execution["micro_batch"] // 2}
    elif mode != FULL and checkpointed:
        now = {"gradient_checkpointing": FULL}
    else:
        return None
    return {**execution, **now, "before": [*execution.get("before", []), before]}


def go_smaller(
    path: Path, execution: dict[str, Any], step: int, error: BaseException, *, checkpointed: bool = True
) -> str:
    """Change execution.json at `path` to need less memory than `execution`. Returns a message about it.

    `checkpointed`: whether the model's layers can be checkpointed. Any process may call it: all write the same.
    Raises StageFailed if nothing needs less.
    """
    changed = smaller(execution, step, checkpointed)
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if changed is None:
        mode = "of all layers" if checkpointed else "not offered by this model"
        raise StageFailed(
            f"Out of memory at step {step} ({reason}), at a micro-batch of one sequence, gradient checkpointing {mode}. "
            "Choose a smaller packing.sequence_length or model, training.optimizer.states: 8bit, or "
            "a device with more memory."
        ) from error
    _libc("mallopt", _M_MMAP_THRESHOLD, 1 << 20)
    found = read_sealed(path)
    names = ("micro_batch", "gradient_checkpointing")
    if all(as_mode(found[name]) == as_mode(execution[name]) for name in names):
        write_sealed(path, changed)
    told = ", ".join(f"{name} {changed[name]}" for name in names if changed[name] != execution[name])
    return (
        f"out of memory at step {step} ({reason}): goes on from the newest checkpoint with {told}. The global "
        "batches stay; the last bits will differ from a run that began so."
    )


def let_go(compiled: bool) -> None:
    """Free what the model held until now, before it is loaded again."""
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _libc("malloc_trim", 0)


def _libc(name: str, *arguments: int) -> None:
    """Call a function of glibc, if glibc is there."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), name):
        getattr(library, name)(*arguments)
