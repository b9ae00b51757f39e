"""The environment of our processes: how OpenMP's threads wait, unless the user has said it."""

from __future__ import annotations

import os

import pytest

from flows.machine.environment import prepare, service_environment
from storage.errors import ConfigError


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment without a word on OpenMP; it is as before afterwards."""
    monkeypatch.setattr("os.environ", {"PATH": "/usr/bin", "ONWARD_HOME": str(tmp_path)})

    return os.environ


def test_waiting_threads_sleep_soon_in_commands_and_services(bare):
    assert service_environment(1, 2)["GOMP_SPINCOUNT"] == "20000"
    prepare()
    assert bare["GOMP_SPINCOUNT"] == "20000"


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_says_of_waiting_stays(bare, name, value):
    bare[name] = value
    before = bare.get("GOMP_SPINCOUNT")
    prepare()
    assert bare[name] == value and bare.get("GOMP_SPINCOUNT") == before
    assert service_environment(1, 2).get("GOMP_SPINCOUNT") == before


def test_without_a_place_for_the_servers_data_it_says_where_to_name_one(bare, tmp_path):
    (tmp_path / ".onward").write_text("a file where the directory belongs")
    with pytest.raises(ConfigError, match="set ONWARD_HOME to a directory that can be written"):
        prepare()
