"""A Dask cluster of real processes on 127.0.0.1: a scheduler and workers, each in a process group of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from tests.support import ROOT

_STARTS_WITHIN_SECONDS = 60.0


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class DaskCluster:
    """A scheduler; workers by `worker`. All are gone at the end of the `with`."""

    def __init__(self, home: Path, protocol: str = "tcp", **environment: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"{protocol}://127.0.0.1:{self.port}"
        self.executor = self.address.replace("tcp://", "dask://").replace("tls://", "dask+tls://")
        self.processes: list[subprocess.Popen[bytes]] = []
        self._environment = environment
        self.scheduler = self.start(
            "scheduler", "--host", "127.0.0.1", "--port", str(self.port), *self._as(protocol)
        )

    @staticmethod
    def _as(protocol: str) -> list[str]:
        return ["--protocol", protocol] if protocol != "tcp" else []

    def start(self, command: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """`dask scheduler` or `dask worker`, with its words in a file."""
        log = self.home / f"{command}-{len(self.processes)}.log"
        with log.open("wb") as words:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{command}", *arguments, "--no-dashboard"],
                cwd=self.home,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1h",
                    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
                    **self._environment,
                    **environment,
                },
                stdout=words,
                stderr=words,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.processes.append(process)
        self._wait_for(log, {"scheduler": "Scheduler at:", "worker": "Registered to:"}[command], process)
        return process

    def worker(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """One worker process without a nanny: to kill it is to lose it."""
        own = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0", "--local-directory", str(self.home)]
        return self.start("worker", self.address, *own, *arguments, **environment)

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """SIGKILL to a process and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)

    def _wait_for(self, log: Path, words: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _STARTS_WITHIN_SECONDS
        while words not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, log.read_text(errors="replace")[-2000:]
            time.sleep(0.1)

    def __enter__(self) -> DaskCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self.processes):
            self.kill(process)
