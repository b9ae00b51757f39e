"""The corpus benchmark measures what it says: every step with all that it has to load."""

from __future__ import annotations

import pytest

from benchmarks import corpus


def test_a_peers_step_on_the_whole_way_is_for_what_our_stage_was_given() -> None:
    peer = {"dedup": 10.0, "filter": 20.0, "tokens": 30.0, "tokenize": 1000.0}
    assert corpus.whole_way(peer, {"dedup": 100, "filter": 90, "tokenize": 50}, 100) == 10 + 18 + 15


def test_what_a_peer_costs_whatever_it_is_given_is_counted_once() -> None:
    def seconds(size: int) -> float:
        return 7.0 + 0.5 * size

    assert corpus.at_size({10: seconds(10), 20: seconds(20)}, 100) == pytest.approx(seconds(100))
    assert corpus.at_size({100: seconds(100)}, 100) == seconds(100)
