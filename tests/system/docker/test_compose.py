"""The compose file says what it should: no default password, nothing published but on loopback, and a start order."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest

from flows.services.serve import names
from tests.support import ROOT, composed

OURS = {"prefect", "mlflow", "deploy", "worker-cpu", "worker-gpu"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return composed.services(None, "--profile", "gpu")


def environment_of(service: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in (service.get("environment") or {}).items()}


@pytest.mark.parametrize("missing", composed.SECRETS)
def test_a_missing_or_empty_password_is_an_error_that_names_it(missing, tmp_path):
    nothing = tmp_path / "empty.env"
    nothing.touch()
    for variables in (
        {name: value for name, value in composed.SECRETS.items() if name != missing},
        {**composed.SECRETS, missing: ""},
    ):
        answer = composed.config(variables, env_file=nothing)
        assert answer.returncode != 0
        assert f"set {missing} in docker/.env" in answer.stderr


def test_passwords_reach_only_who_needs_them(services):
    holders = {
        name: {service for service, said in services.items() if value in str(environment_of(said).values())}
        for name, value in composed.SECRETS.items()
    }
    clients = {"deploy", "worker-cpu", "worker-gpu"}
    assert holders == {
        "POSTGRES_PASSWORD": {"postgres", "databases"},
        "PREFECT_DATABASE_PASSWORD": {"databases", "prefect"},
        "MLFLOW_DATABASE_PASSWORD": {"databases", "mlflow"},
        "PREFECT_PASSWORD": {"prefect"} | clients,
        "MLFLOW_ADMIN_PASSWORD": {"mlflow"} | clients,
        "MLFLOW_SECRET_KEY": {"mlflow"},
    }


def test_no_password_stands_on_a_command_line(services):
    for service in services.values():
        said = str(service.get("command")) + str((service.get("healthcheck") or {}).get("test"))
        assert not [name for name, value in composed.SECRETS.items() if value in said]


def test_only_the_two_servers_are_published_and_on_loopback(services):
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert set(published) == {"prefect", "mlflow"}
    for ports in published.values():
        for port in ports:
            host = port["host_ip"] if isinstance(port, dict) else port.split(":")[0]
            assert host == "127.0.0.1"


PORTS = {"prefect": "4200", "mlflow": "5000"}
LOCAL = {
    name: {f"{host}:{one}" for host in ("127.0.0.1", "localhost") for one in (port, f"1{port}")}
    for name, port in PORTS.items()
}


def test_ports_and_public_addresses_follow_the_variables():
    changed = {
        "PREFECT_PORT": "14200",
        "PREFECT_UI_URL": "https://prefect.example.org",
        "MLFLOW_PORT": "15000",
        "ONWARD_MLFLOW_URL": "https://mlflow.example.org",
        "PREFECT_EXTRA_HOSTS": ",runs.example.org",
        "MLFLOW_EXTRA_HOSTS": ",tracking.example.org",
    }
    services = composed.services(changed)
    worker = environment_of(services["worker-cpu"])
    assert worker["PREFECT_UI_URL"] == "https://prefect.example.org"
    assert worker["ONWARD_MLFLOW_URL"] == "https://mlflow.example.org"
    assert worker["PREFECT_API_URL"] == "http://prefect:4200/api", "inside, the port is always the same"
    allowed = {name: names(name, int(port), environment_of(services[name])) for name, port in PORTS.items()}
    assert allowed == {
        "prefect": {*LOCAL["prefect"], "prefect:4200", "prefect.example.org", "runs.example.org"},
        "mlflow": {*LOCAL["mlflow"], "mlflow:5000", "mlflow.example.org", "tracking.example.org"},
    }
    assert "14200" in str(services["prefect"]["ports"]) and "15000" in str(services["mlflow"]["ports"])


def test_the_time_zone_is_utc_or_the_one_that_is_asked_for(services):
    assert {environment_of(services[name])["TZ"] for name in OURS} == {"UTC"}
    elsewhere = composed.services({"TZ": "Europe/Berlin"}, "--profile", "gpu")
    assert {environment_of(elsewhere[name])["TZ"] for name in OURS} == {"Europe/Berlin"}
    assert " tzdata " in (ROOT / "docker/Dockerfile").read_text(), (
        "a slim Debian knows no other zone than UTC"
    )


def test_no_script_directory_comes_before_our_package(services):
    """Prefect runs scripts of its own beside a module `storage`."""
    for name in ("deploy", "worker-cpu", "worker-gpu"):
        assert environment_of(services[name])["PYTHONSAFEPATH"] == "1"
    assert re.search(r"^ +PYTHONSAFEPATH=1 \\$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)


def test_the_gpu_worker_is_a_profile_with_a_device(services):
    assert {name for name, service in services.items() if service.get("profiles")} == {"worker-gpu"}
    gpu = services["worker-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert gpu["build"]["args"]["TORCH_INDEX"] == "https://pypi.org/simple"
    assert "gpu" in gpu["command"]


def test_what_stays_up_has_a_health_check_and_waits_for_what_it_needs(services):
    one_shots = {"databases", "deploy"}
    for name, service in services.items():
        if name in one_shots:
            assert service["restart"] == "on-failure"
            continue
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
        assert service["stop_grace_period"]
    needs = {
        name: {on: said["condition"] for on, said in (service.get("depends_on") or {}).items()}
        for name, service in services.items()
    }
    assert needs["databases"] == {"postgres": "service_healthy"}
    assert needs["prefect"] == needs["mlflow"] == {"databases": "service_completed_successfully"}
    assert needs["deploy"] == {"prefect": "service_healthy"}
    for worker in ("worker-cpu", "worker-gpu"):
        assert needs[worker] == {
            "prefect": "service_healthy",
            "mlflow": "service_healthy",
            "deploy": "service_completed_successfully",
        }


def test_ours_run_without_privileges_and_send_nothing_home(services):
    for name in OURS:
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
        environment = environment_of(services[name])
        assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert environment["DO_NOT_TRACK"] == "true"


def test_volumes_are_named_or_read_only(services):
    for service in services.values():
        for volume in service.get("volumes") or ():
            if isinstance(volume, dict):
                assert volume["type"] == "volume" or volume.get("read_only"), volume
            else:
                source, _, options = volume.partition(":")
                assert not source.startswith("/") or options.endswith(":ro"), volume


def test_new_passwords_are_random_private_and_complete(tmp_path):
    made = []
    for name in ("one", "two"):
        path = tmp_path / name
        with path.open("w") as file:
            subprocess.run(["sh", str(ROOT / "docker/new-env.sh")], stdout=file, check=True)
        made.append(dict(re.findall(r"^([A-Z_]+)=(.*)$", path.read_text(), re.MULTILINE)))
    assert all(len(file[name]) == 48 for file in made for name in composed.SECRETS)
    values = [file[name] for file in made for name in composed.SECRETS]
    assert len(set(values)) == len(values)
    answer = composed.config({}, env_file=tmp_path / "one")
    assert answer.returncode == 0, answer.stderr
    assert made[0]["PREFECT_PASSWORD"] in answer.stdout


def test_the_example_holds_no_secret_and_the_real_one_is_ignored():
    example = (ROOT / "docker/.env.example").read_text()
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", example, re.MULTILINE))
    assert {name: given[name] for name in composed.SECRETS} == dict.fromkeys(composed.SECRETS, "")
    ignored = subprocess.run(["git", "-C", str(ROOT), "check-ignore", "-q", "docker/.env"])
    assert ignored.returncode == 0


def test_the_image_is_built_from_what_is_named_and_runs_as_nobody():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*", "everything is left out that is not let in"
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    users = re.findall(r"^USER (.*)$", dockerfile, re.MULTILINE)
    assert users[-1] == "10001:10001"
    assert not re.search(r"(?i)(password|secret|token)\s*=", dockerfile)
    assert re.search(r"^ARG BASE=\S+:\d[\w.-]*$", dockerfile, re.MULTILINE), "an exact tag, never latest"


def test_the_scripts_can_be_read_by_the_shell_that_they_name():
    scripts = sorted((ROOT / "docker").glob("*.sh"))
    assert scripts
    for script in scripts:
        shell = script.read_text().splitlines()[0].rpartition("/")[2].removeprefix("env ")
        assert shell in ("sh", "bash")
        assert subprocess.run([shell, "-n", str(script)]).returncode == 0
