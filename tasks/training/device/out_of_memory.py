"""Out of memory while training: a smaller micro-batch, then checkpointing of all layers, and on from the checkpoint.

The global batches stay as they are, sum by sum; the last bits may not. So what changes is made durable before anything
else, in execution.json, which every restart goes on by; what was is kept beside it under `before`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from storage.errors import StageFailed
from tasks.training.recompute import FULL
from tasks.training.spec import as_mode
from tasks.training.state.checkpoint import write_json

_M_MMAP_THRESHOLD = -3
"""glibc's parameter (mallopt(3)): what is larger is mapped by itself, and goes back to the system when it is freed. By
default the threshold grows to 32 MiB, and what was freed below it stays with the process, which is at its limit."""
AT_STEP = "out_of_memory_at_step"
"""In an entry of `before`: it ended because memory did, at this step."""
_TEXTS = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "could not create a memory object",
    "could not create a primitive",
    "std::bad_alloc",
)
"""How torch and the libraries below it say it where there is no class of its own for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, a library below it or Python itself could not get memory, on a GPU or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def smaller(execution: dict[str, Any], step: int, checkpointed: bool = True) -> dict[str, Any] | None:
    """What takes less memory than `execution`, which ran out of it at `step`: half the micro-batch, and where that is
    one sequence, gradient checkpointing of all layers. None: there is nothing less."""
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
    """Make execution.json at `path` ask for less than `execution` did, and tell of it.

    `checkpointed`: whether the model's layers can be. Any process may call it: what several write is the same. Raises
    StageFailed where there is nothing less.
    """
    changed = smaller(execution, step, checkpointed)
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    if changed is None:
        mode = "of all layers" if checkpointed else "not offered by this model"
        raise StageFailed(
            f"Out of memory at step {step} ({reason}), at a micro-batch of one sequence, gradient checkpointing {mode}. "
            "Checkpoints are kept. Choose a smaller packing.sequence_length or model, training.optimizer.states: 8bit, or "
            "a device with more memory."
        ) from error
    _libc("mallopt", _M_MMAP_THRESHOLD, 1 << 20)
    found = json.loads(path.read_text(encoding="utf-8"))
    names = ("micro_batch", "gradient_checkpointing")
    if all(as_mode(found[name]) == as_mode(execution[name]) for name in names):
        write_json(path, changed)
    told = ", ".join(f"{name} {changed[name]}" for name in names if changed[name] != execution[name])
    return (
        f"out of memory at step {step} ({reason}): goes on from the newest checkpoint with {told}. The global "
        "batches stay; the last bits will differ from a run that began so."
    )


def let_go(compiled: bool) -> None:
    """Give back what the model that was trained until now held, before it is loaded anew."""
    if compiled:
        torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    _libc("malloc_trim", 0)


def _libc(name: str, *arguments: int) -> None:
    """Call a function of glibc, where that is what runs here."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), name):
        getattr(library, name)(*arguments)
