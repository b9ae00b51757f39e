"""The same bytes by any number of worker processes."""

from __future__ import annotations

from pathlib import Path

from storage.draft import Draft
from storage.testing import draft_in
from storage.workers import Workers
from tasks.corpus import contamination
from tasks.corpus.contamination import CountConfig, CountInputs
from tests.support.corpus.quiz import QUESTIONS, quiz, two_slices
from tests.support.corpus.slices import bytes_in


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    entry, path = quiz(tmp_path, QUESTIONS)
    inputs = CountInputs(two_slices(tmp_path), entry, path)
    alone = draft_in(tmp_path)
    contamination.run(CountConfig(), inputs, alone)
    with Workers(2) as workers:
        several = Draft(tmp_path / "several", workers=workers)
        contamination.run(CountConfig(), inputs, several)
    assert bytes_in(alone.path) == bytes_in(several.path)
