"""The password of a home: how it is made and kept, and to which addresses it is sent."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from flows.machine.environment import prepare, server_environment, service_environment
from flows.machine.processes import boot_id, start_ticks
from flows.machine.servers import (
    ask_directly,
    basic,
    credentials,
    credentials_for,
    make_credentials,
    password_file,
)
from flows.services.record import HomeRecord, Service, command
from flows.services.rest import _credentials
from flows.services.status import render
from flows.tracking.client import _with_password
from storage.errors import OnwardError

FOREIGN = "me:another-secret"


@pytest.fixture
def home(monkeypatch, tmp_path) -> Path:
    """A home of which nothing exists yet, and an environment that knows nothing but it."""
    monkeypatch.setattr("os.environ", {"PATH": "/usr/bin", "ONWARD_HOME": str(tmp_path / "home")})
    return tmp_path / "home"


@pytest.fixture
def running(home) -> HomeRecord:
    """The record of a home whose servers run; this process stands for both."""
    make_credentials()
    here = Service(os.getpid(), start_ticks(os.getpid()))
    record = HomeRecord(4200, 5000, os.getpid(), here.started, services={"prefect": here, "mlflow": here})
    record.write()
    return record


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def lax() -> Any:
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_password_is_made_once_and_only_its_owner_can_read_it(home, lax):
    known = make_credentials()
    assert re.fullmatch(r"onward:[\w-]{32}", known)
    assert make_credentials() == make_credentials(renew=True) == credentials() == known
    assert (mode(password_file()), mode(home / ".onward")) == (0o600, 0o700)


def test_each_home_has_its_own(home, tmp_path):
    first = make_credentials()
    os.environ["ONWARD_HOME"] = str(tmp_path / "other")
    assert make_credentials() != first


def test_a_directory_that_others_could_enter_is_closed(home, lax):
    (home / ".onward").mkdir(parents=True)
    prepare()
    assert mode(home / ".onward") == 0o700


def test_a_password_that_others_could_read_is_closed_and_replaced_where_nothing_runs(home):
    first = make_credentials()
    password_file().chmod(0o644)
    assert make_credentials() == first and mode(password_file()) == 0o600, "servers may run with it"
    password_file().chmod(0o640)
    assert make_credentials(renew=True) != first
    assert mode(password_file()) == 0o600


@pytest.mark.parametrize("how", ["empty", "a link", "a directory"])
def test_what_is_no_password_is_refused_with_the_way_out(home, tmp_path, how):
    make_credentials()
    password_file().unlink()
    if how == "empty":
        password_file().touch(0o600)
    elif how == "a link":
        (tmp_path / "planted").write_text("known\n")
        (tmp_path / "planted").chmod(0o600)
        password_file().symlink_to(tmp_path / "planted")
    else:
        password_file().mkdir(0o700)
    assert credentials() is None
    with pytest.raises(OnwardError, match=r"\.onward/password.*Remove it"):
        make_credentials()


def test_it_is_in_no_command_line_and_each_server_gets_what_it_asks_for(home, running):
    known = credentials()
    assert known is not None
    for name in ("prefect", "mlflow", "worker-cpu"):
        assert known.partition(":")[2] not in " ".join(command(name, running))
    services = service_environment(4200, 5000)
    assert services["PREFECT_API_AUTH_STRING"] == known
    assert [name for name, value in services.items() if known in value] == ["PREFECT_API_AUTH_STRING"]
    assert server_environment("prefect", services)["PREFECT_SERVER_API_AUTH_STRING"] == known
    mlflow = server_environment("mlflow", services)
    assert mlflow["ONWARD_SERVER_AUTH"] == known and "MLFLOW_TRACKING_URI" not in mlflow


OURS = ["http://127.0.0.1:4200/api", "http://localhost:4200", "http://127.0.0.1:5000/api/2.0/mlflow/runs/get"]
OTHERS = [
    "http://127.0.0.1:4201/api",
    "http://127.0.0.1/api",
    "https://127.0.0.1:4200/api",
    "http://127.0.0.1.evil.example:4200/api",
    "http://127.0.0.1:4200@evil.example/api",
    "http://evil.example:4200/127.0.0.1:4200",
    "http://[::1]:4200/api",
    "http://127.0.0.1:x/api",
    "sqlite:///mlflow.db",
    "databricks",
    "",
]


@pytest.mark.parametrize("address", OURS)
def test_the_running_servers_of_this_home_get_it(running, address):
    assert credentials_for(address) == credentials()


@pytest.mark.parametrize("address", OTHERS)
def test_no_other_address_gets_it(running, address):
    assert credentials_for(address) is None


def test_a_port_whose_server_is_gone_may_be_anybodys(running):
    running.services["mlflow"] = Service(os.getpid(), "1")  # the process had another start: its pid is reused
    running.write()
    assert credentials_for("http://127.0.0.1:5000") is None
    assert credentials_for("http://127.0.0.1:4200/api") == credentials()
    running.boot = "another-" + boot_id()
    running.write()
    assert credentials_for("http://127.0.0.1:4200/api") is None
    (running_record := password_file().with_name("services.json")).write_text("[]")
    assert credentials_for("http://127.0.0.1:4200/api") is None
    running_record.unlink()
    assert credentials_for("http://127.0.0.1:4200/api") is None


@pytest.mark.parametrize("own", [{}, {"PREFECT_API_URL": "http://localhost:4200/api"}])
def test_a_command_takes_the_homes_password_for_the_homes_server(running, own):
    os.environ |= {"PREFECT_API_AUTH_STRING": FOREIGN, **own}
    prepare()
    assert os.environ["PREFECT_API_AUTH_STRING"] == credentials()


def test_a_server_of_somebody_else_gets_what_the_user_says_and_never_ours(running):
    theirs = {"PREFECT_API_URL": "http://elsewhere:4200/api", "PREFECT_API_AUTH_STRING": FOREIGN}
    os.environ |= theirs
    prepare()
    assert {name: os.environ[name] for name in theirs} == theirs
    assert _credentials(theirs["PREFECT_API_URL"]) == {"Authorization": basic(FOREIGN)}
    assert _credentials(f"{running.prefect}/api") == {"Authorization": basic(credentials() or "")}


def test_mlflows_requests_carry_it_to_the_home_and_what_the_user_says_elsewhere(running):
    import requests

    def sent(url: str, headers: dict[str, str]) -> str | None:
        request = requests.Request("GET", url, headers=headers, auth=_with_password).prepare()
        found: str | None = request.headers.get("Authorization")
        return found

    theirs = {"Authorization": basic(FOREIGN)}
    ours = basic(credentials() or "")
    assert sent("http://127.0.0.1:5000/api/x", {}) == sent("http://127.0.0.1:5000/api/x", theirs) == ours
    assert sent("http://elsewhere:5000/api/x", theirs) == basic(FOREIGN)
    assert sent("http://elsewhere:5000/api/x", {}) is None
    assert sent("http://me:word@elsewhere:5000/x", {}) == basic("me:word")


def test_status_does_not_write_it_into_a_file(home):
    addresses = {"prefect": "http://127.0.0.1:4200", "mlflow": "http://127.0.0.1:5000"}
    found = {"up": True, **addresses, "services": [], "supervised": True}
    known = {"credentials": dict.fromkeys(addresses, make_credentials())}
    assert make_credentials() in render(found | known, secret=False)
    kept = render(found | known, secret=True)
    assert make_credentials() not in kept and str(password_file()) in kept
    assert "only its owner can read" in render(found, secret=False)


def test_nothing_that_is_meant_for_this_machine_goes_through_a_proxy():
    environment = {"http_proxy": "http://proxy:3128", "NO_PROXY": "intern.example, localhost"}
    ask_directly(environment)
    assert environment["NO_PROXY"] == "intern.example,localhost,127.0.0.1"
    assert environment["no_proxy"] == "127.0.0.1,localhost"
