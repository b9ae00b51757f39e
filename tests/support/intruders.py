"""What a page in a browser, a foreign name and another user of the machine can send to one of our servers.

`let_in` sends all of it, to every route that it is given, and returns what was answered. Any answer but a refusal is a
hole.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.machine.servers import basic

EVIL = "evil.example"
PREFECT = (
    "/",
    "/runs",
    "/v2/dashboard",
    "/ui-settings",
    "/openapi.json",
    "/api/health",
    "/api/ready",
    "/api/version",
    "/api/openapi.json",
    "/api/admin/settings",
    "/api/csrf-token?client=x",
    "/api/flow_runs/filter",
    "/api/deployments/filter",
    "/api/deployments/",
    "/api/work_pools/cpu/get_scheduled_flow_runs",
    "/api/block_documents/filter",
    "/api/events/filter",
)
MLFLOW = (
    "/",
    "/health",
    "/version",
    "/static-files/x.js",
    "/graphql",
    "/get-artifact?path=x&run_uuid=x",
    "/api/2.0/mlflow/experiments/search",
    "/ajax-api/2.0/mlflow/experiments/search",
    "/ajax-api/3.0/mlflow/assistant/config",
    "/api/2.0/mlflow-artifacts/artifacts",
    "/gateway/x/mlflow/invocations",
    "/v1/traces",
)
WEBSOCKETS = (
    "/api/events/in",
    "/api/events/out",
    "/api/logs/out",
    "/api/task_runs/subscriptions/scheduled",
    "/api/work_pools/cpu/workers/connect",
)
OPEN = {PREFECT: {"/", "/ui-settings", "/openapi.json"}, MLFLOW: {"/health"}}
"""Routes that answer without a password: Prefect's pages, which ask for it, and its schema; that MLflow answers."""


def foreign(port: int) -> dict[str, dict[str, str]]:
    """Headers that a page of another site, another port or another name makes a browser send."""
    own = f"http://127.0.0.1:{port}"
    return {
        "another site": {"Origin": f"http://{EVIL}"},
        "a page without an origin": {"Origin": "null"},
        "another port": {"Origin": "http://127.0.0.1:1"},
        "another name": {"Host": EVIL},
        "another name with our port": {"Host": f"{EVIL}:{port}", "Origin": f"http://{EVIL}:{port}"},
        "another port's name": {"Host": "127.0.0.1:1"},
        "a script of another site": {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        "a script of another port": {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
        "both at once": {"Sec-Fetch-Site": "cross-site", "Origin": own},
    }


@dataclass(frozen=True)
class Asker:
    """Asks one server for statuses, over one connection."""

    port: int

    def statuses(
        self, requests: Iterable[tuple[str, str]], headers: Mapping[str, str]
    ) -> Iterator[tuple[tuple[str, str], int, bool]]:
        """For each (method, path): it, the status, and whether another origin may read the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        for method, path in requests:
            body = None if method in ("GET", "HEAD", "OPTIONS") else b"{}"
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            answer.read()
            yield (method, path), answer.status, answer.headers["Access-Control-Allow-Origin"] is not None
        connection.close()


def let_in(port: int, routes: Sequence[str], credentials: str) -> list[str]:
    """What is not refused with 4xx although a foreign page or name asks, even with the password."""
    found = []
    every = [("POST" if "/api/" in route or "-api/" in route else "GET", route) for route in routes]
    every += [("OPTIONS", route) for route in list(routes)[-2:]]
    for who, headers in foreign(port).items():
        with_password = {**headers, "Authorization": basic(credentials)}
        for request, status, readable in Asker(port).statuses(every, with_password):
            if not 400 <= status < 500 or readable:
                found.append(f"{who}: {request} answers {status}{', readable' if readable else ''}")
    return found


def without_password(port: int, routes: tuple[str, ...], *given: str) -> list[str]:
    """What answers without a password, or with a wrong one, though it is not open."""
    found = []
    opened = OPEN[routes]
    every = [("POST" if "/api/" in route or "-api/" in route else "GET", route) for route in routes]
    for wrong in (None, *given):
        headers = {} if wrong is None else {"Authorization": basic(wrong)}
        for (method, route), status, _ in Asker(port).statuses(every, headers):
            if status < 400 and route not in opened:
                found.append(f"{method} {route} answers {status} to {wrong}")
    return found


def prefect_routes(port: int) -> list[tuple[str, str]]:
    """Every (method, path) of Prefect's API, from its own schema; parameters are `x`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/openapi.json")
    paths: dict[str, Any] = json.loads(connection.getresponse().read())["paths"]
    connection.close()
    return [
        (method.upper(), "/api" + path.replace("{", "x").replace("}", "x"))
        for path, methods in paths.items()
        for method in methods
    ]


def websocket(port: int, path: str, token: str | None, headers: Mapping[str, str] | None = None) -> str:
    """The first message that a websocket of Prefect's gives to a token, or how it refuses."""
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import connect

    more = dict(headers or {})
    origin: Any = more.pop("Origin", None)
    host = more.pop("Host", f"127.0.0.1:{port}")
    try:
        with connect(
            f"ws://{host}{path}",
            sock=socket.create_connection(("127.0.0.1", port)),
            proxy=None,
            origin=origin,
            subprotocols=["prefect"],  # type: ignore[list-item]
            additional_headers=more,
            open_timeout=60,
        ) as opened:
            opened.send(json.dumps({"type": "auth", "token": token}))
            return str(json.loads(opened.recv(60))["type"])
    except InvalidStatus as refused:
        return str(refused.response.status_code)
    except ConnectionClosed as closed:
        return f"closed {closed.rcvd.code if closed.rcvd else ''}"


def websockets_let_in(port: int, credentials: str) -> list[str]:
    """Websockets that do anything else than refuse a foreign page at once, and close for want of the password."""
    found = []
    for path in WEBSOCKETS:
        for who, headers in foreign(port).items():
            if (said := websocket(port, path, credentials, headers)) != "403":
                found.append(f"{who}: {path}: {said}")
        for token in (None, "onward:wrong"):
            if (said := websocket(port, path, token)) != "closed 1008":
                found.append(f"{path} with {token}: {said}")
        if (said := websocket(port, path, credentials)) != "auth_success":
            found.append(f"{path} with the password: {said}")
    return found
