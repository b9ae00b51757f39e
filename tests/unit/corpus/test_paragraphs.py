"""Lines that stood in earlier documents are removed, and nothing else is; each edit is recorded and counted."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.artifact import Input
from tasks.corpus import dedup
from tasks.corpus.dedup import DedupConfig
from tasks.corpus.documents import document_ids
from tasks.corpus.duplicates.paragraphs import ParagraphConfig, without_lines
from tests.support.corpus.duplicates import run_on
from tests.support.corpus.slices import bytes_in, dropped_in, edited_in, part_in, slice_of, texts_in

NOTICE = "This work is licensed to everybody under the same terms as the last one."
MENU = "Home | Products | Services | About the company | Contact"
NAMES = [f"{own} of tales" for own in document_ids("tales", 0, 9).tolist()]
CONFIG = DedupConfig(minhash=None, paragraphs=ParagraphConfig())


def chained(
    directory: Path, texts: list[str], cuts: list[int], config: DedupConfig = CONFIG
) -> tuple[list[Path], list[dedup.DedupStats]]:
    links: list[Input] = []
    paths: list[Path] = []
    made: list[dedup.DedupStats] = []
    for number, (begin, end) in enumerate(pairwise([0, *cuts, len(texts)])):
        given_ = slice_of(directory / f"in{number}", texts[begin:end], first=begin, shards=2)
        path, stats = run_on(directory / str(number), given_, config, tuple(links))
        links.append(part_in(path, "signatures"))
        paths.append(path)
        made.append(stats)
    return paths, made


def test_a_line_stays_where_it_stands_first(tmp_path: Path) -> None:
    texts = [f"{MENU}\nA tale of the sea.\n{NOTICE}", f"{MENU}\nA tale of the land.\n{NOTICE}", "Alone."]
    path, stats = run_on(tmp_path, slice_of(tmp_path / "in", texts), CONFIG)
    assert texts_in(path) == [texts[0], "A tale of the land.", "Alone."]
    removed = len(MENU) + len(NOTICE) + 2
    own = int(document_ids("tales", 0, 3)[1])
    assert edited_in(path) == [{"id": own, "source": "tales", "lines": 2, "bytes": removed}]
    assert (stats.documents_edited, stats.lines_removed, stats.bytes_removed) == (1, 2, removed)
    assert stats.bytes_in == stats.bytes_out + stats.bytes_removed


def test_lines_of_an_earlier_slice_are_known(tmp_path: Path) -> None:
    texts = [f"{NOTICE}\none {i}" for i in range(6)]
    paths, _ = chained(tmp_path, texts, [1, 2, 3, 4, 5])
    assert [texts_in(path) for path in paths] == [[texts[0]], *([f"one {i}"] for i in range(1, 6))]


@pytest.mark.parametrize(
    ("line", "other", "same"),
    [
        (NOTICE, NOTICE.upper(), True),
        (NOTICE, f"  {NOTICE.replace('.', '!')}\r", True),
        ("Le café est fermé pendant toute la journée", "Le cafe est ferme, pendant toute la journee", True),
        ("Total of all the rows above: 17 and 4.5", "Total of all the rows above: 18 and 4.5", False),
        ("Read more about this", "Read more about this", False),  # too short
        ("-" * 60, "-" * 60, False),  # no word in it
        ("one and the same thing again and again", "one and the same thing again", False),
    ],
)
def test_what_counts_as_the_same_line(tmp_path: Path, line: str, other: str, same: bool) -> None:
    path, _ = run_on(tmp_path, slice_of(tmp_path / "in", [f"first\n{line}", f"second\n{other}"]), CONFIG)
    assert texts_in(path)[1] == ("second" if same else f"second\n{other}")


def test_what_a_document_repeats_of_itself_stays(tmp_path: Path) -> None:
    song = f"{NOTICE}\nla la la\n{NOTICE}"
    path, _ = run_on(tmp_path, slice_of(tmp_path / "in", [song, f"other\n{NOTICE}\n{NOTICE}"]), CONFIG)
    assert texts_in(path) == [song, "other"]


def test_a_document_of_which_nothing_is_left_is_dropped(tmp_path: Path) -> None:
    texts = [f"{NOTICE}\none", f"{MENU}\ntwo", f"{NOTICE}\n\n \n{MENU}", "three"]
    paths, stats = chained(tmp_path, texts, [3])
    assert texts_in(paths[0]) == texts[:2]
    (row,) = dropped_in(paths[0])
    assert (row["reason"], row["value"], row["detail"]) == ("repeated_paragraphs", 2.0, "")
    assert stats[0].dropped_by_reason == {"repeated_paragraphs": 1}
    assert edited_in(paths[0]) == []
    assert json.loads((paths[0] / "signatures" / "chain.json").read_text())["documents"] == 2


def test_an_edited_document_is_found_again_by_later_copies(tmp_path: Path) -> None:
    body = " ".join(a + b for a in "abcdefghijklmn" for b in "opqrstuvwxyz")
    texts = [f"{NOTICE}\nzero", f"{NOTICE}\n{body}", f"{NOTICE}\n{body}", f"{body} and"]
    paths, _ = chained(tmp_path, texts, [2, 3], DedupConfig(paragraphs=ParagraphConfig()))
    assert [row["reason"] for path in paths for row in dropped_in(path)] == [
        "exact_duplicate",
        "near_duplicate",
    ]
    assert texts_in(paths[0])[1] == body


BOTH = DedupConfig(paragraphs=ParagraphConfig())
LONG = "\n".join(
    " ".join(chr(97 + row) + a + b for a in "abcdefgh" for b in "opqr") for row in range(5)
)  # 160 words that every page below begins with


def all_of(paths: list[Path]) -> tuple[list[str], list[tuple[int, str, str]]]:
    """Texts that are kept, and id, reason and detail of what was dropped."""
    dropped = [(row["id"], row["reason"], row["detail"]) for path in paths for row in dropped_in(path)]
    return [text for path in paths for text in texts_in(path)], dropped


def test_nothing_is_a_copy_of_lines_that_are_removed(tmp_path: Path) -> None:
    texts = [f"{LONG}\nof the page itself", f"{LONG}\nalpha is here", f"{LONG}\nbeta is there"]
    one, _ = chained(tmp_path / "one", texts, [], BOTH)
    several, _ = chained(tmp_path / "several", texts, [1, 2], BOTH)
    assert all_of(one) == all_of(several)
    assert all_of(one)[1] == [(document_ids("tales", 0, 3)[i], "near_duplicate", NAMES[0]) for i in (1, 2)]
    page = " ".join(f"word{i}" for i in range(200))
    texts = [f"{LONG}\n{page}", f"{LONG}\nalpha is here", f"{LONG}\nbeta is there"]
    one, _ = chained(tmp_path / "menu", texts, [], BOTH)
    several, _ = chained(tmp_path / "menus", texts, [1, 2], BOTH)
    assert all_of(one) == all_of(several)
    assert all_of(one) == ([texts[0], "alpha is here", "beta is there"], [])


def test_nothing_is_a_copy_of_a_document_that_was_emptied(tmp_path: Path) -> None:
    rows = LONG.split("\n")
    first = [f"{row}\n{'own words of this page ' * 30}{i}" for i, row in enumerate(rows)]
    texts = [*first, LONG, f"{LONG}\na last sentence", LONG.replace("\n", " ") + " and so on", LONG.upper()]
    one, _ = chained(tmp_path / "one", texts, [], BOTH)
    several, _ = chained(tmp_path / "several", texts, [6, 7, 8], BOTH)
    assert all_of(one) == all_of(several)
    kept, dropped = all_of(one)
    assert "a last sentence" in kept and texts[7] in kept
    assert dropped[0][1] == "repeated_paragraphs"
    gone = {f"{own} of tales" for own, _, _ in dropped}
    assert all(
        detail in NAMES and detail not in gone
        for _, reason, detail in dropped
        if reason != "repeated_paragraphs"
    )


POOL = [" ".join(f"{a}{b}{c}" for b in "aeiou" for c in "klmnpr") for a in "bcdfg"]
PAGES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(POOL), min_size=1, max_size=4, unique=True),
        st.sampled_from(["", "a line of its own", "other words, and a few more of them here", "the end"]),
    ).map(lambda page: "\n".join([*page[0], page[1]])),
    max_size=8,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=PAGES, cuts=st.lists(st.integers(0, 8), max_size=3))
def test_decisions_are_the_same_for_one_slice_and_for_several(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], cuts: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("both")
    one, _ = chained(directory / "one", texts, [], BOTH)
    several, _ = chained(directory / "several", texts, sorted(min(cut, len(texts)) for cut in cuts), BOTH)
    assert all_of(one) == all_of(several)
    gone = {f"{own} of tales" for own, _, _ in all_of(one)[1]}
    assert not gone & {detail for _, _, detail in all_of(one)[1]}


def test_where_it_is_off_there_is_no_trace_of_it(tmp_path: Path) -> None:
    texts = [f"{NOTICE}\na", f"{NOTICE}\nb"]
    path, stats = run_on(tmp_path, slice_of(tmp_path / "in", texts), DedupConfig(minhash=None))
    assert texts_in(path) == texts
    assert not (path / "edited.parquet").exists() and not (path / "signatures" / "paragraphs.arrow").exists()
    assert stats.bytes_removed == stats.documents_edited == 0


def test_a_length_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="min_characters"):
        ParagraphConfig(min_characters=0)


def test_lines_can_be_taken_out_anywhere() -> None:
    import polars as pl

    texts = pl.Series(["a\nb\nc", "d", "e\n\nf\n", "g\nh"])
    rows, lines = np.array([0, 0, 2, 3]), np.array([0, 2, 0, 1])
    assert without_lines(texts, rows, lines).to_list() == ["b", "d", "\nf\n", "g"]


LINES = st.sampled_from(
    [
        NOTICE,
        MENU,
        NOTICE.lower(),
        "short",
        "",
        " ",
        "é" * 40,
        "漢" * 31,
        "💡" * 31,
        "x" * 31,
        "y " * 20,
        "-" * 40,
        "\r",
    ]
)
TEXTS = st.lists(st.lists(LINES, max_size=5).map("\n".join), max_size=10)


def plain(line: str) -> str:
    for sign in ".|-":
        line = line.replace(sign, " ")
    return " ".join(line.lower().replace("é", "e").split())


def by_hand(texts: list[str]) -> list[str | None]:
    """The rule over again, a line at a time."""
    seen: dict[str, int] = {}
    found: list[str | None] = []
    for number, text in enumerate(texts):
        left, removed = [], False
        for line in text.split("\n"):
            if len(line.strip()) >= 31 and plain(line) and seen.setdefault(plain(line), number) != number:
                removed = True
            else:
                left.append(line)
        gone = removed and not "".join(left).strip()
        found.append(None if gone else "\n".join(left))
    return found


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=TEXTS, more=TEXTS, cut=st.integers(0, 10))
def test_it_only_looks_back_and_loses_nothing_unrecorded(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], more: list[str], cut: int
) -> None:
    directory = tmp_path_factory.mktemp("lines")
    config = DedupConfig(exact=False, minhash=None, paragraphs=ParagraphConfig())
    cuts = [min(cut, len(texts))]
    before, stats = chained(directory / "a", texts, cuts, config)
    after, _ = chained(directory / "b", [*texts, *more], [*cuts, len(texts)], config)
    for one, other in zip(before, after, strict=False):
        assert bytes_in(one) == bytes_in(other)
    expected = by_hand(texts)
    assert [text for path in before for text in texts_in(path)] == [
        text for text in expected if text is not None
    ]
    dropped = {row["id"] for path in before for row in dropped_in(path)}
    ids = document_ids("tales", 0, len(texts)).tolist()
    assert dropped == {own for own, text in zip(ids, expected, strict=True) if text is None}
    edits = {row["id"]: row["bytes"] for path in before for row in edited_in(path)}
    for own, text, left in zip(ids, texts, expected, strict=True):
        if left is not None:
            assert len(text.encode()) == len(left.encode()) + edits.get(own, 0)
    assert sum(one.bytes_removed for one in stats) == sum(edits.values())
    for one in stats:
        assert one.bytes_in == one.bytes_out + one.bytes_dropped + one.bytes_removed
