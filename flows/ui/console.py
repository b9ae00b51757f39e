"""Prints one line when a stage begins, is made or fails, to a terminal and to Prefect's log.

It writes only to standard error. No line holds a password or a token, whatever its origin. Stages found in the store
share one line. In Prefect's log, stages that took almost no time share one too, so that the log stays short.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from rich.cells import cell_len, set_cell_size

from storage.secrets import without_secrets
from tasks.corpus.reasons import commonest

_MARKS = {"built": "✓", "reproduced": "="}
_SHORT_SECONDS = 3.0
_TOGETHER_SECONDS = 60.0
_RATE_SECONDS = 3.0
_SILENT_SECONDS = 30.0
"""A stage at work writes a line to a file after so much silence. On a terminal it shows all the while."""
_UNCHANGED_SECONDS = 300.0
_NEARLY_NONE = 0.1
"""Of the documents: where no more are left, the line says why."""


@dataclass
class _Rate:
    """How fast a stage has been: from `first` at `began` to `done` at `at`, when it last changed, the `times`-th time."""

    label: str
    unit: str
    began: float
    first: int
    at: float
    done: int
    times: int = 0


class Console:
    """Reports a run in a few lines. `tell` also gets each line, and whether it is a warning."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._guard = threading.RLock()
        self._last = 0.0
        self._wrote = time.monotonic()
        self._rate: _Rate | None = None
        self._progressed = ("", 0, "")
        self._cached: dict[str, int] = {}
        self._short: dict[str, int] = {}
        self._short_since = 0.0
        self._short_seconds = 0.0
        self.tell: Callable[[str, bool], None] | None = None
        self.warnings: list[str] = []

    def line(self, text: str, warning: bool = False) -> None:
        """Print one line."""
        with self._guard:
            self.flush()
            self._write(text)
            self._tell(text, warning)

    def warn(self, text: str) -> None:
        """Warn the user, once for each text."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.line(f"! {text}", warning=True)

    def begun(self, label: str, how: str = "") -> None:
        """Report the start of a stage that takes a while."""
        self.line(f"▸ {label}{f', {how}' if how else ''}")

    def failed(self, label: str, message: str) -> None:
        """Report a stage that could not finish."""
        self.line(f"✗ {label}: {message}", warning=True)

    def done(self, label: str, state: str, seconds: float, stats: Mapping[str, Any]) -> None:
        """Report a stage that was made or found in the store. Found stages are collected until the next other line."""
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
        """Print the lines that wait to be combined."""
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

    def progress(
        self,
        label: str,
        done: int,
        total: int | None,
        unit: str,
        loss: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Show a stage's progress, the `loss` of a training where there is one, and about how long it still takes.

        On a terminal, at most four times a second, in one line that is written over and never longer than the terminal is
        wide. Elsewhere, so that a log shows a long stage at work: a line after half a minute in which nothing else was
        written, or after five where nothing has changed since the last.
        """
        now = time.monotonic()
        if self._quiet or now - self._last < 0.25:
            return
        self._last = now
        with self._guard, contextlib.suppress(OSError, ValueError):
            left = self._left(label, done, total, unit, now)
            if self._stream.isatty():
                words = [_share(done, total), _of_loss(loss()), left]
                line = _line(label, [_amount(done, total, unit), *words])
                if cell_len(line) > (columns := self._columns()):
                    line = _line(label, words if total else [_amount(done, total, unit), *words])
                self._clear()
                self._stream.write(
                    line if cell_len(line) <= columns else set_cell_size(line, columns).rstrip()
                )
                self._stream.flush()
                return
            last = (label, done, unit)
            if now - self._wrote >= (_SILENT_SECONDS if last != self._progressed else _UNCHANGED_SECONDS):
                self._progressed = last
                self._write(_line(label, [_amount(done, total, unit), _of_loss(loss()), left]))

    def _left(self, label: str, done: int, total: int | None, unit: str, now: float) -> str:
        """The remaining time at the rate since the first report, less the time since the last progress. A resumed attempt
        counts from where it resumed."""
        if (
            self._rate is None
            or (self._rate.label, self._rate.unit) != (label, unit)
            or done < self._rate.done
        ):
            self._rate = _Rate(label, unit, now, done, now, done)
        rate = self._rate
        if done > rate.done:
            rate.done, rate.at, rate.times = done, now, rate.times + 1
        if not total or rate.done <= rate.first or rate.at - rate.began < _RATE_SECONDS:
            return ""
        since = min(
            now - rate.at, (rate.at - rate.began) / rate.times
        )  # it may be halted: then nothing runs down
        seconds = (total - done) * (rate.at - rate.began) / (rate.done - rate.first) - since
        return f"about {seconds / 60:,.0f} min left" if seconds >= 60 else "less than a minute left"

    def _columns(self) -> int:
        """Columns of the terminal. The last stays free, because some terminals begin a new row once it is written."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns - 1
        except (OSError, ValueError):
            return shutil.get_terminal_size().columns - 1

    def _write(self, text: str) -> None:
        if not self._quiet:
            with contextlib.suppress(OSError, ValueError):  # no run fails because nobody can read it
                self._clear()
                self._stream.write(without_secrets(text) + "\n")
                self._stream.flush()
                self._wrote = time.monotonic()

    def _tell(self, text: str, warning: bool = False) -> None:
        if self.tell is not None:
            self.tell(without_secrets(text), warning)

    def _clear(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")


def _amount(done: int, total: int | None, unit: str) -> str:
    return f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"


def _share(done: int, total: int | None) -> str:
    return f"{100 * done // total} %" if total else ""


def _of_loss(loss: float | None) -> str:
    return "" if loss is None else f"loss {loss:.3f}"


def _line(label: str, words: list[str]) -> str:
    return f"● {label}  {', '.join(word for word in words if word)}"


def _counted(stages: Mapping[str, int]) -> str:
    return ", ".join(f"{stage} × {count}" if count > 1 else stage for stage, count in stages.items())


def counts(stats: Mapping[str, Any]) -> str:
    """`1,200 → 1,100 documents, 400,000 tokens`: input and output, as far as a stage counts them.

    Where nearly nothing is left, the commonest reasons too: `30 → 0 documents (gopher_too_few_words 28, language 2)`.
    """
    words = []
    if stats.get("documents_in") is not None and stats.get("documents_out") is not None:
        left = f"{stats['documents_in']:,} → {stats['documents_out']:,} documents"
        reasons = commonest(stats.get("dropped_by_reason") or {})
        nearly_none = stats["documents_out"] <= _NEARLY_NONE * stats["documents_in"]
        words.append(f"{left} ({reasons})" if reasons and nearly_none else left)
    elif stats.get("documents") is not None:
        words.append(f"{stats['documents']:,} documents")
    if stats.get("tokens") is not None:
        words.append(f"{stats['tokens']:,} tokens")
    return ", ".join(words)
