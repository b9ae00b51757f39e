"""The files that are to be begun first are there."""

from __future__ import annotations

from tests.support import ROOT
from tests.support.order import LONGEST


def test_each_file_that_is_begun_first_exists_and_is_named_once():
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []
    assert len(set(LONGEST)) == len(LONGEST)
