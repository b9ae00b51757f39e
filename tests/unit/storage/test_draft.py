"""Shards: committed one by one, by any number of workers; a worker leaves when its parent is killed."""

from __future__ import annotations

import pytest

from storage.draft import Draft
from storage.errors import OnwardError
from tests.support import letters_stage as stages


def test_shards_that_are_committed_are_not_made_again(tmp_path):
    jobs = {"a": ("x", 1), "b": ("y", 2)}
    Draft(tmp_path).shards("letters", jobs, stages.make_letters)
    before = (tmp_path / "letters/a/letters.txt").stat().st_mtime_ns
    stats = Draft(tmp_path).shards("letters", {**jobs, "c": ("z", 3)}, stages.make_letters)
    assert stats == {"a": {"rows": 1}, "b": {"rows": 2}, "c": {"rows": 3}}
    assert (tmp_path / "letters/a/letters.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("harm", ["truncate", "no record", "torn record"])
def test_a_shard_that_is_not_whole_is_made_again(tmp_path, harm):
    Draft(tmp_path).shards("letters", {"a": ("x", 5)}, stages.make_letters)
    record = tmp_path / "letters/a/.shard.json"
    if harm == "truncate":
        (tmp_path / "letters/a/letters.txt").write_text("x")
    elif harm == "no record":
        record.unlink()
    else:
        record.write_text(record.read_text()[:-5])
    Draft(tmp_path).shards("letters", {"a": ("x", 5)}, stages.make_letters)
    assert (tmp_path / "letters/a/letters.txt").read_text() == "xxxxx"


def test_scratch_survives_a_crash_and_is_in_no_part(tmp_path):
    draft = Draft(tmp_path)
    made = draft.scratch("measure", {"a": ("x", 2)}, stages.make_letters)
    assert (made["a"] / "letters.txt").read_text() == "xx"
    again = Draft(tmp_path)
    assert again.scratch("measure", {"a": ("x", 2)}, stages.make_letters) == made
    again.shards("letters", {"a": ("y", 1)}, stages.make_letters)
    parts, _ = again.finish()
    assert [entry.path for entry in parts["letters"].files] == ["letters/a/letters.txt"]


@pytest.mark.parametrize("name", ["..", "A", "a/b", "", ".hidden", "a b"])
def test_a_shard_cannot_leave_its_part(tmp_path, name):
    with pytest.raises(OnwardError, match="cannot name a shard"):
        Draft(tmp_path).shards("letters", {name: ("x", 1)}, stages.make_letters)


def test_progress_counts_shards(tmp_path):
    seen = []
    draft = Draft(tmp_path, progress=lambda done, total, unit: seen.append((done, total, unit)))
    draft.shards("letters", {"a": ("x", 1), "b": ("x", 1)}, stages.make_letters)
    assert seen == [(done, 2, "shards of letters") for done in range(3)]
