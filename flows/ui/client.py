"""Prefect's client for what is only shown: it does not wait for a server that is away, and is made in a moment."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings


@contextlib.contextmanager
def impatient() -> Iterator[SyncPrefectClient]:
    """A client that raises at once where the server does not answer."""
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings=_settings(), sync_client=True) as client,
    ):
        yield client


def _settings() -> dict[str, Any] | None:
    """Without TLS, no certificates of authorities are read: they take most of the time in which a client is made.

    A context without any refuses every server, so that a redirection elsewhere would lead nowhere.
    """
    plain = (PREFECT_API_URL.value() or "").startswith("http://")
    return {"verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)} if plain else None
