"""Starts one of the two web servers behind the gate (flows/services/gate.py), in this process.

`python -m flows.services.serve prefect|mlflow [--host HOST] --port PORT`; `--help` lists MLflow's options.

| variable | |
| --- | --- |
| `PREFECT_SERVER_API_AUTH_STRING` | `user:password`, which Prefect asks for itself |
| `ONWARD_SERVER_AUTH` | `user:password`, which the gate asks for before MLflow |
| `ONWARD_SERVER_NAMES` | further names under which a browser or a client reaches the server: `box.example:4200,…` |

The name in `PREFECT_UI_URL` (for MLflow: `ONWARD_MLFLOW_URL`), by which links lead to the server, counts too.

It does what `prefect server start` and `mlflow server` do, which let nothing be put before their applications.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from flows.machine.start import collect_rarely
from flows.services.gate import App, Gate

_NAMES = "ONWARD_SERVER_NAMES"
_PUBLIC = {"prefect": "PREFECT_UI_URL", "mlflow": "ONWARD_MLFLOW_URL"}
_PORT = "ONWARD_SERVER_PORT"
_USERS = "ONWARD_SERVER_USERS"


def names(server: str, port: int, environment: Mapping[str, str]) -> frozenset[str]:
    """The values of `Host` that `prefect` or `mlflow` on this port answers to, in lower case."""
    given = environment.get(_NAMES, "").split(",")
    public = urlsplit(environment.get(_PUBLIC[server], "")).netloc.rpartition("@")[2]
    others = [name.strip().lower() for name in (*given, public)]
    return frozenset([f"127.0.0.1:{port}", f"localhost:{port}", *filter(None, others)])


def prefect_app(port: int) -> App:
    """Prefect's application for this process's settings, behind the gate. Call it before anything imports prefect."""
    known = names("prefect", port, os.environ)
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = _origins(known)
    # Relative, so that the page asks the server under the name that the browser has for it.
    os.environ.setdefault("PREFECT_SERVER_UI_API_URL", "/api")
    from prefect.server.api.server import create_app

    return Gate(create_app(final=True), known, lambda path: not f"{path}/".startswith("/api/"))


def mlflow_app() -> App:
    """MLflow's application behind the gate, as `_mlflow` has prepared it in the environment."""
    from mlflow.server.fastapi_app import app

    if os.environ.get(_USERS):
        from mlflow.server import auth

        app = auth.create_app()
    known = names("mlflow", int(os.environ[_PORT]), os.environ)
    return Gate(app, known, lambda path: path == "/", os.environ.get("ONWARD_SERVER_AUTH"))


def _prefect(given: argparse.Namespace) -> None:
    app = prefect_app(given.port)
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    _serve(
        given,
        app,
        timeout_keep_alive=settings.api.keepalive_timeout,
        ws_ping_interval=settings.api.websocket_ping_interval,
        ws_ping_timeout=settings.api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
    )


def _mlflow(given: argparse.Namespace) -> None:
    known = names("mlflow", given.port, os.environ)
    os.environ |= {
        _PORT: str(given.port),
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(known),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": _origins(known),
        "_MLFLOW_SERVER_FILE_STORE": given.database,
        "_MLFLOW_SERVER_REGISTRY_STORE": given.database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": given.files,
        "_MLFLOW_SGI_NAME": "uvicorn",
        "_MLFLOW_SERVER_BOOT_ID": uuid.uuid4().hex,
        "_MLFLOW_IN_JOB_EXECUTOR": "false",
    }
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(given.database, given.database, "mlflow-artifacts:/")
    if given.users:
        from mlflow.server import _bootstrap_basic_auth

        _bootstrap_basic_auth()
        os.environ |= {_USERS: "1", "_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED": "true"}
    _serve(given, f"{__spec__.name}:mlflow_app", factory=True, log_level="info")


def _serve(given: argparse.Namespace, app: Any, **options: Any) -> None:
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    config = uvicorn.Config(app, host=given.host, port=given.port, workers=given.workers, **options)
    if given.workers > 1:
        bound = config.bind_socket()
        answer_at_once(bound)
        Multiprocess(config, sockets=[bound]).run()
    else:
        uvicorn.Server(config).run(sockets=[reserve(given.host, given.port)])


def reserve(host: str, port: int) -> socket.socket:
    """A socket bound to the port, which no other user's process can bind while it exists.

    Processes of the same user can (`SO_REUSEPORT`), so the supervisor keeps a port while its server starts again. Only the
    one that listens gets connections. Raises OSError if the port is taken.
    """
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        # Needed to bind beside connections that end; later it would let another user bind and listen before us.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        answer_at_once(bound)
    except BaseException:
        bound.close()
        raise
    return bound


def answer_at_once(bound: socket.socket) -> None:
    """Let a server's connections send what is written to them without a wait for what was sent before.

    asyncio does it for sockets that it makes. With ours, the second part of each answer waited 40 ms for the client to
    acknowledge the first.
    """
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _origins(known: frozenset[str]) -> str:
    return ",".join(f"{scheme}://{name}" for name in sorted(known) for scheme in ("http", "https"))


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM or SIGINT."""
    collect_rarely()
    parser = argparse.ArgumentParser(prog="python -m flows.services.serve", allow_abbrev=False)
    parser.add_argument("server", choices=["prefect", "mlflow"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1, help="processes of MLflow")
    parser.add_argument(
        "--database", default=os.environ.get("MLFLOW_BACKEND_STORE_URI"), help="of MLflow: its address"
    )
    parser.add_argument("--files", help="of MLflow: the directory of its artifacts")
    parser.add_argument(
        "--users", action="store_true", help="MLflow keeps users, and asks them for their passwords"
    )
    given = parser.parse_args(arguments)
    if given.server == "prefect":
        _prefect(given)
    elif not (given.database and given.files):
        parser.error("mlflow needs --database (or MLFLOW_BACKEND_STORE_URI) and --files")
    else:
        _mlflow(given)


if __name__ == "__main__":
    main(sys.argv[1:])
