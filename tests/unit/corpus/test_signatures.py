"""Tables of hashes over many slices: nothing missed, few of them, and what they say is what a plain look-up says."""

from __future__ import annotations

import math
import tempfile
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.artifact import Chain
from storage.errors import OnwardError
from storage.views import numpy_view
from tasks.corpus.duplicates import signatures
from tasks.corpus.duplicates.signatures import (
    RADIX,
    KeptDocuments,
    NewLink,
    SignatureTable,
    covering,
    merged,
    span_of,
    write_tables,
)
from tests.support.corpus.slices import part_in

HASHES = st.lists(st.integers(0, 40), max_size=60).map(lambda values: np.array(values, np.uint64))


@given(number=st.integers(0, 100_000), after=st.integers(0, 20))
def test_every_link_stands_in_one_of_few_tables(number: int, after: int) -> None:
    links = covering(number)
    covered = [(link - span_of(link), link) for link in links]
    ends = [0, *(end for _, end in covered)]
    assert [begin for begin, _ in covered] == ends[:-1] and ends[-1] == number
    assert len(links) <= (RADIX - 1) * (math.log(max(number, 1), RADIX) + 1)
    own = span_of(number + 1)  # what the next link joins, ends where its tables are to begin
    joined = covering(number, number + 1 - own)
    assert sum(span_of(link) for link in joined) == own - 1


@given(
    values=st.lists(HASHES, min_size=1, max_size=5),
    asked=st.sets(st.integers(0, 45)),
    shift=st.sampled_from([0, 58]),
    at_once=st.integers(1, 100),
)
def test_a_joined_table_finds_what_a_plain_search_finds(
    values: list[np.ndarray], asked: set[int], shift: int, at_once: int
) -> None:
    values = [own << np.uint64(shift) for own in values]
    tables, start = [], 7
    for own in values:
        tables.append(SignatureTable.of(own, np.arange(len(own)) + start, start, own * np.uint64(3)))
        start += len(own)
    with tempfile.TemporaryDirectory() as spill, mock.patch.object(signatures, "AT_ONCE", at_once):
        table = merged(tables, Path(spill))
    everything = np.concatenate(values)
    assert table.hashes.tolist() == sorted(everything.tolist())
    distinct = np.array(sorted(asked), np.uint64) << np.uint64(shift)
    rows, at = table.find(distinct)
    expected = [(p + 7, int(h)) for h in distinct for p in np.flatnonzero(everything == h).tolist()]
    assert list(zip(table.at(rows).tolist(), distinct[at].tolist(), strict=True)) == expected
    assert table.rests is not None
    assert (table.rests[rows] == distinct[at] * np.uint64(3)).all()


def test_tables_are_joined_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "AT_ONCE", 10_000)
    random, rows = np.random.default_rng(0), 200_000
    tables = [
        SignatureTable.of(random.integers(0, 1 << 64, rows, np.uint64), np.arange(rows) + number * rows, 0)
        for number in range(4)
    ]
    write_tables(tmp_path / "tables.arrow", [merged(tables[:1], tmp_path)])  # imports what it needs
    tracemalloc.start()
    try:
        write_tables(tmp_path / "tables.arrow", [merged(tables, tmp_path)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * rows * 8 / 4  # a quarter of one column
    assert [path.name for path in tmp_path.iterdir()] == ["tables.arrow"]


def test_of_a_link_only_the_documents_asked_for_are_read(tmp_path: Path) -> None:
    count = 100_000
    documents = pa.table(
        {
            "id": pa.array(np.arange(count, dtype=np.uint64)),
            "source": pa.repeat(pa.scalar("tales"), count).dictionary_encode(),
            "file": pa.repeat(pa.scalar("documents/0/part.parquet"), count).dictionary_encode(),
            "row": pa.array(np.arange(count, dtype=np.uint32)),
        }
    )
    (tmp_path / "signatures").mkdir()
    NewLink(KeptDocuments(None)).close(tmp_path / "signatures", documents, {})
    kept = KeptDocuments(Chain((part_in(tmp_path, "signatures"),)))
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        names = kept.names(np.array([7, 99_999]))
        assert pool.max_memory() < count
    finally:
        pa.set_memory_pool(before)
    assert names == {7: "7 of tales", 99_999: "99999 of tales"}


def test_tables_are_mapped_as_they_were_written(tmp_path: Path) -> None:
    tables = [
        SignatureTable.of(np.array(own, np.uint64), np.arange(len(own)), 0) for own in ([3, 1, 2], [], [5, 5])
    ]
    write_tables(tmp_path / "tables.arrow", tables)
    reader = pa.ipc.open_file(pa.memory_map(str(tmp_path / "tables.arrow"), "r"))
    found = [reader.get_batch(number) for number in range(reader.num_record_batches)]
    assert [numpy_view(batch.column("hash")).tolist() for batch in found] == [[1, 2, 3], [], [5, 5]]
    assert [numpy_view(batch.column("place")).tolist() for batch in found] == [[1, 2, 0], [], [0, 1]]


def test_more_documents_than_a_table_can_number_are_refused() -> None:
    with pytest.raises(OnwardError, match="cannot hold"):
        SignatureTable.of(np.zeros(1, np.uint64), np.array([1 << 32]), 0)
