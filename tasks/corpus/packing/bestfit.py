"""Best-fit-decreasing over lengths alone: assign pieces to training sequences.

This is the packing of Ding et al. 2024 (arXiv 2404.10830): longest piece first, each into the fullest sequence that
still has room. Pieces of equal length are placed together. For pieces of length l, the fullest sequence with room
r >= l takes floor(r / l) of them in a row: the room that remains is still the smallest that fits. All sequences with
the same room do the same. So the work grows with the number of distinct lengths and rooms, not with the number of
pieces.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Place pieces of 1 … `capacity` tokens into sequences of `capacity` tokens.

    `lengths`: integers [n]. Returns `sequence` ([n] int64: each piece's sequence, numbered in the order in which
    sequences were opened), `order` ([n] int64: the pieces in the order of placement; longest first, equal lengths as
    given) and the number of sequences. Among equally full sequences, the one that reached this room first is chosen.
    So the same lengths always give the same placement.
    """
    left = capacity - lengths
    # numpy uses radix sort for 16 bits, comparison sort for wider integers
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
    """The open sequences, indexed by their remaining room."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.opened = 0
        self._by_room: dict[int, list[np.ndarray]] = {}
        self._rooms: list[int] = []  # sorted keys of _by_room

    def place(self, placed: np.ndarray, length: int) -> int:
        """Assign sequences to the first of the pieces of one length. Returns how many were assigned (at least 1)."""
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
