"""Best-fit-decreasing over lengths alone: which piece goes into which training sequence.

The packing of Ding et al. 2024 (arXiv 2404.10830): the longest piece first, each into the fullest sequence
that still has room. Equal lengths are placed together: while pieces of length l are placed, the fullest
sequence with room r >= l takes floor(r / l) of them in a row (what is left of it stays the smallest room
that fits), and all sequences with the same room do the same. So the work is by distinct lengths and rooms,
not by pieces.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Place pieces of 1 … `capacity` tokens into sequences of `capacity`.

    `lengths` [n] integers. Returns `sequence` [n] int64 (each piece's sequence, numbered in order of
    opening), `order` [n] int64 (the pieces in placed order: longest first, equal ones as given), and the
    number of sequences. Ties among equally full sequences fall to the one that got its room first: the same
    lengths always give the same placing.
    """
    left = capacity - lengths
    # numpy sorts 16 bits by radix, wider ones by comparing
    order = np.argsort(left.astype(np.uint16) if capacity <= 0xFFFF else left, kind="stable")
    per_length = np.bincount(lengths, minlength=capacity + 1)
    rooms = _Rooms(capacity)
    placed = np.empty(len(lengths), dtype=np.int64)
    start = 0
    for length in np.nonzero(per_length)[0][::-1].tolist():
        end = start + int(per_length[length])
        while start < end:
            start += rooms.place(placed[start:end], length)
    sequence = np.empty(len(lengths), dtype=np.int64)
    sequence[order] = placed
    return sequence, order, rooms.opened


class _Rooms:
    """The open sequences by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.opened = 0
        self._by_room: dict[int, list[np.ndarray]] = {}
        self._rooms: list[int] = []  # sorted keys of _by_room

    def place(self, placed: np.ndarray, length: int) -> int:
        """Give the first of the pieces of one length their sequences; returns how many (at least 1)."""
        at = bisect_left(self._rooms, length)
        if at == len(self._rooms):
            room = self.capacity
            each = room // length
            needed = -(-len(placed) // each)
            open_ones = np.arange(self.opened, self.opened + needed)
            self.opened += needed
        else:
            room = self._rooms.pop(at)
            each = room // length
            found = self._by_room.pop(room)
            open_ones = found[0] if len(found) == 1 else np.concatenate(found)
            needed = min(len(open_ones), -(-len(placed) // each))
            self._keep(room, open_ones[needed:])
        count = min(len(placed), needed * each)
        used = open_ones[:needed]
        placed[:count] = used if each == 1 else np.repeat(used, each)[:count]
        in_last = count - (needed - 1) * each
        self._keep(room - each * length, used[:-1] if in_last < each else used)
        if in_last < each:
            self._keep(room - in_last * length, used[-1:])
        return count

    def _keep(self, room: int, sequences: np.ndarray) -> None:
        if room == 0 or not len(sequences):
            return
        if room not in self._by_room:
            self._by_room[room] = []
            insort(self._rooms, room)
        self._by_room[room].append(sequences)
