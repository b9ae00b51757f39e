"""MLflow's client with our settings, and the meaning of its errors.

MLflow takes credentials from the environment, and sends them to every server that it asks. Ours go with the request, to
this home's server alone, so that an MLflow that a configuration names never gets them. Other servers get what
`MLFLOW_TRACKING_USERNAME` and its like say.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from flows.machine.servers import basic, credentials_for
from storage.secrets import without_secrets

_SCHEME = "onward"
TRIES = 3
"""How often a refused request is tried, because what was read from the server may have been outdated."""


def connect(uri: str, registry: str | None = None) -> Any:
    """MLflow's client, which waits at most ten seconds for an answer. `registry` is a separate model registry."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it asks for what it prints
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(
        logging.CRITICAL
    )  # tracebacks of what we tell in a line
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    _send_password_to_own_server()
    return MlflowClient(uri, registry)


def _send_password_to_own_server() -> None:
    """Make requests to this home's MLflow carry this home's password. A scheme that the user set himself stays."""
    from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider
    from mlflow.tracking.request_auth.registry import _request_auth_provider_registry

    if os.environ.setdefault("MLFLOW_TRACKING_AUTH", _SCHEME) != _SCHEME:
        return

    class OwnServer(RequestAuthProvider):  # type: ignore[misc]
        def get_name(self) -> str:
            return _SCHEME

        def get_auth(self) -> Any:
            return _with_password

    if all(provider.get_name() != _SCHEME for provider in _request_auth_provider_registry):
        _request_auth_provider_registry.register(OwnServer)


def _with_password(request: Any) -> Any:
    """The request, with this home's password if it is for this home's server.

    For another server, with what requests itself would take from the address or from .netrc.
    """
    from requests.auth import HTTPBasicAuth
    from requests.utils import get_auth_from_url, get_netrc_auth

    if (known := credentials_for(request.url)) is not None:
        request.headers["Authorization"] = basic(known)
    elif "Authorization" not in request.headers:
        user, password = get_auth_from_url(request.url)
        found = (user, password) if user or password else get_netrc_auth(request.url)
        return HTTPBasicAuth(*found)(request) if found else request
    return request


def is_answer(error: Exception) -> bool:
    """Whether the request was refused, so that asking again would give the same answer.

    The server, its file store, a local directory or the client itself may refuse.
    """
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return _refuses(error.get_http_status_code())
    if (response := getattr(error, "response", None)) is not None:  # requests.HTTPError, of an artifact
        return _refuses(int(response.status_code))
    if isinstance(error, _LOCAL):
        return True
    packages = ("requests", "urllib3", "sqlalchemy")
    return not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in packages


_LOCAL = (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def _refuses(status: int) -> bool:
    """Whether an HTTP status means a wrong request. Not so: 401 (credentials can be corrected), too late, too often."""
    return 400 <= status < 500 and status not in (401, 408, 429, 499)


def said(error: Exception) -> str:
    """An error in one line, without secrets."""
    lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")] or [
        ""
    ]
    return f"{type(error).__name__}: {without_secrets(lines[0])[:200]}"
