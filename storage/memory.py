"""Memory that is free, given back to the system, so that what one step took is there for the next process that needs it."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys


def give_back() -> None:
    """Return what this process has freed and Arrow's pool and glibc's heaps keep for its own next use. Takes a hundredth
    of a second."""
    if (arrow := sys.modules.get("pyarrow")) is not None:  # no process loads it for this
        arrow.default_memory_pool().release_unused()
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def give_back_in_worker() -> None:
    """In a worker process, after a shard: also what only circles of Python's objects hold.

    A worker makes shards of all stages, each of which needs its memory in other places, so it would come to hold the sum.
    In the run's own process, with all its libraries, the search for circles takes too long.
    """
    if multiprocessing.parent_process() is not None:
        gc.collect()
        give_back()
