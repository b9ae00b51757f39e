"""When to leave: on SIGTERM, SIGINT, SIGHUP, the end of the parent's pipe, or the end of torchrun.

Standard library only; it is set up before torch loads.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from storage.errors import ConfigError

_LAST_WORDS_SECONDS = 120.0


class Stop:
    """Asked once per step whether to stop; `reason` says why."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def __call__(self) -> bool:
        return self._event.is_set()

    def ask(self, reason: str) -> None:
        """Ask to leave after the current step. The first reason is kept."""
        self.reason = self.reason or reason
        self._event.set()

    def on_signals(self) -> None:
        """From now on, SIGTERM, SIGINT and SIGHUP ask to stop. SIGHUP stays ignored under `nohup`."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda received, _: self.ask(signal.Signals(received).name))

    def on_end_of(self, descriptor: int) -> None:
        """From now on, the end of this pipe asks to stop. Its other end closes when the parent dies. Raises
        ConfigError.
        """
        try:
            os.fstat(descriptor)
        except OSError as error:
            raise ConfigError(f"parent_fd {descriptor} is not open in the trainer's process.") from error
        threading.Thread(target=self._watch, args=(descriptor,), daemon=True, name="parent").start()

    def on_end_of_launcher(self, pipe: int | None) -> None:
        """From now on, the end of torchrun (the parent process) asks to stop, and so does the end of a pipe of
        torchrun's.

        torchrun closes descriptors in its children, so the pipe is opened again by its number in torchrun. A
        process that has lost torchrun and waits for dead peers is ended by force after two minutes. Raises
        ConfigError.
        """
        launcher = os.getppid()
        if pipe is not None:
            try:
                self.on_end_of(os.open(f"/proc/{launcher}/fd/{pipe}", os.O_RDONLY))
            except OSError as error:
                raise ConfigError(
                    f"the pipe {pipe} of the launching process cannot be read ({error})."
                ) from error
        threading.Thread(target=self._watch_launcher, args=(launcher,), daemon=True, name="launcher").start()

    def _watch_launcher(self, launcher: int) -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        self.ask("torchrun is gone")
        time.sleep(_LAST_WORDS_SECONDS)
        os._exit(1)

    def _watch(self, descriptor: int) -> None:
        try:
            while os.read(descriptor, 4096):
                pass
        except OSError:
            pass  # a broken pipe has ended too
        self.ask("the parent is gone")
