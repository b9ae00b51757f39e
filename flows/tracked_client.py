"""MLflow's client as it is used here, and what its errors mean."""

from __future__ import annotations

import logging
import os
from typing import Any

from flows.secrets import without_secrets


def connect(uri: str) -> Any:
    """MLflow's client, which waits no longer than ten seconds for an answer."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def is_answer(error: Exception) -> bool:
    """Whether the server has understood and refuses, so that asking again gives the same."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in (
            "requests",
            "urllib3",
            "sqlalchemy",
        )
    return error.get_http_status_code() in (400, 404, 409, 413, 422)


def said(error: Exception) -> str:
    """An error in a line, without secrets."""
    return f"{type(error).__name__}: {without_secrets(str(error).partition(chr(10))[0])[:200]}"
