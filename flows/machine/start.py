"""Starts a process faster: Python collects garbage less often. Standard library only.

`python -m flows.machine.start MODULE ARGUMENT…` is `python -m MODULE ARGUMENT…` with that, for a module that imports
something large before its first own line.
"""

from __future__ import annotations

import gc
import runpy
import sys

_THRESHOLDS = (50_000, 20, 50)
"""Objects more than were freed before a collection, and collections of one generation before one of the next.

Importing prefect and mlflow makes a million objects that all stay. With Python's own 700, a quarter of the time of these
imports went into looking through them in vain (3.1 s with it, 2.4 s without).
"""


def collect_rarely() -> None:
    """Let this process collect garbage less often, from now on. What no cycle holds is freed at once as before."""
    gc.set_threshold(*_THRESHOLDS)


def leave_quickly() -> None:
    """Let this process end without a search through all that it has imported, which takes a third of a second."""
    gc.freeze()


def main() -> None:
    """Run a module as the main one."""
    collect_rarely()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
