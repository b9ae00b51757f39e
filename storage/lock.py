"""`flock` on a file that is never unlinked. The kernel releases it when the last process that holds it dies.

A child that inherits the descriptor (`Lock.descriptor`, passed by `pass_fds`) holds the lock too. So a work directory
has no second writer while an orphan is still alive.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class Lock:
    """An exclusive (or shared) lock. It is polled, so that a cancellation takes effect during the wait.

    `waiting` is called once, with the path, if another process holds the lock.
    """

    def __init__(
        self,
        path: Path,
        *,
        shared: bool = False,
        poll_seconds: float = 0.1,
        waiting: Callable[[Path], None] | None = None,
    ) -> None:
        self.path = path
        self.shared = shared
        self.poll_seconds = poll_seconds
        self.waiting = waiting
        self._descriptor: int | None = None

    @property
    def descriptor(self) -> int:
        """The open, locked descriptor. Raises RuntimeError if the lock is not held."""
        if self._descriptor is None:
            raise RuntimeError(f"{self.path} is not locked")
        return self._descriptor

    def try_acquire(self) -> bool:
        """Take the lock if it is free now; returns whether this lock is held."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def acquire(self) -> None:
        """Wait until the lock is acquired."""
        told = False
        while not self.try_acquire():
            if not told and self.waiting:
                self.waiting(self.path)
                told = True
            time.sleep(self.poll_seconds)

    def release(self) -> None:
        """Release the lock. The file stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
