"""Peak memory of this process and all that it starts, while a block runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import psutil

_SECONDS = 0.5


def memory_of_tree() -> int:
    """Bytes that this process and its descendants hold. A shared page counts in parts (PSS), where these are told."""
    this = psutil.Process()
    total = 0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += _held(process)
    return total


def _held(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.AccessDenied, AttributeError):
        return int(process.memory_full_info().pss)
    return int(process.memory_info().rss)


@contextlib.contextmanager
def watched(tell: Callable[[int], None]) -> Iterator[None]:
    """Tell the memory of the tree twice a second, from a thread beside the block."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_SECONDS):
            with contextlib.suppress(psutil.Error, OSError):
                tell(memory_of_tree())

    thread = threading.Thread(target=watch, daemon=True, name="memory")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
