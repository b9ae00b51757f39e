"""Keeps freed host memory for the next tensor. By itself, the C library gives every large block back to the system.

The pages of a block that comes anew from the system are made and cleared one by one when they are first written. At
135M parameters that was a million page faults in each step, a sixth of its processor time. The peak is what it was: a
step needs the blocks of the step before.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Numbers of mallopt's settings, from glibc's malloc.h."""
_GROWTH_BYTES = 64 << 20


def keep_freed_memory() -> None:
    """From now on, no block is a mapping of its own and nothing is given back. Only glibc has these settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _GROWTH_BYTES)):
        mallopt(setting, value)
