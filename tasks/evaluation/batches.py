"""Batches of tokens for scoring answers: shared contexts are computed once, and rows of similar length run together.

All answers to one question follow the same context. A row is that context once, then its answers one after another,
each at the positions that it would have alone. With a mask under which an answer sees only the context and itself, one
pass scores them all:

    context   the first answer (but its last token)   the second …
    0 … c−1   c … c+l−2                               c … c+m−2        positions

Contexts of several questions may begin alike: with the examples shown before each question of a subject. That beginning
goes through the model once, before all rows that follow it, and is left out of them. Such rows and their beginning are one
unit of work.

The scored tokens and their contexts are the same as without sharing (the harness's rule: the last `length` tokens of
context and answer, without the final one). Equal requests are scored once. This module computes no scores. The plan
must depend on the requests alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

Request = tuple[tuple[int, ...], tuple[int, ...]]
"""(context, answer) as tokens, neither empty. The model sees at most `length` tokens of them."""

WORTH_SHARING = 8
"""Tokens of context from which on sharing saves more time than its mask costs."""
WORTH_BEGINNING = 64
"""Tokens from which on a common beginning gets a pass of its own."""
_WORTH_SAVING = 256
"""Tokens that such a pass saves at least, over all that begin alike."""
_BEGINNINGS = 4
"""A unit has about so many times the tokens of its beginning, or all that follow it."""
_DEEPEST = 32
"""So often a range of contexts that begin alike is looked at for parts that have more in common."""


@dataclass
class ScoredRow:
    """One row of a batch: a context and the answers scored after it. The first `begun` tokens of the context have gone
    through the model before, and are not in the row."""

    context: tuple[int, ...]
    answers: list[tuple[int, ...]] = field(default_factory=list)
    begun: int = 0
    cost: int = 0

    def __post_init__(self) -> None:
        self.cost = len(self.context) - self.begun + sum(len(answer) - 1 for answer in self.answers)

    def add(self, answer: tuple[int, ...]) -> None:
        """Add one more answer after the same context."""
        self.answers.append(answer)
        self.cost += len(answer) - 1

    @property
    def branches(self) -> bool:
        """Whether more than one answer has tokens of its own in the row, so that a mask must separate them."""
        return sum(len(answer) > 1 for answer in self.answers) > 1

    @property
    def scored(self) -> int:
        """Number of tokens that are scored."""
        return sum(len(answer) for answer in self.answers)


@dataclass(frozen=True)
class Unit:
    """Batches that are computed one after the other, all of them after the same beginning (which may be empty)."""

    beginning: tuple[int, ...]
    batches: list[list[ScoredRow]]

    @property
    def cost(self) -> int:
        """Tokens that go through the model, without padding."""
        return len(self.beginning) + sum(row.cost for batch in self.batches for row in batch)


def cut(context: Sequence[int], answer: Sequence[int], length: int) -> Request:
    """The request as the model sees it: a context that is too long keeps its end (`HFLM._loglikelihood_tokens`)."""
    room = length + 1 - len(answer)
    return tuple(context[-room:]), tuple(answer)


def pieces(context: Sequence[int], answer: Sequence[int], length: int) -> list[Request]:
    """The request itself if its answer fits; else the answer in steps of half a window, each after all tokens before.

    The harness fails on an answer longer than the model's window. Here each of its tokens is scored once.
    """
    if len(answer) <= length:
        return [cut(context, answer, length)]
    step = max(1, length // 2)
    whole = [*context, *answer]
    return [
        cut(whole[: len(context) + start], answer[start : start + step], length)
        for start in range(0, len(answer), step)
    ]


def rows_of(requests: Sequence[Request], length: int, share: bool) -> list[ScoredRow]:
    """Rows that contain each distinct request once, longest first. With `share`, long enough contexts are stored once.

    A row with more than one answer has at most 2 · `length` tokens.
    """
    rows: list[ScoredRow] = []
    open_rows: dict[tuple[int, ...], ScoredRow] = {}
    for context, answer in dict.fromkeys(requests):
        row = open_rows.get(context)
        shared = share and len(context) >= WORTH_SHARING
        if row is None or not (shared or len(answer) == 1) or row.cost + len(answer) - 1 > 2 * length:
            row = ScoredRow(context)
            rows.append(row)
            open_rows[context] = row
        row.add(answer)
    return _longest_first(rows)


def units_of(rows: Sequence[ScoredRow], most_tokens: int, most_scored: int, begin: bool) -> list[Unit]:
    """All rows in units of work. With `begin`, rows that begin alike follow a beginning that is computed once a unit.

    The caps are those of `batches`.
    """
    if not begin:
        return [Unit((), [batch]) for batch in batches(rows, most_tokens, most_scored)]
    units: list[Unit] = []
    alone: list[ScoredRow] = []
    ordered = sorted(rows, key=lambda row: row.context)
    for first, last, begun in _alike([row.context for row in ordered]):
        if not begun:
            alone += ordered[first:last]
            continue
        beginning = ordered[first].context[:begun]
        after = [ScoredRow(row.context, row.answers, begun) for row in ordered[first:last]]
        units += _after(beginning, list(batches(_longest_first(after), most_tokens, most_scored)))
    units += [Unit((), [batch]) for batch in batches(_longest_first(alone), most_tokens, most_scored)]
    return sorted(units, key=lambda unit: (-unit.cost, unit.beginning, unit.batches[0][0].context))


def _after(beginning: tuple[int, ...], groups: list[list[ScoredRow]]) -> Iterator[Unit]:
    """Units of about equal work, each enough to be worth the beginning, which each computes."""
    work = [sum(row.cost for row in batch) for batch in groups]
    number = max(1, sum(work) // (_BEGINNINGS * len(beginning)))
    held: list[list[ScoredRow]] = []
    done = made = 0
    for batch, cost in zip(groups, work, strict=True):
        held.append(batch)
        done += cost
        if done * number >= (made + 1) * sum(work):
            yield Unit(beginning, held)
            held, made = [], made + 1


def _alike(contexts: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, int, int]]:
    """Ranges (first, last, tokens) of sorted contexts: those of a range begin with the same tokens, at least one short of
    each. Tokens is 0 where that is not worth a pass.

    A range is cut where its neighbours have least in common, as long as the parts save more than the whole.
    """
    common = np.array([_common(*pair) for pair in pairwise(contexts)], dtype=np.int64)
    edges = [0, *(np.flatnonzero(common < WORTH_BEGINNING) + 1).tolist(), len(contexts)]
    for first, last in pairwise(edges):
        yield from _best(common, first, last)[1] if last > first else []


def _best(common: np.ndarray, first: int, last: int, deep: int = 0) -> tuple[int, list[tuple[int, int, int]]]:
    """The tokens saved between two places, and the ranges that save them."""
    if last - first < 2:
        return 0, [(first, last, 0)]
    least = int(common[first : last - 1].min())
    whole = (last - first - 1) * least
    saved, ranges = 0, list[tuple[int, int, int]]()
    edges = [first, *(first + 1 + np.flatnonzero(common[first : last - 1] == least)).tolist(), last]
    for start, end in pairwise(edges) if deep < _DEEPEST else ():
        more, some = _best(common, start, end, deep + 1)
        saved += more
        ranges += some
    if whole >= max(saved, _WORTH_SAVING):
        return whole, [(first, last, least)]
    return saved, ranges or [(first, last, 0)]


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Number of tokens that both begin with, at least one short of each."""
    low, high = 0, min(len(one), len(other)) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _longest_first(rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    return sorted(rows, key=lambda row: (row.branches, -row.cost, row.context, row.answers))


def batches(rows: Sequence[ScoredRow], most_tokens: int, most_scored: int) -> Iterator[list[ScoredRow]]:
    """Groups of rows with at most `most_tokens` tokens (padding included) and `most_scored` scored tokens.

    A group has at least one row. Rows whose answers need a mask are in other batches than rows that need none.
    """
    batch: list[ScoredRow] = []
    scored = 0
    for row in rows:
        full = (len(batch) + 1) * max(row.cost, batch[0].cost if batch else 0) > most_tokens
        if batch and (full or scored + row.scored > most_scored or row.branches != batch[0].branches):
            yield batch
            batch, scored = [], 0
        batch.append(row)
        scored += row.scored
    if batch:
        yield batch
