"""What is known of one stage while it runs: how far it is, how fast, and what it still takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.dag.call import Call
from flows.ui.whole import At
from storage.store import Request
from tasks import stages

_WINDOW_SECONDS = 120.0
_PASSES = {
    "dedup": ("sketches", "documents"),
    "decontaminate": ("matches", "overlaps", "documents"),
}
"""The shards that a stage makes, in order, for stages that process their documents more than once."""


@dataclass
class StageProgress:
    """The present knowledge about one stage. `samples` are (time, share done, units done) of the current pass."""

    call: Call
    began: float
    why: str | None = None
    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""
    share: float = 0.0
    samples: deque[tuple[float, float, int]] = field(default_factory=deque)
    stats: Mapping[str, Any] = field(default_factory=dict)
    shown: bool = False
    """Whether its bar is shown with a state from before its end."""
    over: bool = False
    ended: float = 0.0
    settled: bool = False
    """Whether its bar shows its end or is not needed."""

    def follow(self, done: int, total: int | None, unit: str, note: str) -> None:
        """Take in how far it is, or what it waits for."""
        now = time.monotonic()
        if unit != self.unit or done < self.done:
            self.samples.clear()
        self.done, self.total, self.unit, self.note = done, total, unit, note
        self.share = share_of(self.call.request.stage, done, total, unit)
        if unit and (not self.samples or now - self.samples[-1][0] >= 1):
            self.samples.append((now, self.share, done))
            while now - self.samples[0][0] > _WINDOW_SECONDS and len(self.samples) > 2:
                self.samples.popleft()

    def end(self, stats: Mapping[str, Any]) -> None:
        """Take in that it has ended, well or not."""
        self.stats, self.over, self.ended = stats, True, time.monotonic()

    @property
    def state(self) -> str:
        """`running`, `waiting`, `built`, `cached`, `failed` or `stopped`."""
        if self.over:
            stopped = self.call.error is not None and not isinstance(self.call.error, Exception)
            return "stopped" if stopped else self.call.state
        return "waiting" if self.note else "running"

    @property
    def at(self) -> At:
        """Where it is, for the whole run."""
        stage = self.call.request.stage
        if self.over:
            return At(stage, 1.0, 0.0, self.call.seconds, self.ended)
        return At(stage, self.share, self.seconds_left, time.monotonic() - self.began, None)

    @property
    def seconds_left(self) -> float | None:
        """What it still takes at its present rate; None if that is not known."""
        if len(self.samples) < 2:
            return None
        (began, first, _), (ended, last, _) = self.samples[0], self.samples[-1]
        speed = (last - first) / max(ended - began, 1e-6)
        return max((1 - last) / speed - (time.monotonic() - ended), 0.0) if speed > 0 else None

    @property
    def amount(self) -> str:
        """`1,200 of 4,000 documents (pass 1 of 2)`. Shards are converted to their content if that is known."""
        if not self.unit:
            return ""
        done, total, unit = self._in_units()
        text = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
        passes = _PASSES.get(self.call.request.stage, ())
        name = self.unit.removeprefix("shards of ")
        return f"{text} (pass {passes.index(name) + 1} of {len(passes)})" if name in passes else text

    @property
    def rate(self) -> str:
        """`350 documents/s`; empty if it is not known."""
        if len(self.samples) < 2:
            return ""
        (began, _, first), (ended, _, last) = self.samples[0], self.samples[-1]
        done, _, unit = self._in_units()
        scale = done / self.done if self.done else 0.0
        rate = scale * (last - first) / max(ended - began, 1e-6)
        return f"{rate:,.0f} {unit}/s" if rate >= 10 else (f"{rate:,.1f} {unit}/s" if rate > 0 else "")

    def _in_units(self) -> tuple[int, int | None, str]:
        """Convert shards to documents or bytes. Shards have about equal size, so the shares are about equal."""
        if not self.unit.startswith("shards") or not self.total:
            return self.done, self.total, self.unit
        whole, unit = _whole(self.call.request)
        if not whole:
            return self.done, self.total, "shards"
        return whole * self.done // self.total, whole, unit

    @property
    def is_training(self) -> bool:
        """Whether its steps are of the run's own training: that of a new base is another one."""
        request = self.call.request
        return request.stage in stages.TRAINING and getattr(request.config, "kind", "") != "pretrain"

    @property
    def is_report(self) -> bool:
        """Whether it is a report that was made, with which a whole run ends."""
        return self.call.request.stage == "report" and self.over and self.call.state != "failed"


def share_of(stage: str, done: int, total: int | None, unit: str) -> float:
    """Share of the whole stage. Each pass over the documents counts the same."""
    share = min(1.0, done / total) if total else 0.0
    passes = _PASSES.get(stage, ())
    name = unit.removeprefix("shards of ")
    return (passes.index(name) + share) / len(passes) if name in passes else share


def _whole(request: Request) -> tuple[int, str]:
    documents = getattr(request.inputs, "documents", None)
    if documents is not None and documents.stats.get("documents_out"):
        return int(documents.stats["documents_out"]), "documents"
    return int(getattr(request.config, "slice_bytes", 0)), "bytes"
