"""The machine while a run trains or measures, under `system/…`: read by MLflow's own monitors, told by the tracker.

MLflow's thread for them is not used: it asks the server at each sample, and ends for good where none answers.
What would be told while the server is away is not kept. A sample costs a few milliseconds of a core.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows.machine.memory import memory_of_tree
from tasks.models.energy import read_joules

PREFIX = "system/"
SECONDS = 10.0
"""Between two samples; MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL is another number of seconds."""
SAMPLES = 3
"""Samples whose mean is told as one; MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING is another number."""


@dataclass
class Sampler:
    """Reads the machine from time to time. With MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false it reads nothing."""

    seconds: float = field(default_factory=lambda: _number("SAMPLING_INTERVAL", SECONDS))
    samples: int = field(default_factory=lambda: int(_number("SAMPLES_BEFORE_LOGGING", SAMPLES)))
    _monitors: list[Any] | None = None
    _read: int = 0
    _last: float = 0.0

    def __post_init__(self) -> None:
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("false", "0"):
            self._monitors = []

    def read(self, works: Iterable[Path]) -> dict[str, float]:
        """Take a sample if one is due. Returns the means of the last samples if there are enough, else nothing.

        `works`: work directories of the stages under way, for the energy that their GPUs took so far.
        """
        now = time.monotonic()
        if now - self._last < self.seconds or self._monitors == []:
            return {}
        self._last = now
        try:
            if self._monitors is None:
                self._monitors = _monitors()
            for monitor in self._monitors:
                monitor.collect_metrics()
            self._read += 1
            return self._means(works) if self._read >= self.samples else {}
        except Exception:  # a counter that this machine lacks, of which the run must not hear
            self._monitors = []
            return {}

    def _means(self, works: Iterable[Path]) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self._monitors or ():
            found |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        self._read = 0
        with contextlib.suppress(psutil.Error, OSError):
            found["run_memory_megabytes"] = round(memory_of_tree() / 1e6, 1)
        joules = [one for work in works if (one := read_joules(work / "energy.json")) is not None]
        if joules:
            found["training_energy_joules"] = sum(joules)
        return {f"{PREFIX}{name}": float(value) for name, value in found.items()}


def _monitors() -> list[Any]:
    """MLflow's monitors of what this machine has."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    with contextlib.suppress(Exception):  # no GPU, or no driver
        found.append(GPUMonitor())
    return found


def _number(name: str, default: float) -> float:
    try:
        return float(os.environ.get(f"MLFLOW_SYSTEM_METRICS_{name}") or default)
    except ValueError:
        return default
