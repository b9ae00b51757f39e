"""What no text needs is set aside with its reason: limits are lowered here, to be met by small files.

`tests/components/corpus/test_bombs.py` meets the real ones, and looks at memory.
"""

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

from storage.testing import artifact_of
from tasks.corpus import ingest
from tasks.corpus.ingest import FileDigests, plan_slice
from tasks.corpus.reading import ingest_shard, limits, streams
from tests.support.corpus.rows import read, reasons
from tests.support.corpus.sources import config_of, documents, source_of

GOOD = b'{"text":"a good line"}\n'
LONG = orjson.dumps({"text": "long " * 1000}) + b"\n"


@pytest.fixture(autouse=True)
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("TEXT_BYTES", 2000),
        ("LINE_BYTES", 4000),
        ("ARRAY_BYTES", 6000),
        ("PLAIN_JSON_BYTES", 500),
        ("JSON_VALUES", 100),
        ("ENDLESS_BYTES", 100_000),
        ("BATCH_BYTES", 60_000),
        ("PAGE_BYTES", 1_000_000),
        ("NESTED_VALUES", 10_000),
        ("HOPELESS_ROWS", 50),
        ("BATCH_ROWS", 7),
    ):
        monkeypatch.setattr(limits, name, value)
    monkeypatch.setattr(streams, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(streams, "_CHUNK", 300)


def written(path: Path, data: bytes) -> Path:
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_is_one_bad_row_among_good_ones(
    tmp_path: Path, name: str, end: bytes
) -> None:
    path = written(tmp_path / name, GOOD + LONG + GOOD * 3 + LONG + GOOD + LONG.strip() + end)
    texts, faults, _ = read(path)
    assert texts == ["a good line"] * 5
    assert [fault.row for fault in faults] == [1, 5, 7]
    assert [fault.detail.split(":")[1] for fault in faults] == ["2", "6", "8"]
    assert reasons(faults) == {"line_too_long": 3} and f"{len(LONG) - 1:,} bytes" in faults[0].detail


def test_a_line_of_many_spans_is_searched_for_once_and_what_follows_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "SPAN_BYTES", 700)
    path = written(tmp_path / "a.jsonl", GOOD + b"x" * 50_000 + b"\n" + GOOD * 40)
    texts, faults, _ = read(path)
    assert len(texts) == 41 and reasons(faults) == {"line_too_long": 1}
    looked = [streams.line_span(path, piece) for piece in range(streams.spans(path))]
    assert sum(start < (end or 0) for start, end in looked) == 3  # those in which a line begins


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst"])
def test_a_file_whose_line_never_ends_is_given_up(tmp_path: Path, name: str) -> None:
    texts, faults, _ = read(written(tmp_path / name, GOOD + b"\0" * 400_000 + GOOD))
    assert texts[:1] == ["a good line"] and "line_too_long" in reasons(faults)


def test_what_expands_beyond_all_text_is_given_up_and_repetitive_text_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repetitive = written(tmp_path / "r.jsonl.zst", GOOD * 4000)
    assert 92_000 / repetitive.stat().st_size > 1000 and len(read(repetitive)[0]) == 4000
    monkeypatch.setattr(limits, "ENDLESS_BYTES", 20_000)
    monkeypatch.setattr(limits, "EXPANSION", 100)
    assert reasons(read(repetitive)[1]) == {"expands_too_much": 1}


def test_a_window_beyond_the_limit_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=24)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packer.compress(GOOD) + packer.flush())
    assert read(path)[0] == ["a good line"]
    monkeypatch.setattr(limits, "WINDOW_LOG", 20)
    texts, faults, _ = read(path)
    assert not texts and reasons(faults) == {"window_too_large": 1} and "--long" in faults[0].detail


def test_a_row_of_many_values_is_set_aside_and_brackets_in_text_do_not_count(tmp_path: Path) -> None:
    wide = orjson.dumps({"text": "x", "more": [[]] * 400})
    code = orjson.dumps({"text": 'a[{,\\"' * 250})
    keys = orjson.dumps({"text": "x", **{f"k{n}": n for n in range(200)}})
    deep = b'{"text":"x","more":' + b"[" * 1900 + b"]" * 1900 + b"}"
    texts, faults, _ = read(written(tmp_path / "a.jsonl", b"\n".join([wide, code, keys, deep])))
    assert texts == ['a[{,\\"' * 250] and reasons(faults) == {"too_many_values": 3}


def test_a_text_is_set_aside_by_its_own_length_whatever_holds_it(tmp_path: Path) -> None:
    texts = ["short", "t" * 2001, "t" * 2000]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    lines = b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts)
    for path in (tmp_path / "a.parquet", written(tmp_path / "a.jsonl", lines)):
        found, faults, _ = read(path)
        assert found == ["short", "t" * 2000] and reasons(faults) == {"text_too_long": 1}
    for name in ("a.txt", "a.txt.gz"):
        found, faults, _ = read(written(tmp_path / name, b"word " * 401))
        assert not found and reasons(faults) == {"text_too_long": 1} and "split it" in faults[0].detail


def test_other_fields_have_a_limit_too(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "two"], "more": ["m" * 4001, "m"]})
    pq.write_table(table, tmp_path / "a.parquet")
    found, faults, _ = read(tmp_path / "a.parquet")
    assert found == ["two"] and reasons(faults) == {"row_too_long": 1}


@pytest.mark.parametrize("indent", [None, 1])
def test_a_large_array_is_read_element_by_element(tmp_path: Path, indent: int | None) -> None:
    rows = [{"text": f'{n} "]}}, {{[" \\', "more": [[n], {"n": "\\\\"}]} for n in range(300)]
    rows[7] = {"text": "t" * 5000, "more": []}
    texts, faults, metas = read(written(tmp_path / "a.json", json.dumps(rows, indent=indent).encode()))
    assert texts == [row["text"] for n, row in enumerate(rows) if n != 7]
    assert [meta["more"] for meta in metas] == [row["more"] for n, row in enumerate(rows) if n != 7]
    assert [(fault.row, fault.reason) for fault in faults] == [(7, "line_too_long")]
    cut = json.dumps(rows).encode()
    assert reasons(read(written(tmp_path / "cut.json", cut[:-2]))[1])["malformed_json"] == 1
    assert len(read(written(tmp_path / "more.json", cut + b"]"))[0]) == 299


def test_a_bad_file_is_given_up_before_it_fills_memory_with_reasons(tmp_path: Path) -> None:
    written(tmp_path / "bad.jsonl", GOOD * 20 + b"[]\n" * 5000)
    written(tmp_path / "half.jsonl", (GOOD + b"[]\n") * 300)
    source = source_of("*.jsonl")
    config = config_of(source, max_bad_fraction=1.0)
    plan = plan_slice(config, source, None, tmp_path, FileDigests(None))
    assert plan is not None
    made = artifact_of(ingest, config, plan.inputs, tmp_path / "store")
    assert made.stats["dropped_by_reason"]["too_many_bad_rows"] == 1
    assert made.stats["documents_out"] == 320 and 350 < made.stats["documents_dropped"] < 900


def test_files_of_documents_end_where_other_fields_or_rows_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PIECE_ROWS", 40)
    monkeypatch.setattr(limits, "PIECE_META_BYTES", 1000)
    rows = [{"text": "t", "more": "m" * (300 if n < 20 else 1)} for n in range(200)]
    written(tmp_path / "a.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in rows))
    source = source_of("a.jsonl")
    plan = plan_slice(config_of(source), source, None, tmp_path, FileDigests(None))
    assert plan is not None
    made = artifact_of(ingest, config_of(source), plan.inputs, tmp_path / "store")
    files = made.part("documents").paths
    assert documents([made]).num_rows == 200
    assert [pq.read_metadata(path).num_rows for path in files][:6] == [4] * 5 + [40]
    assert sum(len(row["text"]) for row in rows) < ingest_shard.PIECE_BYTES


def repeated(value: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([value]))


def test_a_value_that_a_dictionary_repeats_is_read_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENDLESS_BYTES", 10**8)
    pq.write_table(pa.table({"text": repeated("t" * 1500, 3000)}), tmp_path / "a.parquet")
    pq.write_table(
        pa.table({"text": ["t" * 1500] * 3000}),
        tmp_path / "delta.parquet",
        use_dictionary=False,
        column_encoding={"text": "DELTA_BYTE_ARRAY"},
    )
    for name in ("a.parquet", "delta.parquet"):
        sizes = [batch.nbytes for batch in batches(tmp_path / name)]
        assert len(sizes) > 50 and max(sizes) < 100_000, name
        assert read(tmp_path / name)[0] == ["t" * 1500] * 3000


def batches(path: Path) -> list[pa.RecordBatch]:
    from tasks.corpus.reading.parquet_pages import safe_rows

    with pq.ParquetFile(path) as file:
        return list(file.iter_batches(safe_rows(path, file, 0, 3000)))


@pytest.mark.parametrize("nested", ["zeros", "strings", "repeats", "page"])
def test_a_row_group_that_would_unpack_without_end_is_set_aside_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: str
) -> None:
    text = pa.array(["one text"] * 3000)
    if nested == "zeros":
        values = pa.array(np.zeros(300_000, "int8"))
        more = pa.ListArray.from_arrays(pa.array([0] + [300_000] * 3000, pa.int32()), values)
    elif nested == "strings":
        offsets = pa.array(range(3001), pa.int32())
        more = pa.ListArray.from_arrays(offsets, pa.array(["m" * 1000] * 3000))
    elif nested == "repeats":
        monkeypatch.setattr(limits, "EXPANSION", 50)
        more = repeated("m" * 1500, 3000)
    else:
        text, more = pa.array(["t" * 1_000_000]), pa.array(["m"])
    pq.write_table(pa.table({"text": text, "more": more}), tmp_path / "a.parquet", compression="zstd")
    found, faults, _ = read(tmp_path / "a.parquet")
    assert not found and [fault.value for fault in faults] == [len(text)]
    assert reasons(faults) == {"too_many_values" if nested == "zeros" else "expands_too_much": 1}


def test_ordinary_lists_and_dictionaries_are_read_in_full_batches(tmp_path: Path) -> None:
    lists = [[f"tag {n % 7}", "other"] for n in range(3000)]
    table = pa.table({"text": [f"text {n}" for n in range(3000)], "tags": lists, "mask": [[1] * 5] * 3000})
    pq.write_table(table, tmp_path / "a.parquet")
    texts, faults, metas = read(tmp_path / "a.parquet")
    assert len(texts) == 3000 and not faults and metas[9] == {"tags": lists[9], "mask": [1] * 5}
    assert len(batches(tmp_path / "a.parquet")) == 1
