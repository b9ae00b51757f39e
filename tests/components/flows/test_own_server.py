"""The Prefect server that a run starts for itself: killed, it is back on its port; one that cannot start is given up."""

from __future__ import annotations

import os
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows.machine.prefect_api import LOST, OWN, answers
from flows.services import server as servers
from flows.services.server import prefect_server
from storage.errors import OnwardError
from tests.support.servers import kill_own_server

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


def test_a_request_that_comes_while_the_server_is_dead_is_answered_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with prefect_server(tmp_path) as ready:
        ready()
        address = os.environ["PREFECT_API_URL"]
        killed = kill_own_server(os.getpid())
        with urllib.request.urlopen(f"{address}/health", timeout=120) as answer:
            assert answer.status == 200
        assert kill_own_server(os.getpid()) != killed
    assert not answers(address) and OWN not in os.environ
    assert "died (exit code -9) and is started again" in capfd.readouterr().err


def test_a_server_that_is_held_touches_no_database_and_is_ended_at_once(tmp_path: Path) -> None:
    others = set(psutil.Process().children())  # of tests before
    with prefect_server(tmp_path, held=True):
        address = os.environ["PREFECT_API_URL"]
        (process,) = set(psutil.Process().children()) - others
        time.sleep(1.0)  # of an import of three
    assert not process.is_running() and not answers(address)
    assert not list(tmp_path.glob("*.db"))


def test_a_server_that_cannot_start_is_given_up_and_its_port_refuses_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////dev/null/no/such.db")
    with prefect_server(tmp_path) as ready:
        with pytest.raises(
            OnwardError, match=r"did not start \(exit code 3\):(.|\n)*unable to open database"
        ):
            ready()
        assert os.environ[OWN] == LOST
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/health", timeout=30)


def test_a_server_that_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr(servers, "_PAUSES", (0.0, 0.0))
    own = servers.OwnServer(tmp_path / "server.log", {"PATH": "/nowhere"}, said.append)
    own.answered = True  # it is on its way, and would
    killing = threading.Event()

    def kill() -> None:
        while own.lost is None and not killing.wait(0.02):
            own._process.kill()

    threading.Thread(target=kill, daemon=True).start()
    until = time.monotonic() + 60
    while own.lost is None and time.monotonic() < until:
        time.sleep(0.05)
    killing.set()
    assert own.lost == "it ended 3 times in a row, last with exit code -9"
    assert "goes on without its Prefect server" in said[-1]
    os.environ.pop(OWN)
    own.close()
