"""Damage: found before anything is made of it, set aside with what may have been made of it, and healed by asking again."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from storage.artifact import Artifact
from storage.atomic import make_writable
from storage.digests import Digests
from storage.errors import DamagedArtifact, DamagedInput, StageFailed
from storage.manifest import SEAL, VERIFIED, read_manifest
from storage.store import Making, Request, Store
from tests.support import letters_stage as letters


def request_of(before=None, **config) -> Request:
    return Request(letters, letters.LettersConfig(**config), letters.LettersInputs(before))


def flip(path: Path, at: int | None = None) -> None:
    """Change one byte, and keep the size and the time of the last write."""
    facts = path.stat()
    make_writable(path.parent)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 if at is None else at] ^= 0x10
    path.write_bytes(raw)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def as_of_0_1_0(artifact: Artifact) -> None:
    """Without what only later manifests have: the digest of themselves, and that inputs were verified."""
    make_writable(artifact.path)
    path = artifact.path / "manifest.json"
    raw = json.loads(path.read_bytes())
    del raw["provenance"][SEAL], raw["provenance"][VERIFIED]
    path.unlink()  # as after an upgrade, nobody has seen it yet
    path.write_text(json.dumps(raw, indent=1))


@pytest.fixture
def line(tmp_path):
    """A store with a line of three artifacts, each made of the one before."""
    store, made, before = Store(tmp_path / "store"), [], None
    for letter in "abc":
        made.append(store.ensure(request_of(before, letter=letter)).artifact)
        before = made[-1].part("letters")
    return store, made


def test_nothing_is_made_of_damaged_bytes_and_asking_again_heals(line):
    store, (first, _, _) = line
    part = first.part("letters")
    flip(part.paths[2])
    with pytest.raises(DamagedInput, match="other bytes than were committed") as caught:
        store.ensure(request_of(part, letter="x"))
    assert caught.value.artifacts == (("letters", first.path.name),)
    assert not first.path.exists() and store.aside("letters", first.key)
    assert not store.work_of("letters", request_of(part, letter="x").key).exists()
    assert store.ensure(request_of(letter="a")).state == "built"
    made = store.ensure(request_of(part, letter="x"))
    assert made.artifact.manifest.inputs_verified


def test_a_second_reader_pays_nothing_also_in_another_process(line):
    store, (_, _, third) = line
    assert store.digests.hashed_bytes == 0, "what was just committed is known"
    again = Store(store.root)
    again.ensure(request_of(third.part("letters"), letter="x"))
    assert again.digests.hashed_bytes == 0
    (store.root / ".digests").unlink()
    without = Store(store.root)
    without.ensure(request_of(third.part("letters"), letter="y"))
    assert without.digests.hashed_bytes == third.manifest.bytes - len('{"letter": "c"}')


def test_damage_that_makes_a_stage_fail_is_found_whatever_is_remembered(line, monkeypatch):
    """Bytes that rot on the disk keep all times; then the crash is what tells."""
    store, (first, _, _) = line
    part = first.part("letters")
    flip(part.paths[2])
    store.digests.remember([(part.paths[2], read_manifest(first.path).parts["letters"].files[2].sha256)])

    def crash(*arguments):
        raise ValueError("not what the reader expects")

    monkeypatch.setattr(letters, "run", crash)
    with pytest.raises(DamagedInput) as caught:
        store.ensure(request_of(part, letter="x"))
    assert isinstance(caught.value.__cause__, ValueError)
    assert not first.path.exists()


def test_a_stage_that_fails_by_itself_fails_as_it_did(line, monkeypatch):
    store, (first, _, _) = line

    def crash(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(letters, "run", crash)
    with pytest.raises(ValueError, match="a bug"):
        store.ensure(request_of(first.part("letters"), letter="x"))
    assert first.path.exists()


def test_damage_while_a_stage_works_spoils_what_it_made(line, monkeypatch):
    store, (first, _, _) = line
    original = letters.run

    def disturbed(config, inputs, draft):
        stats = original(config, inputs, draft)
        flip(first.part("letters").paths[0])
        return stats

    monkeypatch.setattr(letters, "run", disturbed)
    request = request_of(first.part("letters"), letter="x")
    with pytest.raises(DamagedInput):
        store.ensure(request)
    assert store.lookup("letters", request.key) is None
    assert not store.work_of("letters", request.key).exists()


def test_work_is_begun_anew_where_an_input_was_made_again_since(line, monkeypatch):
    """The half that is done may have been made of bytes that are gone by now."""
    store, (first, *_) = line
    original, seen = letters.run, []

    def killed(config, inputs, draft):
        seen.append((draft.path / "half").exists())
        (draft.path / "half").write_text("done")
        if len(seen) < 4:
            raise KeyboardInterrupt
        return original(config, inputs, draft)

    monkeypatch.setattr(letters, "run", killed)
    said = []

    def again():
        with pytest.raises(KeyboardInterrupt):
            store.ensure(request_of(first.part("letters"), letter="x"), Making(warn=said.append))

    again()
    again()
    assert seen == [False, True] and not said, "the same inputs: it goes on"
    make_writable(store.root)
    (store.root).rename(store.root.with_name("moved"))
    store = Store(store.root.with_name("moved"))
    first = store.read(store.path_of("letters", first.key))
    again()
    assert seen == [False, True, True], "a store that was moved keeps its work"
    flip(first.part("letters").paths[0])
    store.damage.condemn(first.path)
    monkeypatch.setattr(letters, "run", original)
    first = store.ensure(request_of(letter="a")).artifact
    monkeypatch.setattr(letters, "run", killed)
    store.ensure(request_of(first.part("letters"), letter="x"), Making(warn=said.append))
    assert seen[-1] is False
    assert said == [f"begun anew: letters/{first.path.name} was made again since this work was begun"]


def test_what_0_1_0_made_of_it_is_distrusted_and_what_was_verified_is_not(line):
    store, (first, second, third) = line
    as_of_0_1_0(second)
    beside = store.ensure(request_of(first.part("letters"), letter="y")).artifact
    flip(first.part("letters").paths[1])
    told = []
    assert Store(store.root).ensure(request_of(letter="a"), Making(warn=told.append)).state == "built"
    assert not second.path.exists() and store.aside("letters", second.key)
    assert beside.path.exists()
    assert third.path.exists(), "made again with the same bytes, its input is as it was"
    assert "set aside as letters/.damaged-" in told[0]
    assert store.ensure(request_of(first.part("letters"), letter="b")).state == "built"
    assert store.ensure(request_of(second.part("letters"), letter="c")).state == "cached"


def test_children_are_set_aside_before_what_they_were_made_of(line, monkeypatch):
    """A process that is killed in between leaves the damage to be found again."""
    store, (first, second, _) = line
    as_of_0_1_0(second)
    flip(first.part("letters").paths[1])
    seen = []
    monkeypatch.setattr("storage.damage.set_aside", lambda path: seen.append(path) or path)
    store.damage.set_aside_with_children(first.path)
    assert seen == [second.path, first.path]


def test_what_0_1_0_made_before_its_input_was_made_again_is_made_again(line):
    """`verify` of 0.1.0 set the input aside alone: its children stayed, whatever they had been made of."""
    store, (first, second, _) = line
    as_of_0_1_0(second)
    store.set_aside("letters", first.key)
    store.ensure(request_of(letter="a"))
    fresh = Store(store.root)
    with pytest.raises(DamagedArtifact, match="which was damaged, was made again"):
        fresh.look("letters", second.key)
    assert fresh.ensure(request_of(first.part("letters"), letter="b")).state == "built"
    assert fresh.ensure(request_of(second.part("letters"), letter="c")).state == "cached"


def test_a_clock_that_was_set_back_hides_no_child_of_0_1_0(line, monkeypatch):
    """The input is made again at a time before all that is there; its child may still be of the damaged bytes."""
    store, (first, second, _) = line
    as_of_0_1_0(second)
    store.set_aside("letters", first.key)
    monkeypatch.setattr("time.time", lambda: 1e9)
    store.ensure(request_of(letter="a"))
    monkeypatch.undo()
    fresh = Store(store.root)
    with pytest.raises(DamagedArtifact, match="which was damaged, was made again"):
        fresh.look("letters", second.key)
    assert fresh.ensure(request_of(first.part("letters"), letter="b")).state == "built"
    assert fresh.ensure(request_of(first.part("letters"), letter="b")).state == "cached"


def test_nothing_ends_before_it_begins_where_the_clock_is_set_back_meanwhile(line, monkeypatch):
    store, _ = line
    original = letters.run

    def set_back(config, inputs, draft):
        monkeypatch.setattr("time.time", lambda: 1e9)
        return original(config, inputs, draft)

    monkeypatch.setattr(letters, "run", set_back)
    made = store.ensure(request_of(letter="late")).artifact.manifest.provenance
    assert made["started"] == made["ended"] > "2020" and 0 <= made["seconds"] < 600


@pytest.mark.parametrize("written", [-86400 * 400, 0, 3600, 86400 * 400])
def test_a_digest_is_not_believed_by_the_time_of_writing_which_any_program_can_set(tmp_path, written):
    path, moment = tmp_path / "file", time.time_ns() + written * 10**9
    digests = Digests(tmp_path / ".digests")
    path.write_bytes(b"good" * 1000)
    os.utime(path, ns=(moment, moment))
    (good,) = digests.of([path])
    read = digests.hashed_bytes
    assert digests.of([path]) == [good] and digests.hashed_bytes == read, "remembered, whatever its time"
    path.write_bytes(b"evil" * 1000)
    os.utime(path, ns=(moment, moment))
    for one in (digests, Digests(tmp_path / ".digests")):
        assert one.suspect(path.stat(), good)
        assert one.of([path]) != [good]


def test_an_input_that_was_made_again_with_other_bytes_is_not_taken_for_the_old_one(line):
    store, (first, _, _) = line
    part = replace(first.part("letters"), digest="0" * 64)
    with pytest.raises(StageFailed, match="has other bytes than before"):
        store.ensure(request_of(part, letter="x"))
    assert first.path.exists()


def test_a_cached_artifact_that_was_changed_is_not_served(line):
    store, (first, _, _) = line
    flip(first.part("letters").paths[2])
    assert store.lookup("letters", first.key) is not None, "sizes alone do not tell"
    with pytest.raises(DamagedArtifact, match="other bytes"):
        store.look("letters", first.key)
    assert store.ensure(request_of(letter="a")).state == "built"


def test_what_a_run_hands_out_is_read_even_if_it_was_never_seen_before(line):
    store, (first, _, _) = line
    flip(first.part("letters").paths[2])
    (store.root / ".digests").unlink()
    fresh = Store(store.root)
    assert fresh.look("letters", first.key) is not None
    with pytest.raises(DamagedArtifact, match="other bytes"):
        fresh.look("letters", first.key, fully=True)


def test_a_change_of_permissions_is_no_damage(line):
    store, (first, _, _) = line
    make_writable(first.path)
    assert Store(store.root).ensure(request_of(letter="a"), fully=True).state == "cached"


@pytest.mark.parametrize("of_0_1_0", [False, True])
def test_every_byte_of_a_manifest_that_counts_is_covered(tmp_path, of_0_1_0):
    """Whatever byte is flipped, the manifest is refused, or says the same of everything."""
    store = Store(tmp_path / "store")
    first = store.ensure(request_of()).artifact
    artifact = store.ensure(request_of(first.part("letters"), letter="b", shards=1)).artifact
    if of_0_1_0:
        as_of_0_1_0(artifact)
    path = artifact.path / "manifest.json"
    make_writable(artifact.path)
    whole, served = path.read_bytes(), []
    told = Store(store.root).read(artifact.path).manifest  # its first sight
    for at in range(0, len(whole), 3):
        raw = bytearray(whole)
        raw[at] ^= 0x01
        with path.open("r+b") as file:
            file.write(raw)
        try:
            found = Store(store.root).read(artifact.path).manifest
        except DamagedArtifact:
            continue
        served.append(at)
        assert replace(found, provenance={}) == replace(told, provenance={})
    assert len(served) < (8 if not of_0_1_0 else 1), "but for the name of the digest itself"


def test_a_flipped_byte_in_the_digests_never_makes_bad_bytes_good(line):
    store, (first, _, _) = line
    path = store.root / ".digests"
    victim = first.part("letters").paths[2]
    flip(victim)
    whole = path.read_bytes()
    for at in range(0, len(whole), 5):
        raw = bytearray(whole)
        raw[at] ^= 0x01
        path.write_bytes(raw)
        assert Store(store.root).digests.of([victim]) != [first.manifest.parts["letters"].files[2].sha256]
        path.write_bytes(whole)


def test_the_digests_are_bounded_and_torn_lines_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.digests.MOST_BYTES", 4000)
    files = []
    for number in range(60):
        files.append(tmp_path / f"{number}")
        files[-1].write_text(str(number))
    digests = Digests(tmp_path / ".digests")
    for path in files:
        digests.of([path])
        with (tmp_path / ".digests").open("ab") as file:
            file.write(b"torn")
    other = Digests(tmp_path / ".digests")
    assert (tmp_path / ".digests").stat().st_size < 8000
    assert other.of([files[-1]]) == digests.of([files[-1]])
    assert other.hashed_bytes == 0


def test_a_half_made_shard_that_rotted_is_made_again(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    whole = Store(tmp_path / "calm").ensure(request_of()).artifact.manifest
    monkeypatch.setattr(
        "storage.draft.Draft.finish", lambda draft: (_ for _ in ()).throw(StageFailed("stopped"))
    )
    for harmed in ("letters.txt", ".shard.json"):
        with pytest.raises(StageFailed):
            store.ensure(request_of())
        flip(store.work_of("letters", whole.key) / "letters" / "00002" / harmed, at=1)
    monkeypatch.undo()
    assert store.ensure(request_of()).artifact.manifest.parts == whole.parts
