"""Exact and near duplicates: found, verified, the first kept, and nothing that depends on what comes later."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.artifact import Chain, Input
from storage.testing import artifact_of
from tasks.corpus import dedup
from tasks.corpus.dedup import DedupConfig, DedupInputs
from tasks.corpus.documents import document_ids, read_documents, write_documents
from tasks.corpus.duplicates import comparison
from tasks.corpus.duplicates.minhash import MinHashConfig
from tasks.corpus.shards import read_rows
from tests.support.corpus.duplicates import family_texts, prose, run_on
from tests.support.corpus.slices import bytes_in, dropped_in, part_in, slice_of, texts_in


def true_jaccard(a: str, b: str, n: int = 5) -> float:
    sets = [{tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (a.split(), b.split())]
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def greedy_by_brute_force(texts: list[str], threshold: float) -> list[bool]:
    kept: list[str] = []
    fates = []
    for text in texts:
        fates.append(all(true_jaccard(text, other) < threshold for other in kept))
        if fates[-1]:
            kept.append(text)
    return fates


def test_near_duplicates_are_found_as_brute_force_finds_them(tmp_path: Path) -> None:
    texts = family_texts(0)
    path, stats = run_on(tmp_path, slice_of(tmp_path / "in", texts))
    gone = {row["id"] for row in dropped_in(path)}
    found = [number in gone for number in document_ids("tales", 0, len(texts)).tolist()]
    expected = [not keep for keep in greedy_by_brute_force(texts, 0.7)]
    missed = sum(due and not was for due, was in zip(expected, found, strict=True))
    assert stats.documents_dropped > 60
    assert missed <= 0.06 * sum(expected)
    alike = [max((true_jaccard(t, o) for o in texts[:i]), default=0.0) for i, t in enumerate(texts)]
    sure = [was for was, similarity in zip(found, alike, strict=True) if similarity >= 0.85]
    assert sum(sure) >= 0.97 * len(sure)


def test_what_is_dropped_has_a_kept_earlier_twin(tmp_path: Path) -> None:
    texts = family_texts(1)
    given_ = slice_of(tmp_path / "in", texts)
    path, _ = run_on(tmp_path, given_)
    text_of = dict(zip(document_ids("tales", 0, len(texts)).tolist(), texts, strict=True))
    kept = texts_in(path)
    rows = dropped_in(path)
    assert rows
    for row in rows:
        number, _, source = row["detail"].partition(" of ")
        original, copy = text_of[int(number)], text_of[row["id"]]
        assert source == "tales" and original in kept
        assert texts.index(original) < len(texts) - texts[::-1].index(copy) - 1
        assert row["value"] >= 0.7
        assert row["value"] == pytest.approx(true_jaccard(original, copy))
        assert row["reason"] == ("exact_duplicate" if original == copy else "near_duplicate")


def test_short_documents_are_compared_as_a_whole(tmp_path: Path) -> None:
    texts = ["one two", "ONE \n two", "one three", "", " ", "one two"]
    path, stats = run_on(tmp_path, slice_of(tmp_path / "in", texts))
    assert texts_in(path) == ["one two", "one three", ""]
    assert stats.dropped_by_reason == {"exact_duplicate": 3}


def test_an_exact_copy_shares_the_fate_of_the_near_duplicate_it_copies(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    original = prose(random, 300)
    near = " ".join([*original[:-3], "q", "r", "s"])
    path, stats = run_on(tmp_path, slice_of(tmp_path / "in", [" ".join(original), near, near, near.upper()]))
    assert texts_in(path) == [" ".join(original)]
    assert stats.dropped_by_reason == {"near_duplicate": 3}


def test_tables_of_other_numbers_are_no_copies(tmp_path: Path) -> None:
    texts = [" ".join(str(i * factor) for i in range(200)) for factor in (3, 7, 7)]
    path, _ = run_on(tmp_path, slice_of(tmp_path / "in", texts))
    assert texts_in(path) == texts[:2]


def test_pages_that_differ_in_their_numbers_are_not_all_compared(tmp_path: Path) -> None:
    texts = [" ".join(f"row {i} holds {i * factor}" for i in range(60)) for factor in range(2, 200)]
    texts.insert(100, texts[50] + " and so on")
    paths, left = chained(tmp_path, texts, [40, 90])
    compared = sum(json.loads((path / "stats.json").read_text())["compared"] for path in paths)
    assert left == [text for text in texts if "so on" not in text]
    assert 1 <= compared < len(texts) / 10


def templates(count: int) -> list[str]:
    """Pages of which any two are alike by 0.65: too much for the bands to miss, too little for one to be dropped."""
    random = np.random.default_rng(12)
    common, own = " ".join(prose(random, 394)), 104
    return [" ".join([common, *prose(random, own)]) for _ in range(count)]


def test_a_page_of_a_template_is_compared_with_so_many_of_it_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = templates(120)
    assert 0.6 < true_jaccard(texts[0], texts[1]) < 0.7
    texts += [texts[0] + " and more", texts[119] + " and more"]
    every, _ = chained(tmp_path / "every", texts, [])
    monkeypatch.setattr(comparison, "MOST_IN_GROUP", 2)
    whole, kept_of_one = chained(tmp_path / "whole", texts, [])
    parts, kept_of_several = chained(tmp_path / "parts", texts, [10, 30, 60, 61, 100])
    facts = [
        [json.loads((path / "stats.json").read_text()) for path in paths] for paths in (every, whole, parts)
    ]
    assert kept_of_one == kept_of_several
    assert texts[120] not in kept_of_one
    assert facts[0][0]["compared"] > 1000 and facts[0][0]["beyond_group"] == 0
    assert facts[1][0]["compared"] <= len(texts) * 14 * 2
    assert facts[1][0]["compared"] < facts[0][0]["compared"] / 2
    assert facts[1][0]["beyond_group"] == sum(one["beyond_group"] for one in facts[2]) > 0


@pytest.mark.parametrize(
    ("config", "left"),
    [
        (DedupConfig(exact=False, minhash=None), 4),
        (DedupConfig(exact=True, minhash=None), 3),
        (DedupConfig(exact=False), 1),
        (DedupConfig(minhash=MinHashConfig(jaccard=1.0)), 2),
    ],
)
def test_each_kind_can_be_turned_off(tmp_path: Path, config: DedupConfig, left: int) -> None:
    random = np.random.default_rng(4)
    original = prose(random, 300)
    text, near = " ".join(original), " ".join([*original[:-1], "q"])
    shouted = text.upper().replace(" ", "  ", 1) + "!"  # other words for exact matching, the same shingles
    path, _ = run_on(tmp_path, slice_of(tmp_path / "in", [text, text, near, shouted]), config)
    assert len(texts_in(path)) == left


def chained(directory: Path, texts: list[str], cuts: list[int]) -> tuple[list[Path], list[str]]:
    """Run dedup over consecutive slices of the texts; the drafts' paths and all that was kept."""
    links: list[Input] = []
    paths: list[Path] = []
    for number, (begin, end) in enumerate(pairwise([0, *cuts, len(texts)])):
        given_ = slice_of(directory / f"in{number}", texts[begin:end], first=begin, shards=2)
        path, stats = run_on(directory / str(number), given_, earlier=tuple(links))
        (path / "stats.json").write_text(json.dumps(asdict(stats)))
        links.append(part_in(path, "signatures"))
        paths.append(path)
    return paths, [text for path in paths for text in texts_in(path)]


def test_decisions_are_the_same_for_one_slice_and_for_several(tmp_path: Path) -> None:
    texts = family_texts(5, 30)
    _, whole = chained(tmp_path / "whole", texts, [])
    _, parts = chained(tmp_path / "parts", texts, [7, 7, 40, 88])
    assert whole == parts
    assert len(whole) < len(texts)


def test_decisions_are_the_same_when_tables_of_many_slices_were_joined(tmp_path: Path) -> None:
    texts = family_texts(9, 40)
    _, whole = chained(tmp_path / "whole", texts, [])
    paths, parts = chained(tmp_path / "parts", texts, list(range(4, len(texts), 5)))
    assert whole == parts
    assert len(paths) > 21  # the sixteenth has the tables of sixteen, the twentieth of four


def test_the_kept_document_is_named_and_its_text_read_from_its_own_slice(tmp_path: Path) -> None:
    texts = family_texts(10, 30)
    paths, _ = chained(tmp_path, texts, list(range(3, len(texts), 4)))
    text_of = dict(zip(document_ids("tales", 0, len(texts)).tolist(), texts, strict=True))
    rows = [row for path in paths for row in dropped_in(path)]
    assert len(rows) > 20
    for row in rows:
        original = text_of[int(row["detail"].split()[0])]
        assert row["value"] == pytest.approx(true_jaccard(original, text_of[row["id"]]))


def test_what_is_kept_is_read_back_in_small_pieces(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    texts = [" ".join(prose(random, 1000)) for _ in range(200)]
    path, _ = run_on(tmp_path, slice_of(tmp_path / "in", texts, shards=1))
    metadata = pq.read_metadata(next((path / "documents").rglob("*.parquet")))
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert max(sizes) * sum(map(len, texts)) / len(texts) < 1.1 * dedup.ROW_GROUP_BYTES
    assert len(sizes) < 20


def test_what_was_made_stays_the_same_when_more_comes(tmp_path: Path) -> None:
    texts = family_texts(6, 30)
    before, _ = chained(tmp_path / "a", texts[:60], [20])
    after, _ = chained(tmp_path / "b", texts, [20, 60])
    for one, other in zip(before, after, strict=False):
        assert bytes_in(one) == bytes_in(other)


def test_a_links_digest_covers_the_links_before(tmp_path: Path) -> None:
    same = ["the very same few words in both of them"]
    first = run_on(tmp_path / "1", slice_of(tmp_path / "in1", ["some words that are here alone"]))[0]
    other = run_on(tmp_path / "2", slice_of(tmp_path / "in2", ["quite another thing to say"]))[0]
    links = [
        part_in(
            run_on(tmp_path / name, slice_of(tmp_path / "in", same), earlier=(part_in(path, "signatures"),))[
                0
            ],
            "signatures",
        )
        for name, path in (("3", first), ("4", other))
    ]
    assert links[0].digest != links[1].digest
    chain = json.loads((links[0].root / "signatures" / "chain.json").read_text())
    assert chain["before"] == part_in(first, "signatures").digest


def test_an_artifact_holds_its_parts_and_no_scratch(tmp_path: Path) -> None:
    artifact = artifact_of(
        dedup, DedupConfig(), DedupInputs(slice_of(tmp_path / "in", family_texts(8, 5))), tmp_path / "store"
    )
    assert set(artifact.manifest.parts) == {"documents", "dropped", "signatures"}
    assert not (artifact.path / "scratch").exists()
    again = artifact_of(
        dedup,
        DedupConfig(),
        DedupInputs(
            slice_of(tmp_path / "in2", ["new words of a later slice"]), Chain((artifact.part("signatures"),))
        ),
        tmp_path / "store",
    )
    assert again.stats["documents_out"] == 1


PIECES = st.sampled_from(
    ["a b c d e f g h", "é ß 漢字 💡", "A  B c D e f g", "", "z", "1 2 3 4 5 6", "\n\n", "p q r s t u"]
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.lists(PIECES, max_size=4).map(" ".join), max_size=12), shards=st.integers(1, 4))
def test_every_document_is_kept_or_dropped(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], shards: int
) -> None:
    directory = tmp_path_factory.mktemp("conservation")
    path, stats = run_on(directory, slice_of(directory / "in", texts, shards=shards))
    kept, dropped = texts_in(path), dropped_in(path)
    assert len(kept) + len(dropped) == len(texts) == stats.documents_in
    assert (stats.documents_out, stats.documents_dropped) == (len(kept), len(dropped))
    assert stats.bytes_in == sum(len(text.encode()) for text in texts)
    assert stats.bytes_out == sum(len(text.encode()) for text in kept)
    assert sum(stats.dropped_by_reason.values()) == len(dropped)
    assert len({" ".join(text.lower().split()) for text in kept}) == len(kept)


@pytest.mark.parametrize("rows", [[], [0], [19], [3, 4, 11], list(range(20))])
def test_single_documents_are_read_back_from_any_row_group(tmp_path: Path, rows: list[int]) -> None:
    given_ = slice_of(tmp_path / "in", [f"text {i}" for i in range(20)], shards=1)
    table = read_documents(given_.paths)
    write_documents(tmp_path / "small.parquet", table, row_group=3)
    found = read_rows(tmp_path / "small.parquet", np.array(rows, np.int64))
    assert found.to_list() == [f"text {i}" for i in rows]
