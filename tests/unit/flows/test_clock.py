"""Ages where the clock was set back: nothing is taken for young until the clock is there again."""

from __future__ import annotations

import time

import pytest

from flows.machine.clock import younger


@pytest.mark.parametrize(
    ("ago", "young"),
    [(0, True), (29, True), (31, False), (-5, True), (-3600, False), (-1e9, False), (1e9, False)],
)
def test_what_lies_ahead_is_not_young_but_for_what_clocks_are_apart(ago: float, young: bool) -> None:
    assert younger(time.time() - ago, 30) is young
