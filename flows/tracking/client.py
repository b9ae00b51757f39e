"""MLflow's client with our settings, and the meaning of its errors."""

from __future__ import annotations

import logging
import os
from typing import Any

from storage.secrets import without_secrets

TRIES = 3
"""How often a refused request is tried, because what was read from the server may have been outdated."""


def connect(uri: str, registry: str | None = None) -> Any:
    """MLflow's client, which waits at most ten seconds for an answer. `registry` is a separate model registry."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it asks for what it prints
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri, registry)


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
    return f"{type(error).__name__}: {without_secrets(str(error).partition(chr(10))[0])[:200]}"
