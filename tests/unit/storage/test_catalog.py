"""The catalog over all manifests, run records and what collection frees."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from storage.catalog import Catalog
from storage.errors import OnwardError
from storage.runs import (
    RunRecord,
    amend_record,
    collect_garbage,
    damaged_records,
    read_records,
    shared_lock,
    write_record,
)
from storage.store import Request, Store
from tasks.corpus.documents import dropped_table, write_dropped
from tests.support import letters_stage as stages


@pytest.fixture
def line(tmp_path):
    """A store with a line of three artifacts, each made of the one before, and one apart."""
    store = Store(tmp_path / "store")
    made, before = [], None
    for letter in "abc":
        request = Request(stages, stages.LettersConfig(letter=letter), stages.LettersInputs(before))
        made.append(store.ensure(request).artifact)
        before = made[-1].part("letters")
    apart = store.ensure(Request(stages, stages.LettersConfig(letter="z"), stages.LettersInputs())).artifact
    return store, made, apart


def test_upstream_is_all_that_an_artifact_is_made_of(line):
    store, made, apart = line
    catalog = Catalog(store)
    assert [row["key"] for row in catalog.upstream(made[2].key)] == [a.key for a in reversed(made)]
    assert [row["key"] for row in catalog.upstream(apart.key)] == [apart.key]


def test_artifacts_are_found_by_the_beginning_of_their_key(line):
    store, made, _ = line
    catalog = Catalog(store)
    assert catalog.find(made[0].key[:10])["path"] == f"letters/{made[0].key[:16]}"
    assert catalog.find(f"letters/{made[1].key[:10]}")["key"] == made[1].key
    with pytest.raises(OnwardError, match="4 artifacts"):
        catalog.find("letters/")
    with pytest.raises(OnwardError, match="no artifact"):
        catalog.find("xyz")


def test_files_rows_and_statistics_can_be_asked_for(line):
    catalog = Catalog(line[0])
    assert catalog.sql("select count(*) as n, sum(rows) as rows from files where part = 'letters'") == [
        {"n": 12, "rows": 24}
    ]
    assert catalog.sql("select sum(cast(stats->>'letters' as int)) as n from artifacts") == [{"n": 24}]
    assert catalog.fate(7) == []


def test_what_dropped_a_document_is_found(tmp_path):
    class Dropping:
        STAGE, VERSION, __file__ = "dropping", 1, stages.__file__

        @staticmethod
        def run(config, inputs, draft):
            write_dropped(
                draft.path / "dropped.parquet", dropped_table([7, None], "s", "dropping", "odd", 0.5, "x")
            )
            draft.part("dropped", "dropped.parquet")
            return {}

    store = Store(tmp_path)
    store.ensure(Request(Dropping, stages.LettersConfig(), stages.LettersInputs()))
    (row,) = Catalog(store).fate(7)
    assert (row["reason"], row["value"], row["detail"]) == ("odd", 0.5, "x")
    assert pq.read_table(row["filename"]).num_rows == 2


def test_collection_keeps_what_runs_reach_and_no_more(line):
    store, made, apart = line
    write_record(store, RunRecord("one", "one", {}, (("letters", made[1].key),)))
    would = collect_garbage(store, dry_run=True)
    assert set(would.artifacts) == {f"letters/{a.key[:16]}" for a in (made[2], apart)}
    assert len(list(store.artifacts())) == 4
    freed = collect_garbage(store, keep=[apart.key[:12]])
    assert freed.artifacts == (f"letters/{made[2].key[:16]}",)
    assert {a.key for a in store.artifacts()} == {made[0].key, made[1].key, apart.key}


def test_nothing_is_collected_under_a_run(line):
    store, _, _ = line
    with shared_lock(store), pytest.raises(OnwardError, match="a run is using"):
        collect_garbage(store)
    assert len(list(store.artifacts())) == 4


def test_half_made_artifacts_stay_unless_asked_for(line):
    store, made, _ = line
    write_record(store, RunRecord("one", "one", {}, tuple(("letters", a.key) for a in made)))
    work = store.work_of("letters", "f" * 64)
    work.mkdir()
    (work / "half").write_text("x" * 100)
    collect_garbage(store)
    assert work.exists()
    assert collect_garbage(store, work=True).bytes >= 100
    assert not work.exists()


def test_a_record_reads_back(tmp_path):
    store = Store(tmp_path)
    record = RunRecord("one", "name", {"a": [1]}, (("s", "k"),), ("id",), "completed", {"pid": 1})
    write_record(store, record)
    assert list(read_records(store)) == [record]
    (tmp_path / "runs/torn.json").write_text('{"run": ')
    assert list(read_records(store)) == [record]
    assert damaged_records(store) == [tmp_path / "runs" / "torn.json"]


def test_attempts_beside_each_other_lose_nothing_of_a_record(tmp_path):
    store = Store(tmp_path)
    write_record(store, RunRecord("one", "name", {}))

    def note(number: int) -> None:
        def with_it(record: RunRecord | None) -> RunRecord:
            assert record is not None
            return replace(record, artifacts=(*record.artifacts, ("s", str(number))))

        amend_record(store, "one", with_it)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(note, range(40)))
    (record,) = read_records(store)
    assert sorted(int(key) for _, key in record.artifacts) == list(range(40))
