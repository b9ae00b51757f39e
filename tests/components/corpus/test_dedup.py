"""The same bytes by any number of worker processes."""

from __future__ import annotations

from pathlib import Path

from storage.draft import Draft
from storage.testing import draft_in
from storage.workers import Workers
from tasks.corpus import dedup
from tasks.corpus.dedup import DedupConfig, DedupInputs
from tests.support.corpus.duplicates import family_texts
from tests.support.corpus.slices import bytes_in, slice_of


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    given_ = slice_of(tmp_path / "in", family_texts(7, 20), shards=4)
    alone = draft_in(tmp_path)
    dedup.run(DedupConfig(), DedupInputs(given_), alone)
    with Workers(2) as workers:
        several = Draft(tmp_path / "several", workers=workers)
        dedup.run(DedupConfig(), DedupInputs(given_), several)
    assert bytes_in(alone.path) == bytes_in(several.path)
