"""A Prefect server for one run, used if none is configured. It listens on loopback and ends with the run.

`python -m flows.services.server SOCKET PIPE` loads its code, waits for a byte in the pipe, and serves on an inherited
socket until the pipe closes, which happens however the run's process ends. The run's history stays in Prefect's database
under `PREFECT_HOME`.

A server that dies is started again on the same socket and database. The run's process holds the socket, so its port
cannot be taken in between, and requests that arrive in between are answered by the next server.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flows.machine.prefect_api import LOST, OWN, answers
from flows.machine.processes import KILLED_SECONDS, still_there
from flows.machine.servers import make_credentials
from flows.machine.start import collect_rarely, leave
from flows.services.ready import last_words
from storage.errors import OnwardError
from storage.secrets import without_secrets

_START_SECONDS = 180.0
_STEADY_SECONDS = 60.0
_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0)
"""Before each new start after deaths in a row, none of which came later than `_STEADY_SECONDS` after its start."""


@contextlib.contextmanager
def prefect_server(home: Path, *, held: bool = False) -> Iterator[Callable[[], None]]:
    """A Prefect API: the configured one (`PREFECT_API_URL`), or a server started here for the duration of the block.

    Entering the block only begins the start. Call the yielded function to wait until the server answers. `held`: until then
    the server only loads its code, which takes most of its start. It touches no database, and is ended at once.
    """
    configured = os.environ.get("PREFECT_API_URL")
    if configured:
        yield lambda: wait_for(configured)
        return
    environment = {**os.environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_UI_ENABLED": "0"}
    before = os.environ.get("PREFECT_API_AUTH_STRING")  # of another server
    own = {"PREFECT_API_AUTH_STRING": make_credentials()}
    environment |= {**own, "PREFECT_SERVER_API_AUTH_STRING": own["PREFECT_API_AUTH_STRING"]}
    environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "ERROR"  # its console is server.log
    home.mkdir(parents=True, exist_ok=True)
    server = OwnServer(home / "server.log", environment, sys.stderr.write, held)
    os.environ |= {"PREFECT_API_URL": server.address, OWN: "1", **own}

    def ready() -> None:
        server.release()
        wait_for(server.address, server)

    try:
        yield ready
    finally:
        for name in ("PREFECT_API_URL", OWN, *own):
            os.environ.pop(name, None)
        if before is not None:
            os.environ["PREFECT_API_AUTH_STRING"] = before
        server.close()


class OwnServer:
    """A server process that is started again if it dies, until `close`."""

    def __init__(
        self, log: Path, environment: Mapping[str, str], say: Callable[[str], object], held: bool = False
    ) -> None:
        self.log = log
        self._held = held
        self._environment = dict(environment)
        self._say = say
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._reader, self._writer = os.pipe()
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}/api"
        self.answered = False
        """Whether it has answered once."""
        self.lost: str | None = None
        """Why it is not started again; None while it runs or is being started."""
        self._process = self._start()
        threading.Thread(target=self._watch, name="prefect-server", daemon=True).start()

    def release(self) -> None:
        """Let a server that was held begin to serve."""
        with self._guard:
            if self._held:
                self._held = False
                self._let_serve()

    def _let_serve(self) -> None:
        os.write(self._writer, b"+")

    def close(self) -> None:
        """End the server. A process that SIGKILL does not end is reported and left."""
        with self._guard:
            self._closing.set()
        os.close(self._writer)
        os.close(self._reader)
        self._socket.close()
        process = self._process
        if self._held:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        if process.poll() is None:
            process.kill()
            try:
                process.wait(KILLED_SECONDS)
            except subprocess.TimeoutExpired:
                self._say(f"! {still_there(f'the Prefect server of this run (process {process.pid})')}\n")

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(self._socket.fileno()), str(self._reader)],
                env=self._environment,
                cwd=Path(__file__).resolve().parents[2],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(self._socket.fileno(), self._reader),
                start_new_session=True,  # the run handles Ctrl-C; the pipe ends the server
            )
        if not self._held:
            self._let_serve()
        return process

    def _watch(self) -> None:
        """Start the server again when it has died. Give up if it cannot start, or dies again and again."""
        quick = 0
        while True:
            began = time.monotonic()
            code = self._process.wait()
            quick = 0 if time.monotonic() - began > _STEADY_SECONDS else quick + 1
            refused = code > 0 and not self.answered  # it ended by itself, and would again
            if refused or quick > len(_PAUSES):
                again = "" if refused else f"it ended {quick} times in a row, last with "
                self._give_up(f"{again}exit code {code}")
                return
            if self._closing.wait(_PAUSES[max(0, quick - 1)]):
                return
            with self._guard:
                if self._closing.is_set():
                    return
                try:
                    self._process = self._start()
                except OSError as error:
                    self.lost = str(error)
            if self.lost is not None:
                self._give_up(self.lost)
                return
            self._say(f"! the Prefect server of this run died (exit code {code}) and is started again\n")

    def _give_up(self, why: str) -> None:
        with self._guard:
            if self._closing.is_set():
                return
            self.lost, os.environ[OWN] = why, LOST
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # from now on, connections are refused at once
        if self.answered:
            self._say(f"! the run goes on without its Prefect server: {why}; see {self.log}\n")


def wait_for(address: str, own: OwnServer | None = None, seconds: float = _START_SECONDS) -> None:
    """Return when the API answers. Raises OnwardError if it does not answer in time, or our own has ended for good."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if own is not None and own.lost is not None:
            raise OnwardError(
                f"the Prefect server did not start ({own.lost}):\n{without_secrets(last_words(own.log))}"
            )
        if answers(address):
            if own is not None:
                own.answered = True
            return
        time.sleep(0.1)
    raise OnwardError(f"the Prefect API at {address} did not answer within {seconds:.0f} s")


def _serve(listening: int, pipe: int) -> None:
    collect_rarely()
    import uvicorn

    from flows.services.serve import answer_at_once, prefect_app

    bound = socket.socket(fileno=listening)
    answer_at_once(bound)
    app = prefect_app(bound.getsockname()[1])
    if not os.read(pipe, 1):  # the run ended before it began
        return
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=3))

    def leave_with_parent() -> None:
        while os.read(pipe, 1):
            pass
        server.should_exit = True
        time.sleep(10)
        os._exit(0)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    server.run(sockets=[bound])
    leave(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
