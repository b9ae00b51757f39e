"""MLflow's client as it is used here, and what its errors mean."""

from __future__ import annotations

import logging
import os
from typing import Any

from storage.secrets import without_secrets

TRIES = 3
"""Of what is refused: what was read of the server may have been old."""


def connect(uri: str, registry: str | None = None) -> Any:
    """MLflow's client, which waits no longer than ten seconds for an answer; with a registry of models elsewhere."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it asks for what it prints
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri, registry)


def is_answer(error: Exception) -> bool:
    """Whether what was asked is refused, so that asking again gives the same: by the server, by the store of files
    behind it, by a local directory, or by the client before it asks."""
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
    """Of HTTP: what is wrong with the request. Who asks (401) may be put right, as may what came too late or too often."""
    return 400 <= status < 500 and status not in (401, 408, 429, 499)


def said(error: Exception) -> str:
    """An error in a line, without secrets."""
    return f"{type(error).__name__}: {without_secrets(str(error).partition(chr(10))[0])[:200]}"
