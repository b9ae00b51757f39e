"""Run records that rotted: a run goes on, and nothing is collected that somebody may need."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from storage.atomic import make_writable
from storage.errors import OnwardError
from storage.runs import (
    RunRecord,
    amend_record,
    collect_garbage,
    damaged_records,
    read_records,
    write_record,
)
from storage.store import Request, Store
from tests.support import letters_stage as letters


def request_of(before=None, **config) -> Request:
    return Request(letters, letters.LettersConfig(**config), letters.LettersInputs(before))


@pytest.fixture
def store(tmp_path):
    """A store with an artifact, and the records of two runs, one of which needs it."""
    made = Store(tmp_path / "store")
    artifact = made.ensure(request_of()).artifact
    write_record(made, RunRecord("one-1", "one", {}, (("letters", artifact.key),), state="completed"))
    write_record(made, RunRecord("two-2", "two", {}, state="completed"))
    return made


def test_whatever_byte_is_flipped_a_record_is_read_as_written_or_not_at_all(store):
    path = store.root / "runs" / "one-1.json"
    whole, told = path.read_bytes(), next(iter(read_records(store)))
    for at in range(len(whole)):
        raw = bytearray(whole)
        raw[at] ^= 0x01
        path.write_bytes(raw)
        found = [record for record in read_records(store) if record.run == "one-1"]
        assert all(replace(one, facts={}) == replace(told, facts={}) for one in found), bytes(raw)
        assert len(list(read_records(store))) >= 1, "the other one is read"


def test_a_run_sets_its_own_damaged_record_aside_and_writes_it_anew(store):
    path = store.root / "runs" / "one-1.json"
    path.write_text('{"run": "one-1"')
    said = []
    amend_record(store, "two-2", lambda record: record, said.append)
    assert not said, "another run's record is no reason to stop"
    record = amend_record(store, "one-1", lambda before: before or RunRecord("one-1", "one", {}), said.append)
    assert record.run == "one-1" and "set aside as runs/.damaged-one-1-1.json" in said[0]
    assert [one.run for one in read_records(store)] == ["one-1", "two-2"]


def test_a_record_of_0_1_0_is_read(store):
    path = store.root / "runs" / "one-1.json"
    raw = json.loads(path.read_bytes())
    del raw["facts"]["record_sha256"]
    path.write_text(json.dumps(raw))
    assert [one.run for one in read_records(store)] == ["one-1", "two-2"]


def test_nothing_is_collected_behind_a_damaged_record_until_it_is_written_anew_or_forgotten(store):
    path = store.root / "runs" / "one-1.json"
    path.write_text("{")
    with pytest.raises(OnwardError, match="nothing was collected.*--forget one-1"):
        collect_garbage(store)
    began = amend_record(store, "one-1", lambda before: RunRecord("one-1", "one", {}))
    with pytest.raises(OnwardError, match="--forget one-1"):
        collect_garbage(store, dry_run=True)
    key = request_of().key
    amend_record(store, "one-1", lambda _: replace(began, artifacts=(("letters", key),), state="completed"))
    assert not damaged_records(store)
    assert collect_garbage(store).artifacts == ()
    assert collect_garbage(store, forget=["one-1"]).artifacts == (f"letters/{key[:16]}",)
    assert not list((store.root / "runs").glob(".damaged-*"))


def test_nothing_is_collected_behind_an_unreadable_manifest(store):
    artifact = next(store.artifacts())
    child = store.ensure(request_of(artifact.part("letters"), letter="b")).artifact
    write_record(store, RunRecord("one-1", "one", {}, (("letters", child.key),), state="completed"))
    make_writable(child.path)
    (child.path / "manifest.json").write_text("{")
    with pytest.raises(OnwardError, match="verify --store"):
        collect_garbage(store)
    assert artifact.path.exists()


def test_what_a_set_aside_artifact_was_made_of_is_kept_to_make_it_again(store):
    artifact = next(store.artifacts())
    child = store.ensure(request_of(artifact.part("letters"), letter="b")).artifact
    write_record(store, RunRecord("one-1", "one", {}, (("letters", child.key),), state="completed"))
    store.set_aside("letters", child.key)
    assert collect_garbage(store).artifacts == ()
    assert artifact.path.exists()
