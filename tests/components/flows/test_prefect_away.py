"""The end of a run does not depend on Prefect: a server that is away, an engine that fails, an end told later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from flows.runs.failure import RunFailed
from flows.runs.prefect_away import End, end_of, keep_end, reached, tell_untold, untold_of
from tests.support.servers import PrefectServer

AWAY = "http://127.0.0.1:9/api"


@pytest.fixture
def away() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: AWAY}):
        yield


def test_a_server_that_is_away_is_waited_for_once_and_then_not_any_more(away: None) -> None:
    said = list[str]()
    assert PREFECT_CLIENT_MAX_RETRIES.value() > 0
    assert not reached(said.append, seconds=0.2)
    assert PREFECT_CLIENT_MAX_RETRIES.value() == 0, "the engine's own calls fail at once"
    assert not reached(said.append) and said == []


def ends(error: Exception | None) -> Any:
    """A flow whose work is done, and whose engine then fails."""
    keep_end(End("result", error))
    raise ConnectionError("All connection attempts failed")


def test_the_work_decides_how_a_run_ends() -> None:
    said = list[str]()
    assert end_of(lambda: ends(None), said.append) == "result"
    assert "Prefect was not told" in said[0] and "the next run" in said[0]
    failed = RunFailed("it failed")
    with pytest.raises(RunFailed) as raised:
        end_of(lambda: ends(failed), said.append)
    assert raised.value is failed
    with pytest.raises(ZeroDivisionError):
        end_of(lambda: 1 // 0, said.append)
    keep_end(End("nobody asked"))


@pytest.mark.slow
def test_an_end_that_prefect_was_not_told_is_told_by_the_next_attempt(prefect_server: PrefectServer) -> None:
    flow = prefect_server.api("/flows/", {"name": "away"})["id"]

    def run(*states: str) -> str:
        made = str(prefect_server.api("/flow_runs/", {"flow_id": flow})["id"])
        for state in states:
            body = {"state": {"type": state, "name": state.capitalize()}, "force": True}
            prefect_server.api(f"/flow_runs/{made}/set_state", body)
        return made

    left, taken_for_crashed, done = run("RUNNING"), run("RUNNING", "CRASHED"), run("RUNNING", "CANCELLED")
    gone = str(uuid4())
    untold = {
        **untold_of(left, "COMPLETED", "All stages completed"),
        **untold_of(taken_for_crashed, "FAILED", "it failed with http://me:hunter2@mlflow"),
        **untold_of(done, "COMPLETED", ""),
        **untold_of(gone, "COMPLETED", ""),
    }
    with temporary_settings({PREFECT_API_URL: AWAY, PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert tell_untold(untold) == set(), "nothing is forgotten while nobody listens"
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        assert tell_untold(untold) == set(untold)

    def state(of: str) -> tuple[str, str]:
        found = prefect_server.api(f"/flow_runs/{of}", method="GET")["state"]
        return found["name"], found["message"]

    assert state(left) == ("Completed", "All stages completed")
    assert state(taken_for_crashed)[0] == "Failed" and "hunter2" not in state(taken_for_crashed)[1]
    assert state(done)[0] == "Cancelled", "what somebody decided stays"
