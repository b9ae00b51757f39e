"""What a reader makes of files from outside, sound and broken: every row is a document or a fault, never lost."""

from __future__ import annotations

import gzip
import json
import math
import unicodedata
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tasks.corpus.reading import limits, streams
from tasks.corpus.reading.batches import Fault, Unit
from tasks.corpus.reading.kinds import refusal
from tasks.corpus.reading.readers import read_unit
from tests.support.corpus.rows import read, reasons


def lines(faults: list[Fault]) -> list[int]:
    return [int(fault.detail.split(":")[1]) for fault in faults]


@pytest.fixture(scope="session")
def bad(shared_data: Path) -> Path:
    return shared_data / "bad"


@pytest.fixture(scope="session")
def expected(bad: Path) -> dict:
    return json.loads((bad / "expected.json").read_text())


# name in data/bad → documents, reasons; the figures that expected.json gives too are checked against it below
FOUND: dict[str, tuple[int, dict[str, int]]] = {
    "binary_text.parquet": (49, {"invalid_utf8": 1}),
    "bitflip.parquet": (0, {"no_text_column": 1}),
    "bom_crlf.jsonl": (10, {}),
    "case_columns.parquet": (0, {"no_text_column": 1}),
    "duplicate_ids.jsonl": (9, {}),
    "empty_docs.jsonl": (1, {"empty_text": 4, "missing_text": 2}),
    "gz_without_suffix.jsonl": (100, {}),
    "huge_no_spaces.jsonl.gz": (1, {}),
    "huge_single_line.jsonl.gz": (2, {}),
    "invalid_utf8.jsonl": (2, {"invalid_utf8": 5}),
    "json_array.json": (10, {}),
    "malformed.jsonl": (24, {"malformed_json": 11, "not_an_object": 4, "text_not_string": 3}),
    "multi_frame.jsonl.zst": (100, {}),
    "multi_member.jsonl.gz": (100, {}),
    "not_really.jsonl.gz": (3, {"malformed_json": 1}),
    "null_bytes.jsonl": (1, {"null_byte": 3}),
    "nulls_int_ids_nested.parquet": (45, {"missing_text": 5}),
    "odd names/part 0 (copy) ünïcode.jsonl": (51, {}),
    "truncated.jsonl.gz": (66, {"truncated_file": 1}),
    "truncated.jsonl.zst": (0, {"truncated_file": 1}),
    "truncated.parquet": (0, {"truncated_file": 1}),
    "utf16.jsonl": (0, {"invalid_utf8": 1}),
    "wrong_column.parquet": (0, {"no_text_column": 1}),
    "zero_bytes.jsonl": (0, {"empty_file": 1}),
    "zero_bytes.jsonl.gz": (0, {"empty_file": 1}),
    "zero_bytes.jsonl.zst": (0, {"empty_file": 1}),
    "zero_bytes.parquet": (0, {"empty_file": 1}),
    "zero_rows.parquet": (0, {}),
}


@pytest.mark.parametrize("name", FOUND)
def test_every_broken_file_gives_what_a_correct_reader_finds(bad: Path, name: str) -> None:
    texts, faults, _ = read(bad / name)
    assert (len(texts), reasons(faults)) == FOUND[name]
    assert all(fault.detail.startswith(Path(name).name) for fault in faults)


def test_no_broken_file_is_left_out_here(bad: Path, expected: dict) -> None:
    present = {str(path.relative_to(bad)) for path in bad.rglob("*") if path.is_file()} - {"expected.json"}
    raw = {name for name in present if name.startswith("raw_encodings/")}
    assert present - raw == set(FOUND)
    assert set(expected) - {"raw_encodings/*"} <= set(FOUND)


def test_figures_agree_with_those_of_the_data(bad: Path, expected: dict) -> None:
    for name, said in expected.items():
        if "good" in said and name in FOUND:
            assert FOUND[name][0] == said["good"], name
    assert lines(read(bad / "invalid_utf8.jsonl")[1]) == expected["invalid_utf8.jsonl"]["bad_lines"]
    assert FOUND["empty_docs.jsonl"][0] == expected["empty_docs.jsonl"]["docs_with_nonblank_text"]
    assert FOUND["duplicate_ids.jsonl"][0] == expected["duplicate_ids.jsonl"]["lines"]
    nested = expected["nulls_int_ids_nested.parquet"]
    assert FOUND["nulls_int_ids_nested.parquet"][0] == nested["rows"] - nested["null_text"]
    suspects = {int(line) for line in expected["malformed.jsonl"]["suspect_lines"]}
    faulty = set(lines(read(bad / "malformed.jsonl")[1]))
    # Python's NaN, a repeated key, and an integer of 5,000 digits: the last two are JSON
    assert suspects - faulty == {8, 24, 38}
    assert faulty <= suspects
    assert max(map(len, read(bad / "huge_single_line.jsonl.gz")[0])) == 9_000_000


def test_the_right_column_is_read_when_named(bad: Path) -> None:
    assert len(read(bad / "wrong_column.parquet", "content")[0]) == 50
    assert len(read(bad / "case_columns.parquet", "Text")[0]) == 50
    texts, faults, _ = read(bad / "bitflip.parquet", "content")
    assert reasons(faults) == {"unreadable_file": 1}
    assert faults[0].value == 50 - len(texts)


def test_text_files_that_are_not_utf8_are_set_aside(bad: Path) -> None:
    for path in sorted((bad / "raw_encodings").iterdir()):
        try:
            wanted = [path.read_bytes().decode("utf-8-sig")]
        except UnicodeDecodeError:
            wanted = []
        texts, faults, _ = read(path)
        assert texts == wanted
        assert reasons(faults) == ({} if wanted else {"invalid_utf8": 1}), path.name


def test_repeated_keys_line_separators_and_big_numbers(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(
        b'{"text":"first","text":"second"}\n'
        b'{"text":"a\xe2\x80\xa8b\xc2\x85c","n":18446744073709551616}\r\n'
        b'\n   \n{"text":"x","n":1e999,"m":1}\n{"text":"y","deep":' + b"[" * 400 + b"]" * 400 + b"}"
    )
    texts, faults, metas = read(path)
    assert texts == ["second", "a\u2028b\u0085c", "x", "y"]
    assert not faults
    assert metas[2] == {"n": "1e999", "m": 1}


NO_NUMBERS = b"""{"text": "one", "score": NaN, "deep": {"a": [Infinity, {"b": -Infinity}, 1e999]}}
{"text": "NaN and Infinity", "n": 18446744073709551616}
{"text": NaN, "n": 1}
{"text": Infinity}
{"text": [NaN]}
NaN
{"text": "nan", "n": nan}
{"text": "five", "NaN": "NaN", "n": - Infinity}
{"text": "six", "n": NaN} {"text": "seven"}
{"text": "last", "NaN": "NaN"}"""
"""What Python's `json.dump` writes of numbers that are none, and what only looks like it."""


@pytest.mark.parametrize("kind", ["jsonl", "gz", "zst", "array", "long array", "array.gz"])
def test_numbers_that_python_writes_and_json_has_not_are_null(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = NO_NUMBERS.split(b"\n")
    if "array" in kind:  # what is no JSON in any spelling would not be an array
        rows = [row for number, row in enumerate(rows) if number not in (6, 7, 8)]
    data = b"[" + b",\n".join(rows) + b"]" if "array" in kind else b"\n".join(rows)
    if kind == "long array":
        monkeypatch.setattr(limits, "ARRAY_BYTES", 100)
    packed = {"gz": gzip.compress, "zst": zstandard.compress}.get(kind.removeprefix("array."), bytes)(data)
    (tmp_path / "a.jsonl").write_bytes(packed)
    assert refusal(tmp_path / "a.jsonl") is None
    texts, faults, metas = read(tmp_path / "a.jsonl")
    assert texts == ["one", "NaN and Infinity", "last"]
    assert metas == [
        {"score": None, "deep": {"a": [None, {"b": None}, "1e999"]}},
        {"n": 18446744073709551616},
        {"NaN": "NaN"},
    ]
    not_json = {} if "array" in kind else {"malformed_json": 3}
    assert reasons(faults) == {"missing_text": 2, "text_not_string": 1, "not_an_object": 1, **not_json}


def test_a_file_of_which_every_line_holds_such_a_number_is_told_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    path.write_text("".join(json.dumps({"text": f"text {n}", "score": math.nan}) + "\n" for n in range(9)))
    assert refusal(path) is None
    texts, faults, metas = read(path)
    assert len(texts) == 9 and not faults and metas == [{"score": None}] * 9


def test_meta_keeps_the_other_fields_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"z": 1, "text": "one", "a": {"é": [true, null]}, "id": "7"}\n', encoding="utf-8")
    (batch,) = read_unit(Unit(0, "a", "lines", 0, path), "text")
    assert batch.metas.to_pylist() == ['{"z":1,"a":{"é":[true,null]},"id":"7"}']


def test_parquet_columns_of_every_kind_become_json(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["one", "two"],
            "real": [math.nan, 0.1],
            "when": pa.array([datetime(2020, 1, 2, tzinfo=UTC)] * 2, pa.timestamp("us", tz="UTC")),
            "list": [[1, None], []],
            "word": pa.array(["a", None]).dictionary_encode(),
            "big": pa.array([2**64 - 1, 0], pa.uint64()),
        }
    )
    pq.write_table(table, tmp_path / "plain.parquet")
    _, _, metas = read(tmp_path / "plain.parquet")
    assert [metas[0][name] for name in ("real", "list", "word", "big")] == [None, [1, None], "a", 2**64 - 1]
    assert metas[0]["when"].startswith("2020-01-02T00:00:00")
    assert list(metas[0]) == ["real", "when", "list", "word", "big"]

    table = table.append_column("raw", pa.array([b"\xff\x00", None])).append_column(
        "nested", pa.array([{"b": b"x"}, None])
    )
    pq.write_table(table, tmp_path / "binary.parquet")
    texts, faults, metas = read(tmp_path / "binary.parquet")
    assert texts == ["one", "two"] and not faults
    assert metas[0]["raw"] == "\\xff\x00" and metas[0]["nested"] == {"b": "x"} and metas[1]["real"] == 0.1


def test_parquet_types_that_have_no_json_do_not_stop_a_file(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": ["one"],
            "exact": pa.array([Decimal("1.25")], pa.decimal256(50, 2)),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "far": pa.array([2 * 10**14], pa.timestamp("s")),
            "half": pa.array([math.nan], pa.float16()),
        }
    )
    pq.write_table(table, tmp_path / "odd.parquet")
    _, faults, (meta,) = read(tmp_path / "odd.parquet")
    assert not faults and list(meta) == ["exact", "map", "far", "half"]
    assert meta["exact"] == "1.25" and meta["half"] is None


def test_invalid_utf8_in_a_string_column_costs_its_row_alone(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe", b"good", b"last"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    other = pa.Array.from_buffers(
        pa.string(), 4, pa.array([b"a", b"b", b"\xc3", b"d"], pa.binary()).buffers()
    )
    pq.write_table(pa.table({"text": text, "other": other}), tmp_path / "a.parquet")
    texts, faults, _ = read(tmp_path / "a.parquet")
    assert texts == ["fine", "last"]
    assert [(fault.row, fault.reason) for fault in faults] == [(1, "invalid_utf8"), (2, "invalid_utf8")]


def test_a_text_column_of_numbers_is_refused_with_its_type(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    texts, faults, _ = read(tmp_path / "a.parquet")
    assert not texts and faults[0].reason == "text_not_string" and "int64" in faults[0].detail


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_truncated_file_keeps_what_came_before(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = [orjson.dumps({"text": rng.bytes(600).hex(), "n": n}) for n in range(3000)]
    data = b"\n".join(rows) + b"\n"
    packed = gzip.compress(data) if kind == "gz" else zstandard.compress(data)
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(packed[: len(packed) // 2])
    texts, faults, metas = read(path)
    assert 1000 < len(texts) < 2000
    assert [meta["n"] for meta in metas] == list(range(len(texts)))
    assert reasons(faults) == {"truncated_file": 1}
    assert f"{len(texts)} rows before it are kept" in faults[0].detail


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_damaged_file_is_reported(tmp_path: Path, kind: str) -> None:
    data = b"".join(orjson.dumps({"text": f"row {n}"}) + b"\n" for n in range(20000))
    packed = bytearray(
        gzip.compress(data) if kind == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)
    )
    packed[len(packed) // 2] ^= 0xFF
    path = tmp_path / f"a.jsonl.{kind}"
    path.write_bytes(packed)
    assert "unreadable_file" in reasons(read(path)[1])


def test_members_frames_and_padding_are_all_read(tmp_path: Path) -> None:
    one, two = b'{"text":"one"}\n', b'{"text":"two"}\n'
    (tmp_path / "a.gz").write_bytes(gzip.compress(one) + gzip.compress(two) + b"\0" * 100)
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    (tmp_path / "a.zst").write_bytes(zstandard.compress(one) + skippable + zstandard.compress(two))
    for name in ("a.gz", "a.zst"):
        texts, faults, _ = read(tmp_path / name)
        assert texts == ["one", "two"] and not faults, name


def test_a_damaged_row_group_costs_that_group_alone(tmp_path: Path) -> None:
    texts = [f"document {n} " * 50 for n in range(300)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts}), path, row_group_size=100, write_page_checksum=True)
    middle = pq.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[(middle.dictionary_page_offset or middle.data_page_offset) + middle.total_compressed_size // 2] ^= (
        0xFF
    )
    path.write_bytes(data)
    kept, faults, _ = read(path)
    assert kept == texts[:100] + texts[200:]
    assert reasons(faults) == {"unreadable_file": 1} and faults[0].value == 100


LINE = st.one_of(
    st.builds(lambda text: orjson.dumps({"text": text, "n": 1}), st.text(max_size=30)),
    st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b" ")),
    st.sampled_from([b"", b"  ", b"[]", b'{"text": null}', b'{"text": 3}', b"null", b'{"text":"a"}\r']),
)


@given(
    rows=st.lists(LINE, max_size=40), span=st.integers(1, 200), block=st.integers(1, 100), ends=st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_every_line_is_found_once_however_the_file_is_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[bytes], span: int, block: int, ends: bool
) -> None:
    data = b"\n".join(rows) + (b"\n" if ends else b"")
    other_kinds = (b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"PAR1", b"\x28\xb5\x2f\xfd")
    assume(not data.startswith(other_kinds) and data.lstrip()[:1] != b"[")
    path = tmp_path_factory.mktemp("cut") / "a.jsonl"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "SPAN_BYTES", span)
        patch.setattr(streams, "BLOCK_BYTES", block)
        patch.setattr(streams, "_CHUNK", 7)
        texts, faults, _ = read(path)
    body = data.removeprefix(b"\xef\xbb\xbf")
    filled = [line for line in body.split(b"\n") if line and not line.isspace()]
    assert len(texts) + sum(fault.row is not None for fault in faults) == len(filled)
    assert texts == [text for line in filled if (text := text_of(line)) is not None]


def text_of(line: bytes) -> str | None:
    """The text of a line that is a document, by the plainest means."""
    try:
        value = json.loads(line.decode())
        text = value.get("text") if isinstance(value, dict) else None
    except ValueError:
        return None
    if not isinstance(text, str) or "\0" in text:
        return None
    visible = (not char.isspace() and unicodedata.category(char) not in ("Cc", "Cf") for char in text)
    return text if any(visible) else None
