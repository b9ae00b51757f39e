"""MLflow's server, or the database behind it, is gone while a run goes on, and comes back in the middle or after it."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.store import Store
from tests.support.made import Made
from tests.support.mlflow_checks import check_whole, client_of, histories, runs_of
from tests.support.mlflow_server import MlflowServer, postgresql_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def mine(made, tmp_path) -> Made:
    """A copy of the store, with a training that looks as if it were under way."""
    store = tmp_path / "store"
    shutil.copytree(made.store.root, store, symlinks=True)
    return Made(made.home, Store(store), made.artifacts, made.models, made.report, made.items)


def write_journal(made: Made, rows: int) -> int:
    """The last model's training, set back to its first `rows` steps; how many it has in all."""
    import pyarrow.parquet as pq

    export = made.models[-1].export
    table = pq.read_table(export.part("journal").only()).to_pylist()
    seconds = pq.read_table(export.path / "clock.parquet").to_pylist()
    lines = [json.dumps(row | clock) + "\n" for row, clock in zip(table, seconds, strict=True)]
    work = made.store.work_of(export.stage, export.key)
    (work / "checkpoints" / f"step-{table[rows - 1]['step']:08}").mkdir(parents=True)
    (work / "journal.jsonl").write_text("".join(lines))
    return len(table)


def wait(until, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def live_through(
    mine: Made, server: MlflowServer, away: Callable[[], None], back: Callable[[], None]
) -> tuple[int, int]:
    """Tell a whole run, with what happens in `away` in the middle of a training, and `back` some seconds later.

    Returns how many values the server had before, and has afterwards, when it has been found whole.
    """
    export = mine.models[-1].export
    ordered = [one for one in mine.ordered() if one.key != export.key]
    tracker = mine.tracker(server.uri, "flow-1")
    tracker.start()
    for artifact in ordered[: len(ordered) // 2]:
        mine.stage(tracker, artifact)
    tracker.listen("begin", mine.call(export), None)
    write_journal(mine, 4)
    client = client_of(server.uri)
    wait(lambda: client.get_experiment_by_name("small") is not None)
    wait(lambda: export.key in runs_of(client)[0])
    wait(lambda: "train/loss" in runs_of(client)[0][export.key].data.metrics)
    before = count(server)

    away()
    write_journal(mine, 12)
    for artifact in ordered[len(ordered) // 2 :]:
        mine.stage(tracker, artifact)
    tracker.measured(mine.models[:2], ("base", "8K"))
    wait(lambda: tracker._error is not None)
    time.sleep(2)
    back()

    tracker.listen("end", mine.call(export), export)
    mine.tell_end(tracker)
    tracker.close("FINISHED", seconds=240)
    check_whole(mine, server.uri)
    _, (parent,) = runs_of(client)
    assert parent.info.status == "FINISHED"
    histories(client, parent)
    assert not list(mine.store.root.glob(".tracking/*.jsonl"))
    return before, count(server)


def test_what_happens_while_the_server_is_away_is_there_once_when_it_is_back(mine, tmp_path):
    with MlflowServer(tmp_path / "server") as server:
        before, after = live_through(mine, server, server.kill, server.start)
    assert after - before > 200
    print(f"{before} values before, {after - before} of the outage and after: all found")


def test_what_happens_while_the_servers_database_is_away_is_there_once_when_it_is_back(mine, tmp_path):
    """PostgreSQL is stopped, as in a crash, and started again; MLflow's server stays, and answers with errors meanwhile."""
    with (
        postgresql_database() as (address, database),
        MlflowServer(tmp_path / "server", address) as server,
    ):
        answers = []

        def back() -> None:
            answers.append(_answer_of(server))
            database.start()  # returns before it answers
            wait(lambda: _answer_of(server) == 200)

        before, after = live_through(mine, server, database.crash, back)
        assert _answer_of(server) == 200
    assert answers == [500] or answers == [503]
    assert after - before > 200
    print(f"{before} values before, {after - before} of the outage and after: all found")


def _answer_of(server: MlflowServer) -> int:
    """The status of a request that needs the database."""
    url = f"{server.uri}/api/2.0/mlflow/experiments/get?experiment_id=0"
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def count(server: MlflowServer) -> int:
    """Values of metrics that the server has."""
    client = client_of(server.uri)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=1000)
    return sum(len(points) for run in runs for points in histories(client, run).values())


def test_a_server_that_is_away_to_the_end_has_all_of_it_after_the_next_run(mine, tmp_path):
    with MlflowServer(tmp_path / "server") as server:
        warned: list[str] = []
        missed = mine.tracker(server.uri, "flow-1", warn=warned.append)
        missed.start()
        first = mine.ordered()[0]
        mine.stage(missed, first)
        wait(lambda: missed.parent is not None)
        server.kill()
        mine.tell(missed)
        missed.close("FINISHED", seconds=60)
        ended = time.time()
        assert len(warned) == 1 and "the next run adds it" in warned[0]
        unseen = mine.tracker(server.uri, "flow-2", warn=warned.append)  # the server never hears of this one
        unseen.start()
        mine.tell(unseen)
        unseen.close("FAILED", seconds=60)
        assert len(list(mine.store.root.glob(".tracking/*.jsonl"))) == 2
        time.sleep(1)

        server.start()
        later = mine.tracker(server.uri, "flow-3")
        later.start()
        later.close("FINISHED", seconds=240)
        check_whole(mine, server.uri)
        client = client_of(server.uri)
        _, parents = runs_of(client)
        runs = {run.data.tags["prefect.flow_run"]: run for run in parents}
        states = {name: run.info.status for name, run in runs.items()}
        assert states == {"flow-1": "FINISHED", "flow-2": "FAILED", "flow-3": "FINISHED"}
        assert runs["flow-1"].info.end_time / 1000 < ended < runs["flow-3"].info.end_time / 1000
        expected = {model.tokens: model.perplexity["domain"].stats["perplexity"] for model in mine.models}
        for name in ("flow-1", "flow-2"):
            scores = histories(client, runs[name])
            assert dict(scores["perplexity/domain"]) == pytest.approx(expected)
            assert len(client.get_run(runs[name].info.run_id).outputs.model_outputs) == 3
            assert any(tag.startswith("child.") for tag in runs[name].data.tags)
    assert not list(mine.store.root.glob(".tracking/*.jsonl"))


def test_no_password_is_in_an_account(mine, tmp_path):
    warned: list[str] = []
    tracker = mine.tracker("http://me:hunter2@127.0.0.1:9", "flow-1", warn=warned.append)
    tracker.start()
    mine.stage(tracker, mine.ordered()[0])
    tracker.close("FINISHED", seconds=30)
    (account,) = mine.store.root.glob(".tracking/*.jsonl")
    text = account.read_text()
    assert "hunter2" not in text + "".join(warned) and "http://127.0.0.1:9" in text
    assert os.stat(account).st_size < 10_000


def test_a_torn_account_loses_only_its_torn_line(mine, tmp_path):
    from flows.tracking.account import DIRECTORY, Account, left_behind

    account = Account.begin(mine.store.root, {"attempt": "one", "uri": "x"})
    for number in range(3):
        account.add("end", key=str(number))
    with account.path.open("a") as file:
        file.write('{"event": "end", "ke')
    assert list(left_behind(mine.store.root)) == [], "its process is at work"
    account.leave()
    (found,) = left_behind(mine.store.root)
    assert [event["key"] for event in found.events] == ["0", "1", "2"]
    found.settle()
    assert not list(Path(mine.store.root, DIRECTORY).glob("*.jsonl"))
