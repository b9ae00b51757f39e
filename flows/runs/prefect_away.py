"""What happens at the end of a run if Prefect's API does not answer: a limited wait, then an end without it.

The end of a run depends on its work alone. A state that Prefect could not be told is kept in the run's record, and the
next run of the same configuration tells it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ExternalSignal, ObjectNotFound
from prefect.settings import PREFECT_API_URL, get_current_settings

from flows.machine.prefect_api import LOST, OWN, answers
from flows.ui.publish import published
from storage.errors import OnwardError
from storage.secrets import without_secrets

PATIENCE_SECONDS = 300.0
"""How long a run that has ended waits for a Prefect server that is away."""
_TOLD_AFTER_SECONDS = 5.0


@dataclass(frozen=True)
class End:
    """How the work of a flow run ended: its result, or the error that ended it."""

    result: Any = None
    error: Exception | None = None


_ends: ContextVar[list[End] | None] = ContextVar("ends", default=None)


def end_of(flow: Callable[[], Any], say: Callable[[str], object]) -> Any:
    """Call a flow. Returns the result of its work, or raises its error, even if the engine then fails or is stopped."""
    ends: list[End] = []
    token = _ends.set(ends)
    try:
        return flow()
    except (Exception, KeyboardInterrupt, ExternalSignal) as error:
        if not ends or isinstance(error, OnwardError):
            raise
        say(
            f"! Prefect was not told how this run ended ({type(error).__name__}); the next run of the same "
            "configuration tells it\n"
        )
        if ends[-1].error is not None:
            raise ends[-1].error from error
        return ends[-1].result
    finally:
        _ends.reset(token)


def keep_end(end: End) -> None:
    """Keep the end of the work for `end_of`."""
    ends = _ends.get()
    if ends is not None:
        ends.append(end)


def no_server(error: Exception) -> OnwardError | None:
    """The message for an error of Prefect's client because its server does not answer; None for another error."""
    away = isinstance(error, httpx.TransportError) or str(error).startswith("Failed to reach API")
    if not away:
        return None
    return OnwardError(
        f"Prefect at {without_secrets(PREFECT_API_URL.value() or '')} does not answer ({type(error).__name__}). Nothing "
        "was begun. Start that server, or leave PREFECT_API_URL unset; then run the same command"
    )


def reached(say: Callable[[str], None], seconds: float | None = None) -> bool:
    """Whether Prefect's API answers, after a wait of at most `seconds` for a server that is away.

    If it does not, no later call of this process waits for it. A signal ends the wait, but not the run: its work is done.
    """
    address = PREFECT_API_URL.value()
    if not address:
        return True
    if seconds is None:
        seconds = PATIENCE_SECONDS if get_current_settings().client.max_retries else 0.0
    told, began = False, time.monotonic()
    try:
        while not answers(address):
            waited = time.monotonic() - began
            if waited >= seconds or os.environ.get(OWN) == LOST:
                break
            if waited > _TOLD_AFTER_SECONDS and not told:
                told = True
                say(
                    f"Prefect at {without_secrets(address)} does not answer; waiting up to "
                    f"{seconds / 60:.0f} min to tell it how the run ended (Ctrl-C: do not wait)"
                )
            time.sleep(0.5)
        else:
            return True
    except (KeyboardInterrupt, ExternalSignal):
        pass
    get_current_settings().client.max_retries = 0
    logging.raiseExceptions = False  # Prefect's log handler would print each failure
    return False


def untold_of(flow_run: str, state: str, message: str) -> dict[str, Any]:
    """What the record keeps of an end that Prefect was not told: the flow run's id, and its state."""
    return {flow_run: {"state": state, "message": without_secrets(message)[:10_000]}}


def tell_untold(untold: Mapping[str, Any]) -> set[str]:
    """Tell Prefect the ends of earlier attempts. Returns the flow runs that need no further try."""
    settled: set[str] = set()
    if untold:
        published(lambda: _tell(untold, settled))
    return settled


def _tell(untold: Mapping[str, Any], settled: set[str]) -> None:
    with get_client(sync_client=True) as client:
        for flow_run, end in untold.items():
            _tell_one(client, UUID(flow_run), end)
            settled.add(flow_run)


def _tell_one(client: SyncPrefectClient, flow_run: UUID, end: Mapping[str, str]) -> None:
    try:
        known = client.read_flow_run(flow_run).state
    except ObjectNotFound:
        return
    if known is None or not known.is_final() or known.is_crashed():  # a worker took its end for a crash
        kind = StateType(end["state"])
        state: Any = State(type=kind, name=kind.value.capitalize(), message=end["message"])
        client.set_flow_run_state(flow_run, state, force=True)
