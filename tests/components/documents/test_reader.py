"""The process that reads: what hangs it, ends it or takes its memory is one entry with its reason."""

from __future__ import annotations

import gzip
import os
import signal
import threading
from pathlib import Path

import psutil

from tasks.documents.document import Document, Lost
from tasks.documents.limits import Limits
from tasks.documents.reader import Reader, read_files
from tests.support.papers import docx, pdf, word, zipped


def test_documents_come_as_they_are_read_here(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(
        zipped({"x": docx(word("words")), "y": pdf([[(72, 700, "more words")]]), "z": b"\x89PNG\r\n\x1a\n"})
    )
    with Reader() as reader:
        first, second, third = reader.read(tmp_path / "a.zip", "a.zip")
    assert isinstance(first, Document) and (first.place, first.text, first.meta["title"]) == (
        "a.zip!x",
        "words",
        "A title",
    )
    assert isinstance(second, Document) and second.pages[0].number == 1
    assert third == Lost("a.zip!z", "other", "image", "it is an image (PNG)")


def test_a_file_that_hangs_is_given_up_and_the_next_is_read(tmp_path: Path):
    os.mkfifo(tmp_path / "hangs")
    (tmp_path / "b").write_text("words")
    with Reader(Limits(silence_seconds=3)) as reader:
        assert [one.reason for one in reader.read(tmp_path / "hangs") if isinstance(one, Lost)] == [
            "timed_out"
        ]
        assert [one.text for one in reader.read(tmp_path / "b") if isinstance(one, Document)] == ["words"]


def test_a_process_that_is_killed_costs_one_file(tmp_path: Path):
    os.mkfifo(tmp_path / "waits")
    (tmp_path / "b").write_text("words")
    with Reader() as reader:
        assert list(reader.read(tmp_path / "b"))
        assert reader.pid is not None
        killer = threading.Timer(0.2, os.kill, (reader.pid, signal.SIGKILL))
        killer.start()
        (lost,) = reader.read(tmp_path / "waits", "waits")
        killer.join()
        assert lost == Lost("waits", "other", "crashed", "the process that read it ended by SIGKILL")
        assert [one.text for one in reader.read(tmp_path / "b") if isinstance(one, Document)] == ["words"]


def test_memory_is_bounded_and_the_rest_of_an_archive_is_read(tmp_path: Path):
    large = gzip.compress(bytes(range(32, 127)) * 2_500_000, 1)
    (tmp_path / "a.zip").write_bytes(zipped({"large.gz": large, "small": "words"}))
    with Reader(Limits(memory_bytes=600_000_000)) as reader:
        found = list(reader.read(tmp_path / "a.zip", "a"))
    reasons = [(one.place, one.reason if isinstance(one, Lost) else one.text) for one in found]
    assert reasons == [("a!large.gz", "too_much_memory"), ("a!small", "words")]


def test_many_files_come_in_their_order(tmp_path: Path):
    for n in range(20):
        (tmp_path / str(n)).write_text(f"words {n}")
    paths = [(tmp_path / name, name) for name in (*map(str, range(20)), "absent")]
    found = list(read_files(paths, 2))
    assert [place for place, one in found if one is None] == [place for _, place in paths]
    assert [one.text for _, one in found if isinstance(one, Document)] == [f"words {n}" for n in range(20)]
    assert [one.reason for place, one in found if isinstance(one, Lost) and place == "absent"] == [
        "unreadable"
    ]


def test_who_stops_in_the_middle_leaves_no_process(tmp_path: Path):
    (tmp_path / "a").write_bytes(zipped({str(n): f"words {n}" for n in range(200)}))
    before = set(psutil.Process().children())
    files = read_files([(tmp_path / "a", "a"), (tmp_path / "a", "b")], 2)
    assert isinstance(next(files)[1], Document)
    files.close()  # type: ignore[attr-defined]
    assert set(psutil.Process().children()) == before


def test_a_name_that_is_of_no_encoding_is_read(tmp_path: Path):
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("words")
    with Reader() as reader:
        (found,) = reader.read(path)
    assert isinstance(found, Document)
    assert (found.text, found.place) == ("words", f"{tmp_path}/caf\ufffd.txt")
