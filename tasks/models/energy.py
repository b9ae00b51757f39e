"""Energy that GPUs say they have used: NVML's counter of millijoules since the driver was loaded, read by ctypes.

GPUs from Volta on count it; others, parts of a GPU (MIG) and machines without NVIDIA's driver do not, and nothing is told
of them. What an attempt used is added to a file in the work directory every few seconds, so that a kill loses no more.
The counter is the device's: what another process used on it meanwhile is in it too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import time
from pathlib import Path

LIBRARY = "libnvidia-ml.so.1"
_EVERY_SECONDS = 10.0


class Meter:
    """What the first `count` visible GPUs use from now on, added to what the file says of attempts before."""

    def __init__(self, file: Path, count: int, library: str = LIBRARY) -> None:
        self._file = file
        self._before = read_joules(file) or 0.0
        self._counters = _counters(library, count)
        self._start = self._now()
        self._noted = time.monotonic()

    def note(self, *, at_once: bool = False) -> None:
        """Write the sum, if it is time to; nothing where the device does not tell."""
        if self._start is None or (not at_once and time.monotonic() - self._noted < _EVERY_SECONDS):
            return
        now = self._now()
        if now is None:
            return
        self._noted = time.monotonic()
        whole = self._file.with_suffix(".new")
        whole.write_text(json.dumps({"joules": self._before + now - self._start}))
        whole.replace(self._file)

    def _now(self) -> float | None:
        """Joules of all devices together; None where one does not tell."""
        if self._counters is None:
            return None
        nvml, handles = self._counters
        total = 0
        for handle in handles:
            value = ctypes.c_ulonglong()
            if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)):
                return None
            total += value.value
        return total / 1000


def read_joules(file: Path) -> float | None:
    """What the file says; None where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return float(json.loads(file.read_bytes())["joules"])
    return None


def _counters(library: str, count: int) -> tuple[ctypes.CDLL, list[ctypes.c_void_p]] | None:
    """NVML and the handles of the devices; None where there is no driver, or not so many devices."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return None
    if nvml.nvmlInit_v2():
        return None
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    handles = []
    for place in range(count):
        handle, name = ctypes.c_void_p(), visible[place] if place < len(visible) else str(place)
        if visible and place >= len(visible):
            return None
        if name.isdigit():
            failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
        else:
            failed = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
        if failed:
            return None
        handles.append(handle)
    return nvml, handles
