"""Checkpoints off the step path: tensors are copied to host memory, one thread makes the copy durable meanwhile.

A step waits for the copy, and for the write before where that is still under way: one at most is. The copies lie in
host memory that is used again from one checkpoint to the next, page-locked where they come from a GPU, and take none
of the GPU's. Writing, hashing and fsync let go of Python's lock, so a thread does: no process is needed.

What must stay true: `durable_step` moves when the checkpoint would survive a power cut, never before; what could not
be written ends the training, at the next step or at the latest when it is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.training.state import checkpoint as checkpoints
from tasks.training.state.work import Say

Files = Mapping[str, Mapping[str, Tensor]]
"""Tensors by name, by the name of the file that they go to."""


class Writer:
    """Writes below `root`, where it keeps the newest `keep_last`. Used by one process, from one thread."""

    def __init__(self, root: Path, keep_last: int, durable_step: int | None, say: Say) -> None:
        self._root, self._keep_last, self._say = root, keep_last, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self.durable_step = durable_step
        """The step of the newest checkpoint that is whole on the disk."""

    def begin(self, files: Files, state: Mapping[str, Any], sync: Callable[[], None]) -> None:
        """Copy, and write the copy from now on; the tensors may change when this returns.

        `sync` makes durable what the state refers to, before the checkpoint is. Raises what the write before met.
        """
        self.wait()
        began = time.perf_counter()
        copies, ready = self._copied(files)
        seconds = time.perf_counter() - began
        self._under_way = self._thread.submit(self._write, copies, dict(state), ready, sync, seconds)

    def check(self) -> None:
        """Raise what the last write met, if it has ended and failed."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is under way. Raises what the write met: OSError or SafetensorError, for a full disk too."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """Let the thread go when it is done. A failure that nobody has been told of is said."""
        self._thread.shutdown()
        try:
            self.wait()
        except Exception as error:
            self._say(f"warning: the last checkpoint could not be written ({error})")
        self._buffers.clear()

    def _copied(self, files: Files) -> tuple[dict[str, dict[str, Tensor]], Callable[[], None]]:
        """The tensors on the host, and what waits until they are there: a GPU copies in its own time."""
        copies: dict[str, dict[str, Tensor]] = {}
        devices = set()
        for file, tensors in files.items():
            copies[file] = {}
            for name, tensor in tensors.items():
                buffer = self._buffer(file, name, tensor)
                buffer.copy_(tensor, non_blocking=True)
                copies[file][name] = buffer
                if tensor.is_cuda:
                    devices.add(tensor.device)
        return copies, _when_there(devices)

    def _buffer(self, file: str, name: str, tensor: Tensor) -> Tensor:
        found = self._buffers.get((file, name))
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            found = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[file, name] = found
        return found

    def _write(
        self,
        copies: dict[str, dict[str, Tensor]],
        state: dict[str, Any],
        ready: Callable[[], None],
        sync: Callable[[], None],
        copying: float,
    ) -> None:
        began = time.perf_counter()
        ready()
        sync()
        try:
            checkpoints.save_checkpoint(self._root, copies, state)
        except Exception:
            checkpoints.clean(self._root)  # half a checkpoint would keep a full disk full
            raise
        self.durable_step = int(state["step"])
        checkpoints.prune(self._root, self._keep_last)
        seconds = time.perf_counter() - began
        self._say(
            f"checkpoint at step {state['step']}: copied in {copying:.2f} s, written in {seconds:.1f} s beside the steps"
        )


def _when_there(devices: set[torch.device]) -> Callable[[], None]:
    """What waits until everything that these GPUs were told so far is done."""
    events = []
    for device in devices:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        events.append(event)

    def wait() -> None:
        for event in events:
            event.synchronize()

    return wait
