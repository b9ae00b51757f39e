"""One run at a time on each GPU: `flock` on `.onward/gpu-<name>.lock`, for terminal runs and workers of a home alike.

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
    count: int = 1
    """Devices that it computes on: the first ones of those that are visible, one for each trainer process."""

    def names(self) -> tuple[str, ...]:
        """The devices' names: their places or ids in CUDA_VISIBLE_DEVICES; none where stages compute on the CPU."""
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
        """Take the devices, polling so that a cancel gets through; gives the descriptors that a child is to inherit.

        In the order of their names, whatever order they are visible in, so that no two runs wait for each other.
        `waiting` is called once for each that is taken, with who has it.
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
    """Who took it last, which is who has it, as far as is known."""
    with contextlib.suppress(OSError):
        return f"{path.name.removesuffix('.lock')} is taken by {path.read_text(encoding='utf-8') or 'another run'}"
    return "it is taken by another run"
