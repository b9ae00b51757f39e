"""One run at a time on each GPU: `flock` on `.onward/gpu-<name>.lock`, for terminal runs and workers of a home.

The trainer inherits the descriptor. So the lock is free when the last process that computes on the GPU is gone, however
it ended. Without a CUDA device, nothing is locked.
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
    """The devices that a run's stages reserve while they compute. Other runs are shown `owner`."""

    directory: Path
    device: str
    owner: str
    count: int = 1
    """Number of devices: the first visible ones, one for each trainer process."""

    def names(self) -> tuple[str, ...]:
        """The devices' indices or ids in CUDA_VISIBLE_DEVICES; empty if stages compute on the CPU."""
        if self.device == "cpu":
            return ()
        kind, _, place = self.device.partition(":")
        if kind not in ("auto", "cuda"):
            return (self.device,)
        import torch

        if not torch.cuda.is_available():
            return ()
        first = int(place or 0)
        listed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
        visible = [re.sub(r"[^A-Za-z0-9-]", "-", name) for name in listed if name]
        if not visible:
            return tuple(str(number) for number in range(first, first + self.count))
        return tuple(visible[first : first + self.count])

    @contextlib.contextmanager
    def held(self, waiting: Callable[[str], None]) -> Iterator[tuple[int, ...]]:
        """Take the devices and yield the descriptors that a child must inherit. Polls, so that a cancellation takes effect.

        Devices are locked in the order of their names, not of visibility, so that no two runs wait for each other.
        `waiting` is called once for each device that is taken, with the name of its owner.
        """
        with contextlib.ExitStack() as held:
            yield tuple([held.enter_context(self._one(name, waiting)) for name in sorted(set(self.names()))])

    @contextlib.contextmanager
    def _one(self, name: str, waiting: Callable[[str], None]) -> Iterator[int]:
        path = self.directory / f"gpu-{name}.lock"
        with Lock(path, waiting=lambda path: waiting(_owner(path)), poll_seconds=0.5) as lock:
            with contextlib.suppress(OSError):
                path.write_text(f"{self.owner}, process {os.getpid()}", encoding="utf-8")
            yield lock.descriptor


def _owner(path: Path) -> str:
    """The last known owner, which is the present one as far as is known."""
    with contextlib.suppress(OSError):
        return f"{path.name.removesuffix('.lock')} is taken by {path.read_text(encoding='utf-8') or 'another run'}"
    return "it is taken by another run"
