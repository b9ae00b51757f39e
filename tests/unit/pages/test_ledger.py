"""The ledger of both pages: sums over slices, what does not add up, and tokens over rounds."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.pages.ledger import Entry, amounts_of, ledger_of, round_of, sources_of

COUNT = st.integers(0, 10**6)


def stats(came: int, dropped: int, held: int, **over: Any) -> dict[str, Any]:
    """A stage that took `came` documents of ten bytes each."""
    out = came - dropped - held
    return {
        "documents_in": came,
        "documents_out": out,
        "documents_dropped": dropped,
        "documents_held_out": held,
        "bytes_in": 10 * came,
        "bytes_out": 10 * out,
        "bytes_held_out": 10 * held,
        "dropped_by_reason": {"short": dropped},
        **over,
    }


@settings(deadline=None)  # of the machine, not of the code
@given(st.lists(st.tuples(COUNT, COUNT, COUNT), min_size=1, max_size=5))
def test_what_stages_conserve_adds_up_over_any_slices(slices: list[tuple[int, int, int]]) -> None:
    entries = []
    for number, (left, dropped, held) in enumerate(slices):
        first = stats(left + dropped + held, 0, 0)
        second = stats(left + dropped + held, dropped, held)
        entries += [
            Entry(number, "edu", amounts_of("dedup", first)),
            Entry(number, "edu", amounts_of("filter", second)),
        ]
    ledger = ledger_of(entries)
    [journey] = ledger.sources
    assert ledger.problems == ledger.document_problems == ()
    assert journey.slices == len(slices) and journey.stages == ledger.stages
    last = ledger.stages[-1]
    assert last.documents_in == last.documents_out + last.left
    assert last.text_in == last.text_accounted == 10 * last.documents_in
    assert last.reasons == {"short": sum(dropped for _, dropped, _ in slices)}


def test_a_lost_document_and_lost_text_are_told_apart() -> None:
    whole, lost = stats(10, 1, 0), stats(9, 2, 0, documents_out=6)
    short = stats(9, 2, 0, bytes_out=60, bytes_dropped=20)
    for found, of_documents in ((lost, True), (short, False)):
        ledger = ledger_of(
            [
                Entry(1, "edu", amounts_of("dedup", whole)),
                Entry(1, "edu", amounts_of("filter", found)),
                Entry(2, "edu", amounts_of("dedup", whole)),  # of another slice, which did not lose it
            ]
        )
        assert bool(ledger.document_problems) == of_documents
        assert ledger.problems and all("filter, slice 1 (edu)" in one for one in ledger.problems)


def test_what_a_stage_does_not_count_stays_unknown_in_the_sum() -> None:
    held = stats(5, 0, 0)
    del held["documents_held_out"]
    both = [Entry(number, "edu", amounts_of("dedup", held)) for number in (1, 2)]
    assert ledger_of(both).stages[0].documents_held_out is None
    one = Entry(3, "edu", amounts_of("dedup", stats(5, 0, 2)))
    assert ledger_of([*both, one]).stages[0].documents_held_out == 2


def test_a_source_stands_as_the_last_round_that_read_it_left_it() -> None:
    def packed(**sources: dict[str, Any]) -> dict[str, Any]:
        base = {"sequences": 5, "tokens": 45, "padding": 5, "padding_fraction": 0.1}
        return {**base, "documents_whole": 3, "documents_cut": 1, "concatenation_cuts": 2, "sources": sources}

    first = round_of(1, packed(edu={"tokens": 30, "epochs": 0.5, "tokens_carried": 4}, old={"tokens": 15}))
    second = round_of(2, packed(edu={"tokens": 45, "epochs": 1.25, "tokens_carried": 0}))
    assert (first.documents, first.concatenation_cut, first.sequence_length) == (4, 3, 10)
    (edu, edu_rounds), (old, old_rounds) = sources_of([first, second])
    assert (edu.epochs, edu.tokens_carried, edu_rounds) == (1.25, 0, [(1, 30), (2, 45)])
    assert (old.source, old.epochs, old_rounds) == ("old", None, [(1, 15)])
