"""When to leave: SIGTERM, SIGINT, or the end of the parent's pipe. Standard library only, set up before torch loads."""

from __future__ import annotations

import os
import signal
import threading

from storage.errors import ConfigError


class Stop:
    """Asked once per step; `reason` says why."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def __call__(self) -> bool:
        return self._event.is_set()

    def ask(self, reason: str) -> None:
        """Leave after the running step; the first reason counts."""
        self.reason = self.reason or reason
        self._event.set()

    def on_signals(self) -> None:
        """From now on SIGTERM and SIGINT ask."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: self.ask(signal.Signals(received).name))

    def on_end_of(self, descriptor: int) -> None:
        """From now on the end of this pipe asks: its other end closes when the parent dies."""
        try:
            os.fstat(descriptor)
        except OSError as error:
            raise ConfigError(f"parent_fd {descriptor} is not open in the trainer's process.") from error
        threading.Thread(target=self._watch, args=(descriptor,), daemon=True, name="parent").start()

    def _watch(self, descriptor: int) -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        except OSError:
            pass  # a broken pipe is an ended one
        self.ask("the parent is gone")
