"""The corpus stages on a Dask cluster of real processes: the same bytes, whatever happens to workers and runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.draft import Draft
from storage.errors import ConfigError, Interrupted, StageFailed
from storage.executors import Cluster
from storage.workers import Workers
from tests.support import ROOT, held
from tests.support.cluster import DaskCluster
from tests.support.small import ONWARD, digests, environment, run_json, write_config, write_text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runs_share_a_server")]


def wait_until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    with DaskCluster(tmp_path / "cluster") as started:
        yield started


@contextlib.contextmanager
def a_client(cluster: DaskCluster) -> Iterator[Any]:
    from distributed import Client

    with Client(cluster.address, set_as_default=False) as client:
        yield client


def test_corpus_stages_with_a_worker_killed_in_mid_shard_give_the_bytes_of_processes(
    tmp_path: Path, cluster: DaskCluster
) -> None:
    write_text(tmp_path / "text", documents=3000)
    sizes = {"corpus__slice_bytes": "2500K"}
    calm = run_json(tmp_path, write_config(tmp_path, "calm", **sizes), "--until", "tokenize")
    config = write_config(tmp_path, "store", **sizes, corpus__execution={"executor": cluster.executor})
    doomed, spared = cluster.worker("--name", "doomed"), cluster.worker("--nthreads", "2")
    work = tmp_path / "store" / ".work"
    killed: list[str] = []

    def kill_in_mid_shard() -> None:
        with a_client(cluster) as client:
            address = next(
                a for a, w in client.scheduler_info(-1)["workers"].items() if w["name"] == "doomed"
            )
            while not killed and running.poll() is None:
                if client.processing([address])[address] and list(work.glob("*/.tmp/*/*")):
                    cluster.kill(doomed)
                    killed.extend(str(path.relative_to(work)) for path in work.glob("*/.tmp/*/*"))

    command = [*ONWARD, "run", str(config), "--json", "--until", "tokenize"]
    with subprocess.Popen(
        command,
        env=environment(tmp_path),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            killer = threading.Thread(target=kill_in_mid_shard)
            killer.start()
            out, errors = running.communicate(timeout=300)
            killer.join()
        finally:
            running.kill()
    assert running.returncode == 0, errors[-3000:]
    assert killed, "the worker was never caught in the middle of a shard"
    assert spared.poll() is None
    assert digests(tmp_path / "store") == digests(tmp_path / "calm")
    stages = json.loads(out)["stages"]
    assert {s["key"] for s in stages} == {s["key"] for s in calm["stages"]}
    assert not [path for path in work.glob("*") if path.is_dir()]
    print(f"killed with {killed} in the making; {len(stages)} stages equal")


def test_a_shard_that_a_worker_believed_dead_makes_after_all_is_dropped(tmp_path: Path) -> None:
    gates = tmp_path / "gates"
    gates.mkdir()
    with DaskCluster(tmp_path / "cluster", DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="3s") as cluster:
        first = cluster.worker()
        run = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.support.held",
                cluster.executor,
                str(tmp_path / "work"),
                str(gates),
                "a",
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            wait_until((gates / "a.begun").exists)
            os.kill(first.pid, signal.SIGSTOP)
            second = cluster.worker()
            record = tmp_path / "work" / "letters" / "a" / ".shard.json"
            wait_until(record.exists)
            (gates / "a.go").touch()
            os.kill(first.pid, signal.SIGCONT)
            assert run.wait(60) == 0
            wait_until(lambda: not list((tmp_path / "work").glob(".tmp/*/*")))
        finally:
            run.kill()
            run.wait()
        assert json.loads(record.read_text())["stats"]["pid"] == second.pid != first.pid
        assert sorted(path.name for path in record.parent.iterdir()) == [
            ".shard.json",
            "first.txt",
            "second.txt",
        ]


def test_a_killed_run_s_tasks_are_cancelled_and_the_running_one_changes_nothing(
    tmp_path: Path, cluster: DaskCluster
) -> None:
    gates, work = tmp_path / "gates", tmp_path / "work"
    gates.mkdir()
    cluster.worker()
    names = ("a", "b", "c")
    for name in ("b", "c"):
        (gates / f"{name}.go").touch()
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.support.held", cluster.executor, str(work), str(gates), *names],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wait_until((gates / "a.begun").exists)
    run.kill()
    run.wait()
    with a_client(cluster) as client:
        wait_until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
    assert not (gates / "b.begun").exists()

    again = Draft(work)
    stats = again.shards("letters", held.jobs(gates, names), held.make)
    assert {entry["pid"] for entry in stats.values()} == {os.getpid()}
    (gates / "a.go").touch()
    with a_client(cluster) as client:
        worker = next(iter(client.nthreads()))
        wait_until(lambda: not client.run(lambda dask_worker: len(dask_worker.state.executing))[worker])
    parts, _ = again.finish()
    assert len(parts["letters"].files) == 6
    found = {str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()}
    assert found == {
        f"letters/{name}/{file}" for name in names for file in (".shard.json", "first.txt", "second.txt")
    }


def test_a_worker_with_other_code_or_none_is_refused_by_name(tmp_path: Path, cluster: DaskCluster) -> None:
    other = tmp_path / "other"
    for package in ("storage", "tasks"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "tasks" / "corpus" / "filter.py").open("a") as file:
        file.write("\n_MORE = 1\n")
    changed = cluster.worker(PYTHONPATH=str(other))
    with Workers(executor=cluster.executor) as workers, pytest.raises(ConfigError, match="sources of tasks"):
        list(workers.run([("a", len, ("abc",))]))
    cluster.kill(changed)
    (other / "storage" / "__init__.py").write_text("raise ImportError('broken')\n")
    cluster.worker(PYTHONPATH=str(other))
    with Workers(executor=cluster.executor) as workers, pytest.raises(ConfigError, match="tcp://127.0.0.1:"):
        list(workers.run([("a", len, ("abc",))]))


def test_a_worker_that_joins_later_is_looked_at_too(tmp_path: Path, cluster: DaskCluster) -> None:
    other = tmp_path / "other"
    for package in ("storage", "tasks"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    (other / "tasks" / "corpus" / "filter.py").open("a").write("\n_MORE = 1\n")
    same = cluster.worker()
    with Workers(executor=cluster.executor) as workers:
        assert dict(workers.run([("a", len, ("abc",))])) == {"a": 3}
        cluster.kill(same)
        cluster.worker(PYTHONPATH=str(other))
        with pytest.raises(ConfigError, match="sources of tasks"):
            list(workers.run([("a", len, ("abc",))]))


def test_no_worker_left_ends_in_words_and_the_next_run_goes_on(tmp_path: Path, cluster: DaskCluster) -> None:
    gates, work = tmp_path / "gates", tmp_path / "work"
    gates.mkdir()
    only = cluster.worker()
    lonely = Cluster(cluster.executor, patience_seconds=3)
    (gates / "a.go").touch()
    failures: list[BaseException] = []
    workers: Any = lonely

    def run() -> None:
        try:
            Draft(work, workers=workers).shards("letters", held.jobs(gates, ("a", "b")), held.make)
        except StageFailed as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until((gates / "b.begun").exists)
    cluster.kill(only)
    began = time.monotonic()
    thread.join(60)
    lonely.close()
    assert "has had no worker for 3 s" in str(failures[0])
    assert time.monotonic() - began < 50
    kept = (work / "letters" / "a" / ".shard.json").read_text()
    cluster.worker()
    with Workers(executor=cluster.executor) as again:
        Draft(work, workers=again).shards("letters", held.jobs(gates, ("a", "b")), held.make)
    assert (work / "letters" / "a" / ".shard.json").read_text() == kept


def test_a_run_that_has_to_be_gone_leaves_the_cluster_in_seconds(
    tmp_path: Path, cluster: DaskCluster
) -> None:
    gates, work = tmp_path / "gates", tmp_path / "work"
    gates.mkdir()
    cluster.worker()
    workers = Workers(executor=cluster.executor)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            Draft(work, workers=workers).shards("letters", held.jobs(gates, ("a", "b")), held.make)
        except Interrupted as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until((gates / "a.begun").exists)
    began = time.monotonic()
    workers.abandon()
    thread.join(30)
    assert time.monotonic() - began < 25
    assert "asked to stop" in str(failures[0])
    with a_client(cluster) as client:
        wait_until(lambda: not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))
    (gates / "a.go").touch()


def test_a_shard_that_kills_its_workers_and_a_scheduler_that_is_gone(
    tmp_path: Path, cluster: DaskCluster
) -> None:
    for _ in range(2):
        cluster.worker()
    with Workers(executor=cluster.executor) as workers:
        with pytest.raises(StageFailed, match=r"shard x: 2 workers .* died one after another"):
            list(workers.run([("x", held.die, (0,))]))
        cluster.worker()
        slow = workers.run([("a", len, ("abc",)), ("b", time.sleep, (30,))])
        assert next(slow) == ("a", 3)
        cluster.kill(cluster.scheduler)
        with pytest.raises(StageFailed, match="connection to the Dask scheduler"):
            next(slow)
    unheard = Cluster(cluster.executor, connect_seconds=1)
    with pytest.raises(StageFailed, match="did not answer within 1 s"):
        list(unheard.run([("a", len, ("abc",))]))


def test_under_tls_with_dask_s_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "1",
        "-subj",
        "/CN=onward",
    ]
    subprocess.run([*openssl, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    settings = {"DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(certificate)}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(certificate)
        settings[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(key)
    with DaskCluster(tmp_path / "cluster", protocol="tls", **settings) as cluster:
        cluster.worker()
        script = (
            "import sys; from storage.workers import Workers\n"
            "with Workers(executor=sys.argv[1]) as workers: print(dict(workers.run([('a', len, ('abc',))])))"
        )
        command = [sys.executable, "-c", script, cluster.executor]
        trusted = subprocess.run(
            command, env={**os.environ, **settings, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert trusted.stdout.strip() == "{'a': 3}", trusted.stderr
        stranger = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert stranger.returncode != 0 and "Dask has no certificate here" in stranger.stderr
