"""Where MLflow keeps what tests publish: a SQLite file, a PostgreSQL of the test's own, or a real server on a free port."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.stack import Database


class MlflowServer:
    """`mlflow server` on a database of its own, as `onward up` starts it; what it is told while it is killed, it misses."""

    def __init__(self, home: Path, database: str | None = None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.database = database or f"sqlite:///{home / 'mlflow.db'}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it (again), on the same port and database; returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", self.database, "--workers", "1"]
        command += ["--artifacts-destination", str(self.home / "files")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.home,
                env={**environment, "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 400
        while time.monotonic() < until:
            assert self._process.poll() is None, (self.home / "server.log").read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.1)
        raise AssertionError("MLflow's server did not answer within minutes")

    def kill(self) -> None:
        """SIGKILL, to it and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def postgresql_database() -> Iterator[tuple[str, Database]]:
    """An empty database in a PostgreSQL that is started for the block: its address, and the PostgreSQL.

    Skips where there is none.
    """
    import psycopg

    from tests.support.stack import Database, postgresql

    database = Database(postgresql(), "secret")
    try:
        plain = f"postgresql://postgres:secret@127.0.0.1:{database.port}"
        until = time.monotonic() + 60
        while True:
            try:
                with psycopg.connect(f"{plain}/postgres", autocommit=True) as connection:
                    connection.execute("create database mlflow")
                break
            except psycopg.OperationalError:
                assert time.monotonic() < until, "PostgreSQL did not answer within a minute"
                time.sleep(0.2)
        yield plain.replace("postgresql://", "postgresql+psycopg://") + "/mlflow", database
    finally:
        database.close()


@contextlib.contextmanager
def postgresql_address() -> Iterator[str]:
    """The address of an empty database in a PostgreSQL that is started for the block; skips where there is none."""
    with postgresql_database() as (address, _):
        yield address
