"""A Prefect server for one run, used if none is configured. It listens on loopback and ends with the run.

`python -m flows.services.server PORT FD` serves until the pipe FD closes, which happens however the run's process ends.
The run's history stays in Prefect's database under `PREFECT_HOME`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from flows.machine.processes import KILLED_SECONDS, still_there
from storage.errors import OnwardError

_START_SECONDS = 180.0


@contextlib.contextmanager
def prefect_server(home: Path) -> Iterator[Callable[[], None]]:
    """A Prefect API: the configured one (`PREFECT_API_URL`), or a server started here for the duration of the block.

    Entering the block only begins the start. Call the yielded function to wait until the server answers.
    """
    configured = os.environ.get("PREFECT_API_URL")
    if configured:
        yield lambda: wait_for(configured)
        return
    reader, writer = os.pipe()
    port = _free_port()
    environment = {**os.environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_UI_ENABLED": "0"}
    environment.pop("PREFECT_SERVER_API_AUTH_STRING", None)  # from another server; ours belongs to the run
    log = home / "server.log"
    home.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.services.server", str(port), str(reader)],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(reader,),
            start_new_session=True,  # the run handles Ctrl-C; the pipe ends the server
        )
    os.close(reader)
    address = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_API_URL"] = address
    os.environ["ONWARD_OWN_SERVER"] = "1"  # no link leads there, because it ends with the run
    try:
        yield lambda: wait_for(address, process)
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        os.environ.pop("ONWARD_OWN_SERVER", None)
        os.close(writer)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        if process.poll() is None:
            process.kill()
            try:
                process.wait(KILLED_SECONDS)
            except subprocess.TimeoutExpired:
                sys.stderr.write(
                    f"! {still_there(f'the Prefect server of this run (process {process.pid})')}\n"
                )


def wait_for(
    address: str, process: subprocess.Popen[bytes] | None = None, seconds: float = _START_SECONDS
) -> None:
    """Return when the API answers. Raises OnwardError if it does not answer in time or its process has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if process is not None and process.poll() is not None:
            raise OnwardError(
                f"the Prefect server did not start (exit code {process.returncode}); see server.log"
            )
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return  # the server answers; the client brings the credentials
        except OSError:
            pass
        time.sleep(0.1)
    raise OnwardError(f"the Prefect API at {address} did not answer within {seconds:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(port: int, descriptor: int) -> None:
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            "prefect.server.api.server:create_app",
            factory=True,
            host="127.0.0.1",
            port=port,
            log_level="error",
            timeout_graceful_shutdown=3,
        )
    )

    def leave_with_parent() -> None:
        while os.read(descriptor, 1):
            pass
        server.should_exit = True
        time.sleep(10)
        os._exit(0)

    threading.Thread(target=leave_with_parent, daemon=True).start()
    server.run()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
