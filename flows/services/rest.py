"""Prefect's REST API with the standard library alone, for code that must start fast or must not import prefect.

A server of this home gets its password, another one `PREFECT_API_AUTH_STRING` if that is set. Every failure is an
ApiError that names the address.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from flows.machine.servers import basic, credentials_for
from storage.errors import OnwardError

_PAGE = 200
_PAUSES = (0.3, 1.0, 3.0)  # retries while the server's database is busy (503)


class ApiError(OnwardError):
    """The API did not answer or refused the request. `status` is its HTTP status, 0 without an answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """One server's API; `url` ends in `/api`."""

    def __init__(self, url: str, seconds: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self.seconds = seconds
        self.date: str | None = None
        """The server's clock (HTTP `Date`) at the last answer."""

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return self._call("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer to a posted body."""
        return self._call("POST", path, body if body is not None else {})

    def delete(self, path: str) -> None:
        """Delete what is at a path."""
        self._call("DELETE", path, None)

    def every(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """All rows of a `/…/filter` endpoint, page by page."""
        offset = 0
        while rows := self.post(path, {**body, "limit": _PAGE, "offset": offset}):
            yield from rows
            if len(rows) < _PAGE:
                return
            offset += len(rows)

    def set_state(self, kind: str, run: str, state: dict[str, Any], *, force: bool = False) -> str:
        """Propose a state for a run (`flow_runs` or `task_runs`). Returns `ACCEPT`, or another decision of the server."""
        return str(self.post(f"/{kind}/{run}/set_state", {"state": state, "force": force})["status"])

    def _call(self, method: str, path: str, body: Any) -> Any:
        for pause in _PAUSES:
            try:
                return self._once(method, path, body)
            except ApiError as error:
                if error.status != 503:
                    raise
                time.sleep(pause)
        return self._once(method, path, body)

    def _once(self, method: str, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json", **_credentials(self.url)}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                self.date = answer.headers.get("Date")
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            detail = error.read(500).decode(errors="replace")
            raise ApiError(f"{self.url}{path} answered {error.code}: {detail}", error.code) from error
        except (OSError, ValueError) as error:
            raise ApiError(f"{self.url} does not answer ({getattr(error, 'reason', error)})") from error


def _credentials(url: str) -> dict[str, str]:
    if known := credentials_for(url) or os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": basic(known)}
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
