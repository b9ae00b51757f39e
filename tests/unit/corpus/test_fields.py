"""Fields that nobody wants are left behind, and the rows of a file are held once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.store import Request
from storage.testing import artifact_of
from tasks.corpus import ingest
from tasks.corpus.documents import (
    DOCUMENTS,
    TextColumn,
    read_column,
    read_documents,
    read_kept,
    write_documents,
)
from tasks.corpus.ingest import FileDigests, plan_slice
from tasks.corpus.reading import ingest_shard, limits
from tasks.corpus.reading.batches import Unit
from tasks.corpus.reading.fields import KeptFields, fields_of
from tasks.corpus.reading.readers import read_unit
from tests.support.corpus.sources import config_of, documents, source_of

ROWS = [
    {"text": f"text {n}", "url": f"u{n}", "deep": {"text": "t", "n": [n]}, "raw": "x" * 50, "a.b": n}
    for n in range(9)
]
KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "json", "long json", "parquet"]


def write(base: Path, kind: str) -> Path:
    lines = b"\n".join(map(orjson.dumps, ROWS))
    path = base / f"a.{kind.split()[-1]}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4)
    elif kind.endswith(" json") or kind == "json":
        path.write_bytes(b"[" + lines.replace(b"\n", b",\n") + b"]")
    else:
        path.write_bytes({"gz": gzip.compress, "zst": zstandard.compress}.get(kind[6:], bytes)(lines))
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [None, (), ("url",), ("a.b", "deep"), ("none", "url"), ("text", "url")])
def test_only_what_is_named_is_carried_along(
    tmp_path: Path, kind: str, keep: tuple[str, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "long json":
        monkeypatch.setattr(limits, "ARRAY_BYTES", 200)
    write(tmp_path, kind)
    source = source_of("a.*", keep_fields=keep, order="as_given")
    plan = plan_slice(config_of(source), source, None, tmp_path, FileDigests(None))
    assert plan is not None
    artifact = artifact_of(ingest, plan.config, plan.inputs, tmp_path / "store")
    table = documents([artifact])
    expected = [{k: v for k, v in row.items() if k != "text" and (keep is None or k in keep)} for row in ROWS]
    assert table["text"].to_pylist() == [row["text"] for row in ROWS]
    assert [json.loads(meta) for meta in table["meta"].to_pylist()] == expected
    warned = artifact.manifest.provenance["warnings"]
    assert bool(warned) == (keep == ("none", "url"))
    for line in warned:
        assert (
            "no row of its first slice has 'none' (keep_fields); they have 'a.b', 'deep', 'raw', 'url'"
            in line
        )


def test_a_text_file_has_its_name_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    for keep, meta in ((None, '{"file":"a.txt"}'), (("file",), '{"file":"a.txt"}'), ((), "{}")):
        (batch,) = read_unit(Unit(0, "a.txt", "text", 0, tmp_path / "a.txt"), "text", KeptFields(keep))
        assert batch.metas.to_pylist() == [meta]
    assert fields_of(tmp_path / "a.txt") == ({"file"}, True)


def test_all_fields_are_the_key_of_before_and_the_order_of_names_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    keys = {}
    for name, over in {
        "before": {},
        "all": {"keep_fields": None},
        "some": {"keep_fields": ("url", "raw")},
        "turned": {"keep_fields": ["raw", "url", "url"]},
        "none": {"keep_fields": []},
    }.items():
        source = source_of(str(path), **over)
        plan = plan_slice(config_of(source), source, None, tmp_path, FileDigests(None))
        assert plan is not None
        keys[name] = Request(ingest, plan.config, plan.inputs).key
    assert keys["before"] == keys["all"] and keys["some"] == keys["turned"]
    assert len(set(keys.values())) == 3


def test_a_column_that_is_left_behind_is_not_even_read(tmp_path: Path) -> None:
    """It may be damaged, no UTF-8, or too much for memory: it costs nothing."""
    raw = pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xff" * 90, b"b", b"c"], pa.binary()).buffers())
    other = pa.array([list(range(200))] * 3)
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["one", "two", "three"], "raw": raw, "other": other}), path, compression="none"
    )
    group = pq.read_metadata(path).row_group(0)
    data = bytearray(path.read_bytes())
    for index in (1, 2):
        column = group.column(index)
        begin = column.dictionary_page_offset or column.data_page_offset
        data[begin : begin + column.total_compressed_size] = b"\x00" * column.total_compressed_size
    path.write_bytes(data)
    (batch,) = read_unit(Unit(0, "a", "parquet", 0, path), "text", KeptFields(()))
    assert batch.texts.to_pylist() == ["one", "two", "three"] and not batch.faults
    assert any(batch.faults for batch in read_unit(Unit(0, "a", "parquet", 0, path), "text"))


def test_fields_that_are_kept_count_as_much_as_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_shard, "PIECE_BYTES", 150)
    rows = [{"text": f"text {n}", "wide": "w" * 60} for n in range(12)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    files = {}
    for keep in (None, ("wide",), ()):
        source = source_of("a.jsonl", keep_fields=keep)
        plan = plan_slice(config_of(source), source, None, tmp_path, FileDigests(None))
        assert plan is not None
        artifact = artifact_of(ingest, plan.config, plan.inputs, tmp_path / "store")
        files[keep] = [len(read_documents([path])) for path in artifact.part("documents").paths]
    assert files == {None: [12], ("wide",): [3, 3, 3, 3], (): [12]}


def test_the_fields_of_a_file_are_told_from_its_beginning(tmp_path: Path) -> None:
    for kind in KINDS:
        assert fields_of(write(tmp_path, kind)) == (set(ROWS[0]), kind == "parquet"), kind
    (tmp_path / "nan.jsonl").write_text('{"text": "a", "score": NaN}\nno json\n')
    assert fields_of(tmp_path / "nan.jsonl") == ({"text", "score"}, False)
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": "a" * 20_000, "late": 1}))
    assert fields_of(tmp_path / "long.jsonl") == (set(), False)


# ---- a file of documents, read in part ------------------------------------------------------------------------------


@given(
    rows=st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9), st.booleans()), max_size=40),
    group=st.integers(1, 12),
)
@settings(max_examples=60, deadline=None)
def test_kept_rows_are_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list, group: int
) -> None:
    path = tmp_path_factory.mktemp("kept") / "d" / "part.parquet"
    texts, metas = ([row[place] for row in rows] for place in (0, 1))
    columns = [list(range(len(rows))), ["a"] * len(rows), texts, metas]
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, DOCUMENTS, strict=True)], schema=DOCUMENTS)
    write_documents(path, table, row_group=group)
    keep = np.array([row[2] for row in rows], bool)
    assert read_kept(path, keep).equals(table.filter(pa.array(keep)))
    assert read_column(path, "text").to_pylist() == texts
    shout = pa.array([text.upper() for text, _, kept in rows if kept], pa.string())
    assert read_kept(path, keep, shout)["text"].to_pylist() == shout.to_pylist()


def test_a_growing_column_takes_slices_and_nothing() -> None:
    column = TextColumn()
    assert column.array().to_pylist() == []
    column = TextColumn()
    given = pa.array(["", "één", "two", "", "three", ""], pa.large_string())
    for start, length in ((0, 0), (1, 2), (3, 1), (4, 2), (0, 1)):
        column.add(given.slice(start, length))
    column.add(pa.array([], pa.large_string()))
    assert column.array().to_pylist() == ["één", "two", "", "three", "", ""]
