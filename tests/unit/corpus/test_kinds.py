"""Kinds of files are told by their bytes: what is nothing that is read is refused in one sentence, before any work."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
import zstandard

from storage.errors import ConfigError
from tasks.corpus.reading.kinds import check_kinds, told
from tasks.corpus.reading.origins import _is_readable

LINE = b'{"text": "a line of text"}\n'
PRETTY = json.dumps({"text": "one"}, indent=2).encode()


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, "some content")
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        file.addfile(tarfile.TarInfo("a.txt"))
    return out.getvalue()


def arrow(write: Callable[[pa.Table, io.BytesIO], None]) -> bytes:
    out = io.BytesIO()
    write(pa.table({"text": ["one", "two"]}), out)
    return out.getvalue()


def stream(table: pa.Table, out: io.BytesIO) -> None:
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)


def numpy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.zeros(9))
    return out.getvalue()


HEADER = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
PARQUET = arrow(pq.write_table)
STRANGE: dict[str, tuple[bytes, str]] = {
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj", "PDF"),
    "pdf.jsonl": (b"%PDF-1.4\n%\xe2\xe3", "PDF"),
    "pdf.txt": (b"%PDF-1.4\n%\xe2\xe3", "PDF"),
    "a.html": (b"<!DOCTYPE html>\n<html><body>text</body></html>", "HTML"),
    "b.jsonl": (b"\n  <!-- made by hand -->\n<HTML lang=en>", "HTML"),
    "html.txt": (b"\xef\xbb\xbf<!doctype html><p>text", "HTML"),
    "page.jsonl.gz": (gzip.compress(b"<html><head>"), "HTML"),
    "a.xml": (b"<?xml version='1.0'?>\n<feed><entry/></feed>", "XML"),
    "a.csv": (b"id,text\n1,one\n2,two\n3,three\n", "CSV"),
    "b.csv": (b'text\n"one, with a comma"\n', "CSV"),
    "a.tsv": (b"id\ttext\n1\tone\n2\ttwo\n", "TSV"),
    "csv.jsonl": (b"id,text\n1,one\n2,two\n3,three\n", "CSV"),
    "a.csv.gz": (gzip.compress(b"id,text\n1,one\n2,two\n3,three\n"), "CSV"),
    "a.zip": (zipped("a.txt"), "zip archive"),
    "a.docx": (zipped("[Content_Types].xml", "word/document.xml"), "Word"),
    "a.xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel"),
    "a.pptx": (zipped("[Content_Types].xml", "ppt/presentation.xml"), "PowerPoint"),
    "a.pt": (zipped("archive/data.pkl"), "PyTorch"),
    "a.npz": (zipped("a.npy"), "NumPy"),
    "a.tar": (tarred(), "tar archive"),
    "a.tar.gz": (gzip.compress(tarred()), "tar archive"),
    "a.jsonl.tgz": (gzip.compress(tarred()), "tar archive"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c\0\4", "7z"),
    "a.rar": (b"Rar!\x1a\x07\x01\0", "RAR"),
    "a.jsonl.bz2": (bz2.compress(LINE), "bzip2"),
    "a.jsonl.xz": (lzma.compress(LINE), "xz"),
    "a.jsonl.lz4": (b"\x04\x22\x4d\x18\x64\x40", "LZ4"),
    "twice.jsonl.gz": (gzip.compress(gzip.compress(LINE)), "twice"),
    "a.parquet.gz": (gzip.compress(PARQUET), "compressed Parquet"),
    "a.png": (b"\x89PNG\r\n\x1a\n\0\0", "PNG"),
    "a.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
    "a.pickle": (pickle.dumps({"text": "one"}), "pickle"),
    "2.pickle": (pickle.dumps([1, "one"], protocol=2), "pickle"),
    "a.npy": (numpy(), "NumPy"),
    "a.safetensors": (len(HEADER).to_bytes(8, "little") + HEADER, "safetensors"),
    "a.arrow": (arrow(pa.feather.write_feather), "Arrow"),
    "stream.arrow": (arrow(stream), "Arrow stream"),
    "a.orc": (arrow(pa.orc.write_table), "ORC"),
    "a.avro": (b"Obj\x01\x04\x14avro.codec\x08null", "Avro"),
    "utf16.jsonl": (LINE.decode().encode("utf-16"), "UTF-16"),
    "bare.txt": (("words of a text " * 9).encode("utf-16-le"), "UTF-16"),
    "a.json": (PRETTY, "several lines"),
    "list.ipynb": (b'{\n "cells": [],\n "nbformat": 4\n}', "Jupyter"),
    "a.yaml": (b"---\ntext: one\nmore: two\n", "YAML"),
    "b.yml": (b"text: one\nmore: two\n", "YAML"),
    "program": (b"\x7fELF\x02\x01\x01" + bytes(40), "program"),
    "noise.txt": (bytes(range(256)) * 9, "binary"),
    "zeros.jsonl": (bytes(5000), "binary"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "lines.parquet": (LINE * 9, "not Parquet"),
    "words.jsonl": (b"Some words that are not JSON.\nAnd more.", "not JSON"),
    "README": (b"Some words, under no name that tells of text.\nAnd more words.\n", "call it .txt"),
    "a.warc.gz": (gzip.compress(b"WARC/1.0\r\nWARC-Type: response\r\n"), "WARC"),
    "old.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "Office"),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_file_is_refused_in_one_sentence_with_the_way_out(tmp_path: Path, name: str) -> None:
    data, what = STRANGE[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError) as failure:
        check_kinds("notes", (name,), tmp_path)
    message = str(failure.value)
    assert message.startswith(f"corpus.sources: notes: {name} is ") and what in message
    assert "\n" not in message and len(message) < 250


def test_an_sqlite_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("create table t (text)")
    with pytest.raises(ConfigError, match="SQLite"):
        check_kinds("notes", ("a.db",), tmp_path)


READ: dict[str, bytes] = {
    "a.jsonl": LINE,
    "a.ndjson.gz": gzip.compress(LINE),
    "gz.jsonl": gzip.compress(LINE),
    "zst.json": zstandard.compress(LINE),
    "parquet.jsonl": PARQUET,
    "plain.jsonl.gz": LINE,
    "array.json": b' [\n {"text": "one"}\n]',
    "unnamed": LINE,
    "lines.csv": LINE,
    "bom.jsonl": b"\xef\xbb\xbf" + LINE,
    "long.jsonl": b'{"text": "' + b"w" * 70_000 + b'"}\n',
    "some.jsonl": b"no JSON\n[1, 2]\n" + LINE,
    "nulls.jsonl": LINE + b'{"text": "\0\0\0\0\0\0"}\n' * 3,
    "truncated.jsonl": b'{"text": "a line that',
    "table.md": b"| a | b |\n| - | - |\n| 1 | 2 |\n",
    "csv.txt": b"id,text\n1,one\n2,two\n3,three\n",
    "script.txt": b"#!/bin/sh\necho text\n",
    "words.txt": b"ORC and Obj and PK are words; BZh too.",
    "begins.md": b"<p align=center>\n\n# Title\n",
    "latin.txt": "Fu\u00df und Stra\u00dfe, caf\u00e9".encode("latin-1"),
    "japanese.txt": "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0".encode("shift-jis"),
    "escapes.txt": b"\x1b[1mbold\x1b[0m\x0c\n" * 50,
    "ascii.txt": b"ID3 tags and WAVE files",
    "cut.jsonl.gz": gzip.compress(LINE * 99)[:30],
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_not_refused_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(READ[name])
    check_kinds("notes", (name,), tmp_path)


def test_real_documents_are_told_and_real_corpora_pass(shared_data: Path) -> None:
    for directory in ("edu", "general", "dirty", "licences"):
        check_kinds("notes", (f"{directory}/*[!h].[!j]*", f"{directory}/*.jsonl*"), shared_data)
    with pytest.raises(ConfigError) as failure:
        check_kinds("notes", ("documents/pdf/*", "documents/html/*"), shared_data)
    assert "11 of 12 files cannot be read" in str(failure.value)
    assert "arabic.pdf" in str(failure.value) and "and 8 more are each a PDF document" in str(failure.value)
    for name in ("archive", "epub", "office", "tables", "warc", "wiki"):
        with pytest.raises(ConfigError):
            check_kinds("notes", (f"documents/{name}/*",), shared_data)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_bytes(LINE)
    (tmp_path / "plain").mkdir()
    check_kinds("notes", ("*",), tmp_path)
    (tmp_path / "x.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    for name, what in (
        ("x.jsonl", "directory"),
        ("pipe.jsonl", "named pipe"),
        ("gone.jsonl", "link to a file that is not there"),
        ("/dev/null", "device"),
    ):
        with pytest.raises(ConfigError, match=what):
            check_kinds("notes", (name,), tmp_path)
    with pytest.raises(ConfigError, match="3 of 4 files cannot be read"):
        check_kinds("notes", ("*.jsonl",), tmp_path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE)

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ConfigError, match="a.jsonl is not readable .Permission denied."):
        check_kinds("notes", ("a.jsonl",), tmp_path)


def test_empty_files_are_refused_only_where_all_are_empty(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl.gz"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ConfigError, match="all 2 files are empty"):
        check_kinds("notes", ("*",), tmp_path)
    (tmp_path / "c.jsonl").write_bytes(LINE)
    check_kinds("notes", ("*",), tmp_path)


def test_any_beginning_of_a_file_is_told_without_an_error() -> None:
    random = np.random.default_rng(3)
    heads = [data for data, _ in STRANGE.values()] + list(READ.values())
    for data in heads:
        for cut in random.integers(0, len(data) + 1, 8):
            noise = bytes(random.integers(0, 256, 30, "uint8"))
            found = (told(data[:cut], ".jsonl", whole=True), told(data[:cut] + noise, "", whole=False))
            assert all(one is None or all(one) for one in found), "what it is, and the way out"


def test_programs_are_text_here_and_load_a_dataset_on_the_hub() -> None:
    for suffix in (".py", ".rs", ".tex", ".md"):
        assert told(b"x = 1\ny = 2\n", suffix, whole=True) is None
    assert not _is_readable("loader.py") and not _is_readable("paper.tex") and _is_readable("card.md")
