"""What is told of a run, a line when something began, was made or failed: to a terminal, and to Prefect's log.

Standard error only. No line holds a password or a token, whoever wrote it. Stages that were found in the store are told
together, and in Prefect's log those that were made in no time, too: it is to be read in a few lines.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from storage.secrets import without_secrets

_MARKS = {"built": "✓", "reproduced": "="}
_SHORT_SECONDS = 3.0
_TOGETHER_SECONDS = 60.0
_RATE_SECONDS = 3.0


class Console:
    """Tells a run in a few lines. `tell` gets each line too, with whether it is a warning."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._guard = threading.RLock()
        self._last = 0.0
        self._told = ("", "", 0.0, 0)
        self._cached: dict[str, int] = {}
        self._short: dict[str, int] = {}
        self._short_since = 0.0
        self._short_seconds = 0.0
        self.tell: Callable[[str, bool], None] | None = None
        self.warnings: list[str] = []

    def line(self, text: str, warning: bool = False) -> None:
        """One line."""
        with self._guard:
            self.flush()
            self._write(text)
            self._tell(text, warning)

    def warn(self, text: str) -> None:
        """Something the user should know."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.line(f"! {text}", warning=True)

    def begun(self, label: str, how: str = "") -> None:
        """A stage that takes its time."""
        self.line(f"▸ {label}{f', {how}' if how else ''}")

    def failed(self, label: str, message: str) -> None:
        """A stage that could not finish."""
        self.line(f"✗ {label}: {message}", warning=True)

    def done(self, label: str, state: str, seconds: float, stats: Mapping[str, Any]) -> None:
        """A stage that is finished, or was found in the store; those are told at the next other line."""
        stage = label.split(" · ", 1)[0]
        with self._guard:
            if state == "cached":
                self._flush_short()
                self._cached[stage] = self._cached.get(stage, 0) + 1
                return
            self._flush_cached()
            words = {"built": f"{seconds:6.1f} s", "reproduced": "reproduced, same bytes"}[state]
            line = f"{_MARKS[state]} {label:<44} {words}  {counts(stats)}".rstrip()
            self._write(line)
            if seconds >= _SHORT_SECONDS or state != "built":
                self._flush_short()
                self._tell(line)
                return
            now = time.monotonic()
            self._short_since = self._short_since if self._short else now
            self._short[stage] = self._short.get(stage, 0) + 1
            self._short_seconds += seconds
            if now - self._short_since > _TOGETHER_SECONDS:
                self._flush_short()

    def flush(self) -> None:
        """Tell what waits to be told together."""
        with self._guard:
            self._flush_short()
            self._flush_cached()

    def _flush_cached(self) -> None:
        if self._cached:
            found, self._cached = self._cached, {}
            line = f"· {sum(found.values())} found in the store: {_counted(found)}"
            self._write(line)
            self._tell(line)

    def _flush_short(self) -> None:
        if self._short:
            made, self._short = self._short, {}
            self._tell(f"✓ {sum(made.values())} made in {self._short_seconds:.1f} s: {_counted(made)}")
            self._short_seconds = 0.0

    def progress(self, label: str, done: int, total: int | None, unit: str) -> None:
        """How far a stage is and about how long it still takes; on a terminal only, at most four times a second."""
        now = time.monotonic()
        if self._quiet or not self._stream.isatty() or now - self._last < 0.25:
            return
        self._last = now
        share = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
        with self._guard:
            self._clear()
            self._stream.write(f"● {label}  {share}{self._left(label, done, total, unit, now)}"[:110])
            self._stream.flush()

    def _left(self, label: str, done: int, total: int | None, unit: str, now: float) -> str:
        """The rest at the rate since it was first told of: an attempt that goes on from the middle counts from there."""
        if self._told[:2] != (label, unit):
            self._told = (label, unit, now, done)
        _, _, began, first = self._told
        if not total or done <= first or now - began < _RATE_SECONDS:
            return ""
        minutes = (total - done) * (now - began) / (done - first) / 60
        return f", about {minutes:,.0f} min left" if minutes >= 1 else ", less than a minute left"

    def _write(self, text: str) -> None:
        if not self._quiet:
            self._clear()
            self._stream.write(without_secrets(text) + "\n")
            self._stream.flush()

    def _tell(self, text: str, warning: bool = False) -> None:
        if self.tell is not None:
            self.tell(without_secrets(text), warning)

    def _clear(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")


def _counted(stages: Mapping[str, int]) -> str:
    return ", ".join(f"{stage} × {count}" if count > 1 else stage for stage, count in stages.items())


def counts(stats: Mapping[str, Any]) -> str:
    """`1,200 → 1,100 documents, 400,000 tokens`: what came in and went out, as far as a stage counts it."""
    words = []
    if stats.get("documents_in") is not None and stats.get("documents_out") is not None:
        words.append(f"{stats['documents_in']:,} → {stats['documents_out']:,} documents")
    elif stats.get("documents") is not None:
        words.append(f"{stats['documents']:,} documents")
    if stats.get("tokens") is not None:
        words.append(f"{stats['tokens']:,} tokens")
    return ", ".join(words)
