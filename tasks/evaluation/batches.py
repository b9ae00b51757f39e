"""Batches of tokens for scoring answers: shared contexts are computed once, and rows of similar length run together.

All answers to one question follow the same context. A row is that context once, then its answers one after another,
each at the positions that it would have alone. With a mask under which an answer sees only the context and itself, one
pass scores them all:

    context   the first answer (but its last token)   the second …
    0 … c−1   c … c+l−2                               c … c+m−2        positions

The scored tokens and their contexts are the same as without sharing (the harness's rule: the last `length` tokens of
context and answer, without the final one). Equal requests are scored once. This module computes no scores. The plan
must depend on the requests alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Request = tuple[tuple[int, ...], tuple[int, ...]]
"""(context, answer) as tokens, neither empty. The model sees at most `length` tokens of them."""

WORTH_SHARING = 8
"""Tokens of context from which on sharing saves more time than its mask costs."""


@dataclass
class ScoredRow:
    """One row of a batch: a context and the answers scored after it."""

    context: tuple[int, ...]
    answers: list[tuple[int, ...]] = field(default_factory=list)
    cost: int = 0

    def __post_init__(self) -> None:
        self.cost = len(self.context) + sum(len(answer) - 1 for answer in self.answers)

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
