"""What goes through the model together: each request once, whole, and within the caps, whatever is asked."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.evaluation.batches import ScoredRow, Unit, batches, cut, pieces, rows_of, units_of

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


SHOTS = {
    subject: tuple(range(1000 * subject, 1000 * subject + size)) for subject, size in ((1, 90), (2, 200))
}
questions = st.lists(
    st.tuples(st.sampled_from([0, 1, 2]), st.lists(tokens, min_size=1, max_size=12), answers), max_size=60
)


@given(questions, st.integers(1, 100), st.integers(1, 40))
def test_units_hold_every_row_once_and_begin_as_its_rows_do(
    asked: list[tuple[int, list[int], list[int]]], most_tokens: int, most_scored: int
) -> None:
    pairs = [((*SHOTS.get(subject, ()), *context), tuple(answer)) for subject, context, answer in asked]
    rows = rows_of(pairs, 10**6, True)
    plain, begun = (units_of(rows, most_tokens, most_scored, begin) for begin in (False, True))
    for units in (plain, begun):
        held = [row for unit in units for batch in unit.batches for row in batch]
        assert sorted((row.context, tuple(row.answers)) for row in held) == sorted(
            (row.context, tuple(row.answers)) for row in rows
        )
        for unit in units:
            for row in (row for batch in unit.batches for row in batch):
                assert row.context[: row.begun] == unit.beginning and row.begun < len(row.context)
                assert row.cost == len(row.context) - row.begun + sum(len(one) - 1 for one in row.answers)
            for batch in (batch for batch in unit.batches if len(batch) > 1):
                assert len(batch) * max(row.cost for row in batch) <= most_tokens
    assert sum(unit.cost for unit in begun) <= sum(unit.cost for unit in plain)


def contexts_of(units: list[Unit]) -> list[int]:
    return sorted(len(unit.beginning) for unit in units)


def test_examples_before_all_questions_of_a_subject_are_computed_once_in_the_unit() -> None:
    rows = [ScoredRow((*SHOTS[subject], number), [(7,)]) for subject in (1, 2) for number in range(10)]
    units = units_of(rows, 512, 100, True)
    assert contexts_of(units) == [90, 200]
    assert sum(unit.cost for unit in units) == 90 + 200 + 20


def test_words_that_all_subjects_share_do_not_hide_what_one_subject_shares() -> None:
    head = tuple(range(70))
    rows = [ScoredRow((*head, *SHOTS[subject], number), [(7,)]) for subject in (1, 2) for number in range(10)]
    assert contexts_of(units_of(rows, 512, 100, True)) == [160, 270]
    one_each = [ScoredRow((*head, subject, 5), [(7,)]) for subject in range(20)]
    assert contexts_of(units_of(one_each, 512, 100, True)) == [70]


def test_a_beginning_that_saves_little_has_no_pass_of_its_own() -> None:
    for size, count in ((60, 50), (100, 2)):
        rows = [ScoredRow((*range(size), -number), [(7,)]) for number in range(count)]
        assert set(contexts_of(units_of(rows, 512, 100, True))) == {0}


def test_a_long_unit_is_cut_into_equal_ones_that_outweigh_their_beginning() -> None:
    rows = [ScoredRow((*SHOTS[1], *range(number, number + 50)), [(7,)]) for number in range(100)]
    units = units_of(rows, 100, 100, True)
    assert len(units) == 5000 // (4 * 90)
    assert max(unit.cost for unit in units) <= 90 + 5000 / len(units) + 100


def test_passages_that_go_on_from_each_other_are_looked_at_to_a_depth() -> None:
    rows = [ScoredRow(tuple(range(end)), [(7,)]) for end in range(70, 2000)]
    units = units_of(rows, 512, 100, True)
    assert sum(len(batch) for unit in units for batch in unit.batches) == len(rows)
    assert sum(unit.cost for unit in units) < sum(row.cost for row in rows)
