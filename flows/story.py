"""What a terminal shows of a run: a line when a stage begins, was found, is finished or failed. Standard error only."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, TextIO

_MARKS = {"built": "✓", "cached": "·", "reproduced": "="}


class Story:
    """Tells a run in a few lines. `tell` is called with each line too (a logger, say)."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._guard = threading.Lock()
        self._last = 0.0
        self._cached = 0
        self.warnings: list[str] = []

    def line(self, text: str) -> None:
        """One line."""
        if self._quiet:
            return
        with self._guard:
            self._clear()
            self._stream.write(text + "\n")
            self._stream.flush()

    def warn(self, text: str) -> None:
        """Something the user should know."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.line(f"! {text}")

    def failed(self, label: str, message: str) -> None:
        """A stage that could not finish."""
        self.line(f"✗ {label}: {message}")

    def done(self, label: str, state: str, seconds: float, stats: Mapping[str, Any]) -> None:
        """A stage that is finished, or was found in the store."""
        words = {"built": f"{seconds:6.1f} s", "cached": "  cached", "reproduced": "reproduced, same bytes"}[
            state
        ]
        self.line(f"{_MARKS[state]} {label:<44} {words}  {_counts(stats)}".rstrip())

    def progress(self, label: str, done: int, total: int | None, unit: str) -> None:
        """How far a stage is; on a terminal only, at most four times a second."""
        now = time.monotonic()
        if self._quiet or not self._stream.isatty() or now - self._last < 0.25:
            return
        self._last = now
        share = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
        with self._guard:
            self._clear()
            self._stream.write(f"● {label}  {share}"[:110])
            self._stream.flush()

    def _clear(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")


def _counts(stats: Mapping[str, Any]) -> str:
    words = []
    if stats.get("documents_in") is not None and stats.get("documents_out") is not None:
        words.append(f"{stats['documents_in']:,} → {stats['documents_out']:,} documents")
    elif stats.get("documents") is not None:
        words.append(f"{stats['documents']:,} documents")
    if stats.get("tokens") is not None:
        words.append(f"{stats['tokens']:,} tokens")
    return ", ".join(words)
