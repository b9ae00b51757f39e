from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.packing.bestfit import best_fit


def one_at_a_time(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best fit decreasing as it is written in the textbook; ties to the sequence that got its room first."""
    opened: list[tuple[list[int], list[int]]] = []  # ([room, time], contents)
    for time, index in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fits = [one for one in opened if one[0][0] >= lengths[index]]
        if not fits:
            opened.append(([capacity - lengths[index], time], [index]))
            continue
        state, contents = min(fits, key=lambda one: one[0])
        state[:] = [state[0] - lengths[index], time]
        contents.append(index)
    return [contents for _, contents in opened]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), capacity=st.integers(1, 60))
def test_same_placing_as_one_piece_at_a_time(data: st.DataObject, capacity: int) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=70))
    sequence, order, count = best_fit(np.asarray(lengths, dtype=np.int64), capacity)
    placed: list[list[int]] = [[] for _ in range(count)]
    for index in order.tolist():
        placed[sequence[index]].append(index)
    assert placed == one_at_a_time(lengths, capacity)


def test_capacities_beyond_16_bits() -> None:
    sequence, order, count = best_fit(np.asarray([60_000, 100_000, 40_000, 1]), 100_000)
    assert (sequence.tolist(), order.tolist(), count) == ([1, 0, 1, 2], [1, 0, 2, 3], 3)
