"""Safe by default, by commands and runs: nothing outside is reached, nothing foreign is run, no secret is told.

What functions alone show of it is in tests/unit/test_safety.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import subprocess
import sys
import time
from http.client import HTTPException
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.inspect.verify import verify
from flows.machine.servers import basic
from storage.errors import DamagedArtifact
from storage.runs import RunRecord, collect_garbage, read_records, write_record
from storage.store import Store
from tests.support.foreign import Bomb, edited, plant
from tests.support.intruders import Asker
from tests.support.small import ONWARD, environment, onward, write_config

SECRET = {"bytes": 1, "sha256": hashlib.sha256(b"s").hexdigest()}


@pytest.mark.parametrize(
    "changes",
    [
        {"entry": {"path": "../../../secret.txt", **SECRET}},
        {"entry": {"path": "export/../../../../secret.txt", **SECRET}},
        {"entry": {"path": "/etc/hostname", **SECRET}},
        {"entry": {"path": "", **SECRET}},
        {"volatile": ["../../../secret.txt"]},
        {"stage": "../../elsewhere"},
        {"stage": "/tmp/elsewhere"},
    ],
)
def test_a_manifest_that_leads_out_of_its_artifact_is_damaged(foreign, changes, tmp_path):
    store, artifact = foreign
    edited(artifact, **changes)
    with pytest.raises(DamagedArtifact, match="names the"):
        store.lookup(artifact.stage, artifact.key)
    assert store.unreadable() == [artifact.path]
    assert list(verify(store, known=["letters"]).damaged) == [f"letters/{artifact.path.name}"]
    assert verify(store, repair=True, known=["letters"]).aside
    assert (tmp_path / "secret.txt").read_text() == "s"
    assert not list(tmp_path.rglob("elsewhere"))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_in_an_artifact_is_not_followed(foreign, what, tmp_path):
    store, artifact = foreign
    inside = artifact.path / "export"
    if what == "file":
        (inside / "letters.txt").unlink()
        (inside / "letters.txt").symlink_to(tmp_path / "secret.txt")
    else:
        elsewhere = tmp_path / "elsewhere"
        inside.rename(elsewhere)
        (elsewhere / "letters.txt").write_text("s")
        inside.symlink_to(elsewhere)
    edited(artifact, entry=SECRET)
    assert store.verify(artifact) and "link" in store.verify(artifact)[0]
    with pytest.raises(DamagedArtifact, match="link"):
        store.lookup(artifact.stage, artifact.key)
    target = tmp_path / "exported"
    answer = onward(tmp_path, "export", artifact.key[:12], target, "--store", store.root)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    assert not target.exists()


@pytest.mark.parametrize("name", ["../secret", "..", "/etc/passwd", "x" * 300, "a/../../secret", "", "-rf"])
def test_keys_and_runs_given_to_commands_reach_nothing_outside(foreign, name, tmp_path):
    store, artifact = foreign
    (tmp_path / "secret.json").write_text("s")
    write_record(store, RunRecord("kept-1", "kept", {}, ((artifact.stage, artifact.key),)))
    for command in (
        ["gc", f"--forget={name}", "--store", store.root],
        ["export", "--store", store.root, "--", name, tmp_path / "exported"],
        ["lineage", "--store", store.root, "--", name],
    ):
        answer = onward(tmp_path, *command)
        assert "Traceback" not in answer.stderr, answer.stderr
        if name or command[0] == "gc":
            assert answer.returncode == 1, (command, answer.stdout)
    kept = collect_garbage(store, keep=(name,))
    assert not kept.artifacts
    assert (tmp_path / "secret.json").exists() and (tmp_path / "secret.txt").exists()
    assert [record.run for record in read_records(store)] == ["kept-1"]


@pytest.mark.slow
def test_scripts_and_pickles_beside_and_inside_texts_never_run(tmp_path, trace):
    config = write_config(tmp_path)
    text = tmp_path / "text"
    rows = [json.loads(line)["text"] for line in (text / "domain-0.jsonl").read_text().splitlines()]
    field = pa.field(
        "text",
        pa.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",  # once unpickled by pyarrow when it was read
            "ARROW:extension:metadata": pickle.dumps(Bomb(trace), protocol=0),
        },
    )
    schema = pa.schema([field], metadata={"pandas": pickle.dumps(Bomb(trace), protocol=0)})
    pq.write_table(pa.table([rows], schema=schema), text / "bomb.parquet")
    plant(text, trace, "text.py", "domain.py", "dataset_infos.py", "__init__.py", "bomb.pkl", "conftest.py")
    sources = json.loads(config.read_text())["corpus"]["sources"]
    sources[0]["files"].append("text/bomb.parquet")
    config = write_config(tmp_path, corpus__sources=sources)
    command = [sys.executable, "-m", "tests.support.driver", str(config), "filter"]
    answer = subprocess.run(command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-3000:]
    ingested = [one for one in Store(tmp_path / "store").artifacts() if one.stage == "ingest"]
    assert sum(one.manifest.stats["documents_in"] for one in ingested) >= len(rows)


MARK = "onward-secret-mark"


SECRETS = {
    "PREFECT_API_AUTH_STRING": f"admin:{MARK}-1",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}-2",
    "HF_TOKEN": f"{MARK}-3",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-4",
}


def holding(root: Path, words: bytes) -> list[str]:
    """Files below root that hold these bytes."""
    return [str(path) for path in root.rglob("*") if path.is_file() and words in path.read_bytes()]


@pytest.mark.slow
def test_secrets_of_the_environment_are_found_nowhere_after_runs(tmp_path):
    config = write_config(tmp_path, budgets=("8K",))
    told = ""
    listening: dict[str, set[int]] = {}
    asked: dict[int, dict[str, int]] = {}
    away = f"http://me:{MARK}-5@127.0.0.1:9"
    for more in ({}, {"MLFLOW_TRACKING_URI": away}):
        process = subprocess.Popen(
            [*ONWARD, "run", str(config), "--json"],
            env={**environment(tmp_path), **SECRETS, **more},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while process.poll() is None:
            for address, port in listeners(process.pid):
                listening.setdefault(address, set()).add(port)
                with contextlib.suppress(OSError, HTTPException):  # it starts or ends
                    asked[port] = asked.get(port) or ask_server(port, tmp_path)
            time.sleep(0.2)
        said = process.stdout.read() if process.stdout else ""
        assert process.returncode == 0, said[-3000:]
        told += said
    assert "has not got everything" in told, "MLflow was away the second time"
    assert MARK not in told
    assert (tmp_path / ".onward").is_dir() and list(tmp_path.rglob("*.db"))
    assert holding(tmp_path, b"small"), "the search finds what is there"
    assert holding(tmp_path, MARK.encode()) == []
    assert list(listening) == ["127.0.0.1"], "the run's own Prefect server, on loopback alone"
    refused = {"no password": 401, "another server's": 401, "another site": 403, "another name": 403}
    assert asked and all(answers == {**refused, "ours": 200} for answers in asked.values())
    password = (tmp_path / ".onward" / "password").read_bytes().strip()
    assert holding(tmp_path, password) == [str(tmp_path / ".onward" / "password")]
    assert password.decode() not in told


def ask_server(port: int, home: Path) -> dict[str, int]:
    """The status of a request to a run's server, by what it brings."""
    ours = {"Authorization": basic("onward:" + (home / ".onward" / "password").read_text().strip())}
    theirs = {"Authorization": basic(SECRETS["PREFECT_API_AUTH_STRING"])}
    given = {
        "no password": {},
        "another server's": theirs,
        "another site": {**ours, "Origin": "http://evil.example"},
        "another name": {**ours, "Host": "evil.example"},
        "ours": ours,
    }
    route = [("POST", "/api/flow_runs/filter")]
    return {who: next(Asker(port).statuses(route, headers))[1] for who, headers in given.items()}


def listeners(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports that a process and its children listen on."""
    found = set()
    try:
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port))
    except psutil.Error:
        pass
    return found


@pytest.mark.slow
def test_a_database_that_cannot_be_reached_does_not_spell_out_its_password(tmp_path):
    config = write_config(tmp_path, budgets=("8K",))
    address = f"postgresql+asyncpg://prefect:{MARK}-6@127.0.0.1:9/prefect"
    answer = subprocess.run(
        [*ONWARD, "run", str(config), "--json"],
        env={**environment(tmp_path), "PREFECT_API_DATABASE_CONNECTION_URL": address},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 1
    assert MARK not in answer.stdout + answer.stderr
    assert holding(tmp_path, MARK.encode()) == []
