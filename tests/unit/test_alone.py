"""Which failures of the full tier are asked once more, alone."""

from __future__ import annotations

import pytest

from tests.support import ROOT
from tests.support.alone import MOST, NEVER_AGAIN, may_be_asked_again

UNSTEADY = "tests/system/test_services.py::test_{}"


@pytest.mark.parametrize(
    ("failed", "again"),
    [
        ([], False),
        ([UNSTEADY.format(1)], True),
        ([UNSTEADY.format(number) for number in range(MOST)], True),
        ([UNSTEADY.format(number) for number in range(MOST + 1)], False),
        ([UNSTEADY.format(1), "tests/system/test_kill.py::test_killed[early]"], False),
        (["tests/components/training/test_kill.py::test_killed"], False),
        (["tests/components/storage/test_workers.py::test_a_worker_that_dies_is_told"], True),
        (["tests/system/test_run.py::test_a_budget_added_later_gives_the_same_bits"], False),
        (["tests/system/training/test_sharding.py::test_the_bits_are_those_of_two_undisturbed[8bit]"], False),
    ],
)
def test_few_failures_are_asked_again_and_claims_of_equal_bytes_never(failed, again):
    assert may_be_asked_again(failed) is again


def test_the_files_that_are_never_asked_again_exist():
    assert all((ROOT / name).exists() for name in NEVER_AGAIN)
