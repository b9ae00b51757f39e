"""One run at a time on a GPU: `flock` on `.onward/gpu-<name>.lock`, for terminal runs and workers of a home alike.

The trainer inherits the descriptor, so the lock is free when the last process that computes there is gone, however it
went. Where there is no CUDA device nothing is locked.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.lock import Lock


@dataclass(frozen=True)
class Gpu:
    """What a run's stages take for themselves while they compute. `owner` is what others are told of it."""

    directory: Path
    device: str
    owner: str

    def name(self) -> str | None:
        """The device's name: its place or id in CUDA_VISIBLE_DEVICES; None where stages compute on the CPU."""
        if self.device == "cpu":
            return None
        if self.device in ("auto", "cuda"):
            import torch

            if not torch.cuda.is_available():
                return None
            first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
            return re.sub(r"[^A-Za-z0-9-]", "-", first) or "0"
        return self.device

    @contextlib.contextmanager
    def held(self, waiting: Callable[[str], None]) -> Iterator[tuple[int, ...]]:
        """Take the device, polling so that a cancel gets through; gives the descriptors that a child is to inherit.

        `waiting` is called once, with who has it.
        """
        name = self.name()
        if name is None:
            yield ()
            return
        path = self.directory / f"gpu-{name}.lock"
        with Lock(path, waiting=lambda path: waiting(_owner(path)), poll_seconds=0.5) as lock:
            with contextlib.suppress(OSError):
                path.write_text(f"{self.owner}, process {os.getpid()}")
            yield (lock.descriptor,)


def _owner(path: Path) -> str:
    """Who took it last, which is who has it, as far as is known."""
    with contextlib.suppress(OSError):
        return f"{path.name.removesuffix('.lock')} is taken by {path.read_text() or 'another run'}"
    return "it is taken by another run"
