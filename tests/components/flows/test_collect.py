"""`onward gc` and MLflow: what is registered there, or has still to be told there, stays; and nothing goes unasked."""

from __future__ import annotations

import shutil

import pytest

from flows.inspect.gc import collect
from flows.lineage.graph import as_text, graph_of
from flows.tracking.addresses import addresses_of, note_address
from storage.catalog import Catalog
from storage.errors import OnwardError
from storage.runs import RunRecord, read_records, write_record
from storage.store import Store
from tasks.models.card import model_card
from tests.support.made import REGISTERED, Made
from tests.support.mlflow_checks import check_whole, client_of
from tests.support.mlflow_server import MlflowServer
from tests.support.small import onward

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MODEL = f"{REGISTERED}-small"


@pytest.fixture
def mine(made, tmp_path, monkeypatch) -> Made:
    """A copy of the store, which no run record reaches, in a home that has no MLflow."""
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = tmp_path / "store"
    shutil.copytree(made.store.root, store, symlinks=True, ignore=shutil.ignore_patterns(".tracking"))
    return Made(made.home, Store(store), made.artifacts, made.models, made.report, made.items)


def told(made: Made, address: str) -> None:
    tracker = made.tracker(address, "flow-1")
    tracker.start()
    made.tell(tracker)
    tracker.close("FINISHED", seconds=240)


def keys(made: Made) -> set[str]:
    return {artifact.key for artifact in made.store.artifacts()}


def shown(made: Made, keys: list[str]) -> dict[str, tuple[str, str]]:
    """What `onward lineage` and the card of `onward export` say of models."""
    catalog = Catalog(made.store)
    found = {}
    for key in keys:
        artifact = next(one for one in made.store.artifacts() if one.key == key)
        found[key] = (as_text(graph_of(made.store, artifact)), model_card(catalog, artifact))
    return found


def test_a_registered_model_stays_with_all_that_it_is_shown_by(mine, tmp_path):
    said: list[str] = []
    models = [model.export.key for model in mine.models]
    with MlflowServer(tmp_path / "server") as server:
        told(mine, server.uri)
        before, all_keys = shown(mine, models), keys(mine)
        would = collect(mine.store, dry_run=True, say=said.append)
        assert keys(mine) == all_keys
        assert any(path.startswith("report/") for path in would.artifacts), "no run record names it"
        freed = collect(mine.store, say=said.append)
        assert freed.artifacts == would.artifacts
        assert shown(mine, models) == before
        assert "gone from the store" not in "".join(text for text, _ in before.values())
        assert any(f"{MODEL}/" in line and models[-1][:16] in line for line in said), said

        client = client_of(server.uri)
        base, middle, last = models
        version = client.get_model_version_by_alias(MODEL, "tokens-8k")
        client.delete_model_version(MODEL, version.version)
        freed = collect(mine.store, say=said.append)
        assert f"decay/{middle[:16]}" in freed.artifacts
        assert shown(mine, [base, last]) == {key: before[key] for key in (base, last)}


def test_without_an_answer_nothing_is_freed_unless_it_is_asked_for(mine, tmp_path):
    run = RunRecord("small-3f9a2c", "small", {}, tuple((one.stage, one.key) for one in mine.ordered()))
    write_record(mine.store, run)
    forget = ("gc", "--store", mine.store.root, "--forget", run.run)
    with MlflowServer(tmp_path / "server") as server:
        told(mine, server.uri)
        server.kill()
        before = keys(mine)
        refused = onward(tmp_path, *forget)
        assert refused.returncode == 1 and "Traceback" not in refused.stderr
        assert server.uri in refused.stderr and "--without-mlflow" in refused.stderr
        assert keys(mine) == before and [record.run for record in read_records(mine.store)] == [run.run]
        server.start()
        kept = onward(tmp_path, *forget)
        assert kept.returncode == 0 and f"kept: {MODEL}/" in kept.stderr, kept.stderr
        assert not list(read_records(mine.store))
        assert {model.export.key for model in mine.models} <= keys(mine) < before
        server.kill()
        other = MlflowServer(tmp_path / "server")  # the same database, elsewhere
        with other:
            said: list[str] = []
            moved = collect(mine.store, mlflow=[other.uri], without_mlflow=True, say=said.append)
            assert not moved.artifacts and any(server.uri in line for line in said)
    freed = onward(tmp_path, "gc", "--store", mine.store.root, "--without-mlflow")
    assert freed.returncode == 0 and "are not kept" in freed.stderr
    assert not keys(mine)


def test_what_has_still_to_be_told_can_be_told_after_a_collection(mine, tmp_path):
    with MlflowServer(tmp_path / "server") as server:
        server.kill()
        warned: list[str] = []
        missed = mine.tracker(server.uri, "flow-1", warn=warned.append)
        missed.start()
        mine.tell(missed)
        missed.close("FINISHED", seconds=10)
        assert warned
        said: list[str] = []
        server.start()
        collect(mine.store, say=said.append)
        assert {"base", "train", "decay", "evaluate", "perplexity", "report"} <= {
            one.stage for one in mine.store.artifacts()
        }
        later = mine.tracker(server.uri, "flow-2")
        later.start()
        later.close("FINISHED", seconds=240)
        check_whole(mine, server.uri)
        said.clear()
        collect(mine.store, say=said.append)
        assert not any("has not been told" in line for line in said)
        assert {model.export.key for model in mine.models} <= keys(mine)
        assert mine.report.key not in keys(mine)


def test_a_store_of_which_no_mlflow_is_known_loses_no_model_by_itself(mine):
    silent: list[str] = []
    before = keys(mine)
    with pytest.raises(OnwardError, match="not known in which MLflow"):
        collect(mine.store, say=silent.append)
    assert keys(mine) == before
    models = tuple((model.export.stage, model.export.key) for model in mine.models)
    scores = tuple((one.stage, one.key) for one in mine.ordered() if one.stage in ("evaluate", "perplexity"))
    write_record(mine.store, RunRecord("one-3f9a2c", "one", {}, (*models, *scores)))
    freed = collect(mine.store, say=silent.append)
    assert any(path.startswith("report/") for path in freed.artifacts), (
        "no model is in question: nobody is asked"
    )


def test_an_address_is_known_once_without_secrets_and_asked_with_those_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    store = Store(tmp_path / "store")
    with_secret = "postgresql+psycopg://me:hunter2@db:5432/mlflow"
    for uri in (with_secret, with_secret, "http://a:5000"):
        note_address(store.root, uri)
    notes = [path.read_text() for path in (store.root / ".tracking").glob("mlflow-*.json")]
    assert len(notes) == 2 and "hunter2" not in "".join(notes)
    config = {"tracking": {"mlflow_uri": "http://b:5000", "registered_model": "m"}}
    write_record(store, RunRecord("one-3f9a2c", "one", config))
    bare = "postgresql+psycopg://db:5432/mlflow"
    assert set(addresses_of(store)) == {bare, "http://a:5000", "http://b:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", with_secret)
    assert set(addresses_of(store, ["http://c:5000"])) == {
        with_secret,
        "http://a:5000",
        "http://b:5000",
        "http://c:5000",
    }
    (store.root / ".tracking" / "mlflow-torn.json").write_text("{")
    with pytest.raises(OnwardError, match="mlflow-torn"):
        addresses_of(store)
