"""Energy used by GPUs, from NVML's counter of millijoules since the driver was loaded.

GPUs from Volta on have this counter. Older GPUs, parts of a GPU (MIG) and machines without NVIDIA's driver do not;
then nothing is reported. Every few seconds, the energy of an attempt is added to a file in the work directory, so a
kill loses no more than that. The counter belongs to the device, so it includes the energy of other processes on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

_EVERY_SECONDS = 10.0


class Meter:
    """Energy of the first `count` visible GPUs from now on, added to the sum of earlier attempts in the file."""

    def __init__(self, file: Path, count: int) -> None:
        self._file = file
        self._before = read_joules(file) or 0.0
        self._devices = _devices(count)
        self._start = self._now()
        self._noted = time.monotonic()

    def note(self, *, at_once: bool = False) -> None:
        """Write the sum, if it is time to. Writes nothing if a device does not report."""
        if self._start is None or (not at_once and time.monotonic() - self._noted < _EVERY_SECONDS):
            return
        now = self._now()
        if now is None:
            return
        self._noted = time.monotonic()
        whole = self._file.with_suffix(".new")
        whole.write_text(json.dumps({"joules": self._before + now - self._start}), encoding="utf-8")
        whole.replace(self._file)

    def _now(self) -> float | None:
        """Joules of all devices together; None if one does not report."""
        if not self._devices:
            return None
        import pynvml

        with contextlib.suppress(pynvml.NVMLError):
            return sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._devices)) / 1000
        return None


def read_joules(file: Path) -> float | None:
    """The sum in the file; None if there is no file."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return float(json.loads(file.read_bytes())["joules"])
    return None


def _devices(count: int) -> list[Any]:
    """NVML handles of the first visible devices; empty without a driver or with too few devices."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    names = visible or [str(place) for place in range(count)]
    if len(names) < count:
        return []
    import pynvml  # importing takes 0.1 s, which a run on a CPU can save

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return [
            pynvml.nvmlDeviceGetHandleByIndex(int(name))
            if name.isdecimal()
            else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in names[:count]
        ]
    return []
