"""What goes through the model together: each request once, whole, and within the caps, whatever is asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.batches import batches, cut, pieces, rows_of

LENGTH = 12
tokens = st.integers(0, 3)
contexts = st.one_of(
    st.lists(tokens, min_size=1, max_size=20), st.sampled_from([[1] * 9, [2] * 11, [1, 2] * 6])
)
answers = st.lists(tokens, min_size=1, max_size=LENGTH)
asked = st.lists(st.tuples(contexts, answers), max_size=40)


@given(asked, st.booleans())
def test_every_request_stands_in_one_row_once(pairs: list[tuple[list[int], list[int]]], share: bool) -> None:
    requests = [cut(context, answer, LENGTH) for context, answer in pairs]
    rows = rows_of(requests, LENGTH, share)
    held = [(row.context, answer) for row in rows for answer in row.answers]
    assert sorted(held) == sorted(set(requests))
    for row in rows:
        assert row.cost == len(row.context) + sum(len(answer) - 1 for answer in row.answers)
        assert row.cost <= LENGTH or (len(row.answers) > 1 and row.cost <= 2 * LENGTH)
        assert share or not row.branches


@given(asked)
def test_order_of_requests_does_not_matter(pairs: list[tuple[list[int], list[int]]]) -> None:
    requests = [cut([*context, *range(8)], answer, 10**6) for context, answer in pairs]
    forward, backward = (rows_of(some, 10**6, True) for some in (requests, requests[::-1]))
    assert sum(row.cost for row in forward) == sum(row.cost for row in backward)


@given(asked, st.booleans(), st.integers(1, 100), st.integers(1, 40))
def test_batches_keep_to_their_caps(
    pairs: list[tuple[list[int], list[int]]], share: bool, most_tokens: int, most_scored: int
) -> None:
    rows = rows_of([cut(context, answer, LENGTH) for context, answer in pairs], LENGTH, share)
    made = list(batches(rows, most_tokens, most_scored))
    assert [row for batch in made for row in batch] == rows
    for batch in made:
        assert len({row.branches for row in batch}) == 1
        if len(batch) > 1:
            assert len(batch) * max(row.cost for row in batch) <= most_tokens
            assert sum(row.scored for row in batch) <= most_scored


@given(contexts, st.lists(tokens, min_size=1, max_size=60))
def test_a_request_is_cut_as_the_harness_cuts_it(context: list[int], answer: list[int]) -> None:
    found = pieces(context, answer, LENGTH)
    assert [token for _, part in found for token in part] == answer
    before = list(context)
    for part_context, part in found:
        whole = (before + list(part))[-(LENGTH + 1) :]  # HFLM._loglikelihood_tokens
        assert [*part_context, *part] == whole and part_context
        before += part


def test_a_shared_context_is_computed_once() -> None:
    context = tuple(range(50))
    requests = [(context, (7, 8, 9)), (context, (7, 9, 9)), (context, (5,)), (context, (6,))]
    together, apart = rows_of(requests, 100, True), rows_of(requests, 100, False)
    assert [row.cost for row in together] == [54]
    assert sorted(row.cost for row in apart) == [52, 52]  # one token is read off where the context ends
