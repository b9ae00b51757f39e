"""Runs as process groups of their own, killed at will; and whether anything outlived them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from tests.support.small import environment

LEAVES_WITHIN_SECONDS = 90.0


def still_at_work(store: Path) -> list[str]:
    """Processes that name the store, or hold a file of it open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            held = [os.readlink(entry) for entry in (process / "fd").iterdir()]
            if str(store) in line or any(name.startswith(str(store)) for name in held):
                found.append(line[:150])
    return found


def wait_until_alone(store: Path) -> float:
    began = time.monotonic()
    while left := still_at_work(store):
        assert time.monotonic() - began < LEAVES_WITHIN_SECONDS, f"outlived the kill: {left}"
        time.sleep(0.1)
    return time.monotonic() - began


class Attempt:
    """A run as a process group; tells when a stage begins."""

    def __init__(self, command: list[str], home: Path) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment(home),
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.errors = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._drain = threading.Thread(target=self._read_errors, daemon=True)
        self._drain.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def wait_for(self, words: str) -> bool:
        """True when a line with these words was printed, False when the process ended first."""
        while self.process.poll() is None:
            if any(line.startswith(words) for line in self.lines):
                return True
            time.sleep(0.005)
        return False

    def ended(self, seconds: float) -> int:
        """Its exit code, once it has ended and all of its words are read."""
        code = self.process.wait(seconds)
        for reader in (self._reader, self._drain):
            reader.join(10)
        return code

    def last_stage(self) -> str:
        """The stage that was being made when the process ended; none between two, or while it started."""
        words = self.lines[-1].split() if self.lines else []
        return words[1] if words and words[0] == "make" else "none"

    def kill(self, whole_group: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            if whole_group:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
