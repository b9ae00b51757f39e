"""The store: found and verified, or made once; damaged bytes are set aside, never served, never deleted."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from storage.errors import DamagedArtifact, OnwardError, StageFailed
from storage.lock import Lock
from storage.runs import collect_garbage
from storage.store import Making, Request, Store
from tests.support import letters_stage as stages


def request_of(**config) -> Request:
    return Request(stages, stages.LettersConfig(**config), stages.LettersInputs())


def test_made_once_then_found(tmp_path):
    store = Store(tmp_path / "store")
    first = store.ensure(request_of())
    again = store.ensure(request_of(speed=9))
    assert (first.state, again.state) == ("built", "cached")
    assert again.artifact.key == first.artifact.key
    assert first.artifact.stats == {"letters": 6}
    assert [p.read_text() for p in again.artifact.part("letters").paths] == ["a", "aa", "aaa"]


def test_what_was_not_declared_is_not_in_the_artifact(tmp_path):
    artifact = Store(tmp_path).ensure(request_of()).artifact
    names = {str(path.relative_to(artifact.path)) for path in artifact.path.rglob("*") if path.is_file()}
    assert "scratch.tmp" not in names
    assert "clock.txt" in names
    assert "clock.txt" not in {
        entry.path for part in artifact.manifest.parts.values() for entry in part.files
    }


def test_an_artifact_is_read_only_and_names_no_absolute_path(tmp_path):
    artifact = Store(tmp_path).ensure(request_of()).artifact
    for path in (artifact.path, *artifact.path.rglob("*")):
        assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH), path
    assert str(tmp_path) not in (artifact.path / "manifest.json").read_text()


def test_a_moved_store_still_serves(tmp_path):
    made = Store(tmp_path / "here").ensure(request_of()).artifact
    (tmp_path / "here").rename(tmp_path / "there")
    found = Store(tmp_path / "there").ensure(request_of())
    assert found.state == "cached"
    assert found.artifact.key == made.key


@pytest.mark.parametrize("harm", ["truncate", "remove", "manifest", "no manifest"])
def test_a_damaged_artifact_is_set_aside_reported_and_made_again(tmp_path, harm):
    store = Store(tmp_path)
    artifact = store.ensure(request_of()).artifact
    victim = artifact.part("letters").paths[2]
    os.chmod(artifact.path, 0o755)
    os.chmod(victim.parent, 0o755)
    if harm == "truncate":
        os.chmod(victim, 0o644)
        victim.write_text("a")
    elif harm == "remove":
        victim.unlink()
    elif harm == "manifest":
        (artifact.path / "manifest.json").unlink()
        (artifact.path / "manifest.json").write_text('{"format": 1, "torn')
    else:
        (artifact.path / "manifest.json").unlink()
    with pytest.raises(DamagedArtifact):
        store.lookup("letters", artifact.key)
    told = []
    again = store.ensure(request_of(), Making(warn=told.append))
    assert again.state == "built"
    assert "set aside" in told[0]
    assert [path.name for path in (tmp_path / "letters").glob(".damaged-*")] == [
        f".damaged-{artifact.key[:16]}-1"
    ]
    assert store.verify(again.artifact) == []


def test_verify_reads_every_byte(tmp_path):
    store = Store(tmp_path)
    artifact = store.ensure(request_of()).artifact
    victim = artifact.part("letters").paths[1]
    os.chmod(victim, 0o644)
    victim.write_text("ab")  # the same size
    assert store.lookup("letters", artifact.key) is not None
    assert store.verify(artifact) == ["letters/00001/letters.txt has other bytes than were committed"]


def test_force_compares_with_what_was_there(tmp_path, monkeypatch):
    store = Store(tmp_path)
    first = store.ensure(request_of()).artifact
    assert store.ensure(request_of(), force=True).state == "reproduced"
    monkeypatch.setattr(stages, "make_letters", lambda job, directory: _other(job, directory))
    told = []
    other = store.ensure(request_of(), Making(warn=told.append), force=True)
    assert other.state == "built"
    assert other.artifact.part("letters").digest != first.manifest.parts["letters"].digest
    assert "other bytes" in told[0]


def test_what_is_made_again_with_a_part_more_is_the_same_and_stays(tmp_path, monkeypatch):
    """As of a release that makes more of the same key; one that makes less has other bytes."""
    store, plain = Store(tmp_path), stages.run

    def run(config, inputs, draft):
        stats = plain(config, inputs, draft)
        (draft.path / "more.json").write_text("{}")
        draft.part("more", "more.json")
        return stats

    first = store.ensure(request_of()).artifact
    letters, told = first.part("letters").digest, []
    monkeypatch.setattr(stages, "run", run)
    again = store.ensure(request_of(), Making(warn=told.append), force=True)
    assert (again.state, again.differs, told) == ("reproduced", False, [])
    assert again.artifact.part("letters").digest == letters and again.artifact.has("more")
    found = store.lookup("letters", first.key)
    assert found is not None and found.has("more") and store.verify(found) == []
    assert not store.aside("letters", first.key)
    monkeypatch.setattr(stages, "run", plain)
    assert store.ensure(request_of(), force=True).differs


def _other(job, directory):
    (directory / "letters.txt").write_text("z")
    return {"rows": 1}


def test_a_failed_stage_leaves_no_artifact_and_goes_on_from_its_shards(tmp_path, monkeypatch):
    store = Store(tmp_path)
    made = []

    def failing(job, directory):
        if job[1] == 2 and not (tmp_path / "mended").exists():
            raise OnwardError("bad letter")
        made.append(job[1])
        return original(job, directory)

    original = stages.make_letters
    monkeypatch.setattr(stages, "make_letters", failing)
    with pytest.raises(OnwardError, match="bad letter"):
        store.ensure(request_of())
    assert store.lookup("letters", request_of().key) is None
    (tmp_path / "mended").touch()
    assert store.ensure(request_of()).state == "built"
    assert sorted(made) == [1, 2, 3], "the shard that was committed is not made again"


def test_a_full_disk_fails_with_what_is_needed_and_keeps_what_is_there(tmp_path, monkeypatch):
    store = Store(tmp_path)
    kept = store.ensure(request_of(letter="k")).artifact

    def full(job, directory):
        raise OSError(errno.ENOSPC, "No space left on device")

    original = stages.make_letters
    monkeypatch.setattr(stages, "make_letters", full)
    with pytest.raises(StageFailed, match="no space left"):
        store.ensure(request_of())
    assert store.verify(kept) == []
    monkeypatch.setattr(stages, "make_letters", original)
    assert store.ensure(request_of()).state == "built"


def test_a_part_outside_the_work_directory_is_refused(tmp_path):
    class Escaping:
        STAGE, VERSION, __file__ = "escaping", 1, stages.__file__

        @staticmethod
        def run(config, inputs, draft):
            (tmp_path / "outside.txt").write_text("x")
            draft.part("out", "../../outside.txt")
            return {}

    with pytest.raises(OnwardError, match="outside the work directory"):
        Store(tmp_path / "store").ensure(Request(Escaping, stages.LettersConfig(), stages.LettersInputs()))


def test_an_artifact_left_writable_by_a_kill_is_made_read_only(tmp_path):
    store = Store(tmp_path)
    artifact = store.ensure(request_of()).artifact
    os.chmod(artifact.path, 0o755)
    assert store.ensure(request_of()).state == "cached"
    assert not artifact.path.stat().st_mode & stat.S_IWUSR


def test_what_a_killed_collection_left_behind_does_not_stop_the_next(tmp_path):
    """It was killed between moving and removing; the same artifact was made and is collected again."""
    store = Store(tmp_path)
    artifact = store.ensure(request_of()).artifact
    left = store.root / ".trash" / f"{artifact.stage}-{artifact.path.name}"
    left.mkdir(parents=True)
    (left / "manifest.json").write_text("{}")
    left.chmod(0o555)
    collected = collect_garbage(store)
    assert collected.artifacts == (f"{artifact.stage}/{artifact.path.name}",)
    assert not artifact.path.exists() and not (store.root / ".trash").exists()


@pytest.mark.parametrize("held", [True, False])
def test_half_made_work_that_was_begun_again_is_looked_at_under_its_own_lock(tmp_path, held):
    store = Store(tmp_path)
    work = store.work_of("letters", "a" * 64)
    beside = work.with_name(f"{work.name}.force.gone-0badcafe")
    for path in (work, beside):
        path.mkdir(parents=True)
    lock = Lock(work.with_name(f"{work.name}.lock"))
    assert not held or lock.try_acquire()
    before = {path.name for path in work.parent.iterdir()} | {f"{work.name}.lock"}
    found = collect_garbage(store, work=True, dry_run=True)
    lock.release()
    assert found.work == (() if held else (work.name, beside.name))
    assert {path.name for path in work.parent.iterdir()} | {f"{work.name}.lock"} == before, (
        "no lock of another name"
    )
