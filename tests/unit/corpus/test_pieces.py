"""Of long documents a piece is held out: nothing is lost, and no piece is trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.artifact import Input
from tasks.corpus.documents import read_documents
from tasks.corpus.holdout import texts_held_out
from tasks.corpus.pieces import LONG, Piece, cut
from tests.support.corpus.held_out import Made, Slices, check, share, shingles_of
from tests.support.corpus.prose import sentences
from tests.support.corpus.slices import bytes_in, part_in

SIZE = 600


def book(seed: int, paragraphs: int = 12) -> str:
    return "\n".join(sentences(5, 1000 * seed + number) for number in range(paragraphs))


def by_id(part: Input) -> dict[int, str]:
    table = read_documents(part.paths)
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def pieces_of(made: Made) -> dict[int, tuple[str, str, str]]:
    """Document → its text as it came in, the piece, and what is trained on."""
    given, trained = by_id(made.given), by_id(part_in(made.path, "documents"))
    return {
        name: (given[name], piece, trained[name])
        for name, piece in by_id(part_in(made.path, "holdout")).items()
        if name in trained
    }


def check_pieces(made: Made) -> None:
    """Each piece and the rest of its document are the document, and the rest is not like the piece."""
    found = pieces_of(made)
    assert len(found) == made.stats.pieces_held_out
    for text, piece, rest in found.values():
        at = text.find(piece)
        assert at > 0 and text[:at] + text[at + len(piece) :] == rest
        assert SIZE / 2 <= len(piece.encode()) <= 2 * SIZE
        assert share(shingles_of(piece), shingles_of(rest)) < 0.8
    held = sum(len(text.encode()) for text in made.held)
    assert made.stats.bytes_held_out == held
    assert made.stats.bytes_out == sum(len(text.encode()) for text in made.trained)
    assert texts_held_out(made.stats.__dict__) == len(made.held)


def test_a_piece_of_each_long_document_is_held_out_and_nothing_is_lost(tmp_path: Path) -> None:
    books = [book(seed, 60) for seed in range(20)]
    notes = [sentences(6, 50_000 + seed) for seed in range(40)]
    made = Slices(tmp_path, holdout=0.1, piece=SIZE).add("tales", [*books, *notes])
    check_pieces(made)
    stats = made.stats
    assert stats.pieces_held_out == 20 and stats.documents_out + stats.documents_held_out == 60
    assert 0 < stats.documents_held_out <= 10, "of the notes, whole ones"
    assert stats.bytes_in == stats.bytes_out + stats.bytes_held_out
    whole = [text for text in made.held if text in set(notes)]
    assert len(whole) == stats.documents_held_out


def test_pieces_take_a_twentieth_of_the_text_at_most(tmp_path: Path) -> None:
    books = [book(seed, 11) for seed in range(60)]
    made = Slices(tmp_path, holdout=0.01, piece=SIZE).add("tales", books)
    check_pieces(made)
    assert 0 < made.stats.pieces_held_out < 60
    assert made.stats.bytes_held_out < 0.1 * made.stats.bytes_in


def test_without_the_option_nothing_changes(tmp_path: Path) -> None:
    books = [book(seed) for seed in range(30)]
    usual = Slices(tmp_path / "usual", holdout=0.1).add("tales", books)
    assert usual.stats.pieces_held_out == 0 and usual.stats.documents_held_out > 0
    check([usual])


def test_files_and_order_change_no_piece(tmp_path: Path) -> None:
    books = [book(seed, 40) for seed in range(15)]
    one = Slices(tmp_path / "one", holdout=0.1, piece=SIZE).add("tales", books, shards=1)
    many = Slices(tmp_path / "many", holdout=0.1, piece=SIZE).add("tales", books[::-1], shards=4)
    assert sorted(one.held) == sorted(many.held) and sorted(one.trained) == sorted(many.trained)
    again = Slices(tmp_path / "again", holdout=0.1, piece=SIZE).add("tales", books, shards=1)
    assert bytes_in(one.path) == bytes_in(again.path)


def test_what_contains_a_piece_is_dropped_in_this_slice_and_in_later_ones(tmp_path: Path) -> None:
    books = [book(seed, 60) for seed in range(12)]
    slices = Slices(tmp_path, holdout=0.1, piece=SIZE)
    pieces = slices.add("tales", books).held
    later = slices.add("letters", [*(f"{sentences(20, 70_000)}\n{piece}" for piece in pieces), *books[:2]])
    assert later.stats.dropped_by_reason == {"held_out_overlap": len(pieces) + 2}
    assert not later.trained


def test_a_copy_of_a_book_in_the_same_slice_goes_and_its_piece_stays_held_out(tmp_path: Path) -> None:
    books = [book(seed, 60) for seed in range(8)]
    edition = f"{sentences(8, 80_000)}\n{books[0]}"
    made = Slices(tmp_path, holdout=0.1, piece=SIZE).add("tales", [*books, edition])
    trained = [shingles_of(text) for text in made.trained]
    for piece in made.held:
        assert all(share(shingles_of(piece), text) < 0.8 for text in trained)
    assert made.stats.documents_in == made.stats.documents_out + made.stats.documents_dropped


def test_what_an_earlier_slice_trains_on_gives_no_piece(tmp_path: Path) -> None:
    books = [book(seed, 60) for seed in range(6)]
    slices = Slices(tmp_path, holdout=0.0, piece=SIZE)
    slices.add("tales", books)
    slices.holdout = 0.1
    second = slices.add(
        "letters", [*(f"{sentences(4, 90_000 + n)}\n{text}" for n, text in enumerate(books)), book(99, 60)]
    )
    assert second.stats.pieces_held_out == 1 and second.stats.holdout_passed_over == 6


@pytest.mark.parametrize(
    ("text", "whole_lines"),
    [
        (book(1), True),
        (sentences(80, 2).replace("\n", " "), False),
        ("\r\n".join(sentences(3, seed) for seed in range(20)), True),
        ("字" * 100 + "\n" + "\n".join("語" * 60 for _ in range(60)), True),
    ],
)
def test_a_piece_is_cut_at_line_ends_or_between_words(text: str, whole_lines: bool) -> None:
    for number in range(0, 2**64, 2**60):
        piece = cut(0, text, SIZE, number)
        assert piece is not None
        assert text[piece.begin - 1] in "\n " and text[piece.end - 1] in "\n "
        assert (text[piece.begin - 1] == "\n") is whole_lines
        assert piece.of(text) not in piece.rest(text) or "語" in text


def test_a_text_without_borders_gives_no_piece() -> None:
    assert cut(0, "語" * 5000, SIZE, 7) is None
    assert cut(0, "a " * 200 + "b" * 9000, SIZE, 2**63) is None
    assert LONG == 4 and Piece(0, 1, 3).of("abcd") == "bc" and Piece(0, 1, 3).rest("abcd") == "ad"


def test_a_document_that_repeats_itself_gives_no_piece(tmp_path: Path) -> None:
    page = book(5, 6)
    made = Slices(tmp_path, holdout=0.1, copies=False, piece=SIZE).add(
        "tales", ["\n".join([page] * 20), book(6, 120)]
    )
    assert made.stats.pieces_held_out == 1 and made.stats.holdout_passed_over == 1
