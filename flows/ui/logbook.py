"""A flow run's log in Prefect, sent by its own thread. Lines wait while the server is away, and none is lost.

Prefect's own handler drops what it cannot send. Nothing here fails a run, and only `close` makes it wait.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.actions import LogCreate

from flows.ui.client import impatient

_PERIOD_SECONDS = 2.0
_CHARACTERS = 20_000


@dataclass
class Logbook:
    """Lines for one flow run's page."""

    flow_run: str
    _lines: list[LogCreate] = field(default_factory=list)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin sending."""
        self._thread = threading.Thread(target=self._work, name="prefect-log", daemon=True)
        self._thread.start()

    def write(self, text: str, warning: bool = False) -> None:
        """Add a line. Returns at once."""
        level = logging.WARNING if warning else logging.INFO
        fields: dict[str, Any] = {"flow_run_id": UUID(self.flow_run), "timestamp": datetime.now(UTC)}
        line = LogCreate(name="onward", level=level, message=text[:_CHARACTERS], **fields)
        with self._guard:
            self._lines.append(line)

    def close(self, seconds: float) -> None:
        """Return when all lines are sent or `seconds` have passed."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            self._closing.wait(_PERIOD_SECONDS)
            closing = self._closing.is_set()
            with contextlib.suppress(Exception):  # the lines wait, whatever Prefect's server or client does
                self._send()
            with self._guard:
                if closing and not self._lines:
                    return
            if closing:
                time.sleep(0.5)

    def _send(self) -> None:
        with self._guard:
            lines = self._lines[:200]
        if not lines:
            return
        with impatient() as client:
            client.create_logs(lines)
        with self._guard:
            del self._lines[: len(lines)]
