"""What `onward doctor` finds, and what it says to do: each failure made for real."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.services import doctor
from flows.services.rest import Api
from tests.support import ROOT


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """A project directory in which nothing runs."""
    for name in [name for name in os.environ if name.startswith(("PREFECT_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def server() -> Iterator[Any]:
    """Starts HTTP servers that answer every GET in the same way."""
    running: list[ThreadingHTTPServer] = []

    def start(status: int, body: bytes, **headers: str) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        running.append(made)
        return f"http://127.0.0.1:{made.server_port}"

    yield start
    for made in running:
        made.shutdown()
        made.server_close()


def closed_address() -> str:
    """Where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def by_name(findings) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in findings}


def command(home: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", "doctor", *map(str, arguments)],
        env={**environment, "ONWARD_HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )


def demo(home: Path, **over: Any) -> Path:
    """The demo's configuration in this home, with changes to its top."""
    raw = {**yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text()), **over}
    path = home / "demo.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_where_nothing_runs_it_says_how_to_start_and_finds_nothing_bad(home):
    answer = command(home, demo(home))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "✗" not in answer.stdout
    assert "! prefect      no server runs here" in answer.stdout
    assert "→ onward up" in answer.stdout
    assert list(home.glob("**/.doctor-*")) == [], "what it tried is gone again"


def test_a_bad_finding_is_exit_code_1_and_every_one_says_what_to_do(home):
    (home / "taken").write_text("")
    answer = command(home, demo(home, store="taken"))
    assert answer.returncode == 1
    lines = answer.stdout.splitlines()
    bad = [at for at, line in enumerate(lines) if line.startswith("✗")]
    assert bad and all("→" in lines[at + 1] for at in bad)
    assert f"{home / 'taken'} is a file, not a directory" in answer.stdout


def test_a_store_is_tried_out_in_a_directory_that_is_there(home):
    (home / "store").mkdir()
    found = by_name(doctor.store(home / "store", 6_000_000))
    assert found["store"].state == "ok" and "locks and renames hold" in found["store"].what
    assert found["store space"].state in ("ok", "note")
    assert list((home / "store").iterdir()) == []


def test_a_store_below_a_file_is_bad(home):
    (home / "file").write_text("")
    found = by_name(doctor.store(home / "file" / "store"))
    assert found["store"].state == "bad" and "mv " in found["store"].do


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_to_is_bad(home):
    (home / "store").mkdir(mode=0o555)
    found = by_name(doctor.store(home / "store"))
    assert found["store"].state == "bad" and "chown" in found["store"].do


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="only root mounts")
def test_a_store_on_a_file_system_mounted_read_only_is_bad(home):
    (home / "store").mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", home / "store"], check=False)
    if made.returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        found = by_name(doctor.store(home / "store"))
    finally:
        subprocess.run(["umount", home / "store"], check=True)
    assert found["store"].state == "bad" and "cannot be written to: Read-only" in found["store"].what


def test_a_lock_is_tried_from_a_second_process(home):
    path = home / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert not doctor._second_process_locks(path)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        assert doctor._second_process_locks(path)
    finally:
        os.close(descriptor)


def test_room_that_a_run_will_miss_is_named(home):
    free = shutil.disk_usage(home).free
    assert doctor.space(home, "store space", 1).state == "ok"
    assert doctor.space(home, "store space", 2 * free).state == "note"
    found = doctor.space(home, "store space", 1000 * free)
    assert found.state == "bad" and "wanted" in found.what and "onward gc" in found.do


def test_a_package_that_is_not_as_pinned_is_named(home):
    constraints = home / "constraints.txt"
    constraints.write_text(f"prefect==0.0.1\nnumpy=={metadata.version('numpy')}\n")
    found = doctor.packages(constraints)
    installed = metadata.version("prefect")
    assert found.state == "bad" and f"prefect {installed} instead of 0.0.1" in found.what
    assert str(constraints) in found.do
    constraints.write_text(f"numpy=={metadata.version('numpy')}\nsix==0.0.1\n")
    assert doctor.packages(constraints).state == "note", "nobody asks for it by name"


def test_the_packages_here_are_as_pinned():
    assert doctor.packages(ROOT / "constraints.txt").state == "ok"


def test_a_benchmark_file_that_is_missing_is_named(home):
    benchmarks = {"domain": ["arc_easy"]}
    (home / "benchmarks").mkdir()
    found = by_name(doctor.examine(demo(home, benchmark_files="benchmarks", evaluation=benchmarks)))
    assert found["config"].state == "bad"
    assert "arc_easy" in found["config"].what and found["config"].do
    assert "store" in found, "the rest is looked at all the same"


def test_a_configuration_that_is_wrong_is_named_with_its_field(home):
    found = by_name(doctor.examine(demo(home, sead=1)))
    assert found["config"].state == "bad" and "sead" in found["config"].what


def test_a_server_that_is_configured_and_away_is_bad(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"{closed_address()}/api")
    found = by_name(doctor.examine())
    assert found["prefect"].state == "bad" and "does not answer" in found["prefect"].what
    assert "PREFECT_API_URL" in found["prefect"].do


def test_another_version_of_the_server_is_bad(server):
    address = server(200, b'"2.0.0"')
    found = next(doctor.prefect(Api(address + "/api"), None))
    assert found.state == "bad" and f"runs 2.0.0, here is {metadata.version('prefect')}" in found.what


def test_a_server_that_wants_a_password_says_so(server):
    found = next(doctor.prefect(Api(f"{server(401, b'{}')}/api"), None))
    assert "PREFECT_API_AUTH_STRING" in found.what


@pytest.mark.parametrize(("apart", "state"), [(0, "ok"), (20, "note"), (600, "bad")])
def test_a_clock_apart_from_the_servers_is_told(server, apart, state):
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=apart), usegmt=True)
    api = Api(server(200, b"1", Date=date))
    api.get("/")
    assert doctor.clock(api).state == state


def test_mlflow_away_or_closed_to_us_is_bad(home, server, monkeypatch):
    assert doctor.mlflow(None, None).state == "ok", "a local database"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_address())
    found = doctor.mlflow(None, None)
    assert found.state == "bad" and "does not answer" in found.what and "mlflow_uri" in found.do
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server(401, b""))
    assert "MLFLOW_TRACKING_USERNAME" in doctor.mlflow(None, None).do
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server(200, b"OK"))
    assert doctor.mlflow(None, None).state == "ok"


def test_an_address_with_a_password_is_shown_without_it(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed_address().replace("//", "//me:secret@"))
    found = doctor.mlflow(None, None)
    assert found.state == "bad" and "secret" not in found.what + found.do
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://me:secret@127.0.0.1/mlflow")
    found = doctor.mlflow(None, None)
    assert found.what.startswith("postgresql+psycopg") and "secret" not in found.what + found.do
