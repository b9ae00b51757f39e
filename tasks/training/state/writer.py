"""Checkpoints beside the steps: tensors are copied to host memory, and one thread makes the copy durable meanwhile.

A step waits for the copy, and for the write before if that is not finished: at most one is under way. The copies
use host memory, which is reused by the next checkpoint and page-locked if they come from a GPU; they take no GPU
memory. Writing, hashing and fsync release Python's lock, so a thread is enough.

What must stay true: `durable_step` moves only when the checkpoint would survive a power cut. A failed write ends
the training, at the next step or at the latest when the write is waited for.
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
"""Tensors by name, for each file name."""


class Writer:
    """Writes below `root` and keeps the newest `keep_last` there. Used by one process, from one thread."""

    def __init__(self, root: Path, keep_last: int, durable_step: int | None, say: Say) -> None:
        self._root, self._keep_last, self._say = root, keep_last, say
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._buffers: dict[tuple[str, str], Tensor] = {}
        self.durable_step = durable_step
        """The step of the newest checkpoint that is whole on the disk."""

    def begin(self, files: Files, state: Mapping[str, Any], sync: Callable[[], None]) -> None:
        """Copy, and start writing the copy. The tensors may change when this returns.

        `sync` makes durable what the state refers to, before the checkpoint itself. Raises the error of the write
        before.
        """
        self.wait()
        began = time.perf_counter()
        copies, ready = self._copied(files)
        seconds = time.perf_counter() - began
        self._under_way = self._thread.submit(self._write, copies, dict(state), ready, sync, seconds)

    def check(self) -> None:
        """Raise the error of the last write, if it has ended and failed."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Wait until no write is under way. Raises the write's error: OSError or SafetensorError, also for a full
        disk.
        """
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def close(self) -> None:
        """End the thread when it is done. A failure that nobody has seen yet is logged."""
        self._thread.shutdown()
        try:
            self.wait()
        except Exception as error:
            self._say(f"warning: the last checkpoint could not be written ({error})")
        self._buffers.clear()

    def _copied(self, files: Files) -> tuple[dict[str, dict[str, Tensor]], Callable[[], None]]:
        """The tensors on the host, and a function that waits until they are there: a GPU copies asynchronously."""
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
            checkpoints.clean(self._root)  # a half checkpoint would keep a full disk full
            raise
        self.durable_step = int(state["step"])
        checkpoints.prune(self._root, self._keep_last)
        seconds = time.perf_counter() - began
        self._say(
            f"checkpoint at step {state['step']}: copied in {copying:.2f} s, written in {seconds:.1f} s beside the steps"
        )


def _when_there(devices: set[torch.device]) -> Callable[[], None]:
    """A function that waits until these GPUs have done everything queued so far."""
    events = []
    for device in devices:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        events.append(event)

    def wait() -> None:
        for event in events:
            event.synchronize()

    return wait
