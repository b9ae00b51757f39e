from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.errors import BadInput, DamagedArtifact
from storage.packing import PackingManifest, Pieces, ShardEntry, write_manifest

SHARDS = [ShardEntry("aa", "educational"), ShardEntry("bb", "general"), ShardEntry("cc", "educational")]
ROWS = [(7, 0, 1, 5), (7, 2, 9, 3), (8, 1, 1, 8), (9, 2, 1, 4), (9, 2, 5, 1), (9, 0, 6, 3)]


def write(path: Path, rows: list[tuple[int, int, int, int]], **changes: Any) -> None:
    pieces = (
        Pieces(*(np.asarray(column) for column in zip(*rows, strict=True)))
        if rows
        else Pieces(*(np.zeros(0, np.int64) for _ in range(4)))
    )
    facts: dict[str, Any] = {
        "sequence_length": 8,
        "first_sequence": 7,
        "sequences": 3,
        "shards": SHARDS,
        "eot": 0,
        "tokenizer": "t",
        "seed": 3,
    }
    write_manifest(path, pieces, **(facts | changes))


def test_rows_of_any_range_read_back(tmp_path: Path) -> None:
    path = tmp_path / "manifest.arrow"
    write(path, ROWS)
    manifest = PackingManifest.open(path)
    assert (manifest.first_sequence, manifest.sequences, manifest.end_sequence) == (7, 3, 10)
    assert manifest.shards == tuple(SHARDS)
    assert (manifest.eot, manifest.tokenizer, manifest.seed, manifest.sequence_length) == (0, "t", 3, 8)
    for start in range(7, 11):
        for end in range(start, 11):
            got = manifest.rows(start, end)
            rows = zip(got.sequence, got.shard, got.offset, got.length, strict=True)
            assert [tuple(map(int, row)) for row in rows] == [row for row in ROWS if start <= row[0] < end]
    assert manifest.rows(8, 9).offset.dtype == np.uint64
    assert not manifest.rows(8, 9).offset.flags.owndata


def test_source_of_each_sequence(tmp_path: Path) -> None:
    path = tmp_path / "manifest.arrow"
    write(path, ROWS)
    manifest = PackingManifest.open(path)
    assert manifest.sources == ("educational", "general")
    assert manifest.source_of(7, 10).tolist() == [0, 1, 0]
    assert manifest.source_of(8, 9).tolist() == [1]
    assert manifest.source_of(8, 8).tolist() == []


def test_range_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.arrow"
    write(path, ROWS)
    for start, end in ((6, 8), (7, 11), (9, 8)):
        with pytest.raises(BadInput, match=r"\[7, 10\)"):
            PackingManifest.open(path).rows(start, end)


def test_a_manifest_without_sequences(tmp_path: Path) -> None:
    path = tmp_path / "manifest.arrow"
    write(path, [], sequences=0)
    assert len(PackingManifest.open(path).rows(7, 7)) == 0


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (ROWS[2:], {}, "every sequence from 7 to 9"),
        (ROWS[:3], {}, "every sequence from 7 to 9"),
        (ROWS[:2] + ROWS[3:], {}, "every sequence"),
        (ROWS[2:3] + ROWS[:2] + ROWS[3:], {}, "ascending"),
        ([], {}, "every sequence"),
        (ROWS, {"shards": SHARDS[:2]}, "names shard 2 of 2"),
        (ROWS, {"sequence_length": 7}, "holds 8 of at most 7"),
        ([(7, 0, 0, 5)], {"sequences": 1}, "starts at 0"),
        ([(7, 0, 1, 0)], {"sequences": 1}, "empty"),
    ],
)
def test_what_is_no_training_order_is_refused(
    tmp_path: Path, rows: list[tuple[int, int, int, int]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        write(tmp_path / "manifest.arrow", rows, **changes)


def test_same_arguments_same_bytes_and_damage_is_seen(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", ROWS)
    write(tmp_path / "b.arrow", ROWS)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
    (tmp_path / "b.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-30])
    with pytest.raises(DamagedArtifact, match=r"b\.arrow"):
        PackingManifest.open(tmp_path / "b.arrow")
