"""Which tokens go through the model together when answers are scored: shared beginnings once, rows of like length together.

Answers to one question follow the same context. A row is that context once and its answers one after another, each at the
positions it would have alone; under a mask by which an answer sees the context and itself, all are scored in one pass:

    context   the first answer (but its last token)   the second …
    0 … c−1   c … c+l−2                               c … c+m−2        positions

What is scored, and after which tokens, is the same as without sharing (the harness's rule: the last `length` tokens of
context and answer but the last one); equal requests are scored once. Nothing here computes; it must stay true that the
plan follows from the requests alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Request = tuple[tuple[int, ...], tuple[int, ...]]
"""(context, answer) as tokens, neither empty; what the model is given of them has at most `length` tokens."""

WORTH_SHARING = 8
"""Tokens of context from which on sharing saves more than its mask costs."""


@dataclass
class ScoredRow:
    """One row of a batch: a context and the answers that are scored after it."""

    context: tuple[int, ...]
    answers: list[tuple[int, ...]] = field(default_factory=list)
    cost: int = 0

    def __post_init__(self) -> None:
        self.cost = len(self.context) + sum(len(answer) - 1 for answer in self.answers)

    def add(self, answer: tuple[int, ...]) -> None:
        """One more answer after the same context."""
        self.answers.append(answer)
        self.cost += len(answer) - 1

    @property
    def branches(self) -> bool:
        """Whether more than one answer has tokens of its own in the row, so that they must not see each other."""
        return sum(len(answer) > 1 for answer in self.answers) > 1

    @property
    def scored(self) -> int:
        """Tokens that are scored."""
        return sum(len(answer) for answer in self.answers)


def cut(context: Sequence[int], answer: Sequence[int], length: int) -> Request:
    """A request as the model is given it: of a context too long, the end (`HFLM._loglikelihood_tokens`)."""
    room = length + 1 - len(answer)
    return tuple(context[-room:]), tuple(answer)


def pieces(context: Sequence[int], answer: Sequence[int], length: int) -> list[Request]:
    """A request whose answer fits, alone; else the answer in steps of half a window, each after all that comes before.

    The harness stops on an answer that is longer than the model's window; so each of its tokens is scored once.
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
    """Rows that hold each different request once, longest first; with `share`, contexts of some length stand once.

    No row has more than 2 · `length` tokens where it holds more than one answer.
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
    return sorted(rows, key=lambda row: (row.branches, -row.cost, row.context, row.answers))


def batches(rows: Sequence[ScoredRow], most_tokens: int, most_scored: int) -> Iterator[list[ScoredRow]]:
    """Runs of rows, padding included at most `most_tokens` and at most `most_scored` scored ones (one row at least).

    Rows whose answers must not see each other stand apart from the others, which need no mask.
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
