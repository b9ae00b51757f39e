"""The stage `extract`: every file has a fate, what breaks a process is a row, and a killed run ends with the same bytes."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from storage.artifact import Artifact
from storage.store import Making, Request, Store
from storage.workers import Workers
from tasks.corpus.reading.digests import FileDigests
from tasks.corpus.reading.hub import Remembered
from tasks.corpus.reading.sources import IngestConfig, SourceConfig
from tasks.documents import extract
from tasks.documents.extract_shard import ExtractJob, SourceFile, read_shard
from tasks.documents.limits import Limits
from tasks.documents.shelves import shelves_of
from tests.support import ROOT
from tests.support.papers import docx, epub, pdf, word, zipped

SENTENCE = "This is a sentence in English that says something about the weather. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("papers")
    (path / "sub").mkdir()
    (path / "a.pdf").write_bytes(pdf([[(72, 700, SENTENCE)], []], images=True))
    (path / "scan.pdf").write_bytes(pdf([[]], images=True))
    (path / "cut.pdf").write_bytes(pdf([[(72, 700, SENTENCE)]])[:200])
    (path / "book").write_bytes(epub([f"<p>{SENTENCE * 30}</p>", f"<p>{SENTENCE * 20}</p>"]))
    (path / "sub" / "b.zip").write_bytes(
        zipped({"x.txt": docx(word(SENTENCE * 9)), "y": b"\x89PNG\r\n\x1a\n", "z": docx(word("short"))[:90]})
    )
    (path / "page.html").write_text(
        f"<html><head><title>A page</title></head><body><nav>menu</nav><main><p>{SENTENCE * 9}</p></main></body></html>"
    )
    (path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for number in range(6):
        (path / f"note {number}.md").write_text(f"# Note {number}\n\n{SENTENCE * 5}")
    return path


def request(folder: Path) -> Request:
    source = SourceConfig(name="notes", role="domain", weight=1, files=("**",))
    shelves = shelves_of(IngestConfig.of(source, slice_bytes=10**9, seed=0), source, folder, Remembered(None))
    assert shelves is not None and len(shelves.names) == 1
    inputs = extract.extract_inputs(shelves, 0, FileDigests(None))
    return Request(extract, extract.ExtractConfig(name="notes"), inputs)


def rows(made: Artifact, part: str) -> list[dict[str, Any]]:
    return [
        row for path in made.part(part).paths for row in pq.read_table(path, partitioning=None).to_pylist()
    ]


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = Store(tmp_path_factory.mktemp("store"))
    found = store.ensure(request(folder), Making()).artifact
    assert store.verify(found) == []
    return found


def test_every_file_and_page_has_a_fate(made: Artifact):
    fates = {(row["place"], row["page"]): row["reason"] for row in rows(made, "fates")}
    assert fates[("a.pdf", None)] is None and fates[("a.pdf", 1)] is None and fates[("a.pdf", 2)] == "no_text"
    assert fates[("scan.pdf", None)] == "no_text" and fates[("cut.pdf", None)] == "damaged"
    assert fates[("book", None)] is None and fates[("book", 2)] is None
    assert fates[("sub/b.zip!x.txt", None)] is None and fates[("sub/b.zip!y", None)] == "image"
    assert fates[("sub/b.zip!z", None)] == "damaged" and fates[("c.png", None)] == "image"
    assert {row["file"] for row in rows(made, "fates")} == {
        one["name"] for one in made.manifest.inputs["files"]
    }


def test_documents_carry_what_their_files_say(made: Artifact):
    documents = {
        meta["file"]: (row["text"], meta)
        for row in rows(made, "documents")
        for meta in [json.loads(row["meta"])]
    }
    assert len(documents) == 10
    text, meta = documents["book"]
    assert meta == {
        "file": "book",
        "kind": "epub",
        "title": "A book",
        "author": "Ann",
        "language": "en",
        "pages": 2,
    }
    text, meta = documents["page.html"]
    assert meta["title"] == "A page" and text.strip() == (SENTENCE * 9).strip()
    fate = next(row for row in rows(made, "fates") if (row["place"], row["page"]) == ("book", 2))
    assert documents["book"][0][fate["begin"] : fate["end"]].strip() == (SENTENCE * 20).strip()


def test_counts_and_dropped_add_up(made: Artifact):
    stats = made.stats
    assert (stats["documents_in"], stats["documents_out"], stats["documents_dropped"]) == (15, 10, 5)
    assert stats["dropped_by_reason"] == {"damaged": 2, "image": 2, "no_text": 1}
    assert stats["pages_dropped_by_reason"] == {"no_text": 1} and stats["pages"] == 3
    dropped = rows(made, "dropped")
    assert sorted(row["reason"] for row in dropped) == ["damaged", "damaged", "image", "image", "no_text"]
    assert all(row["stage"] == "extract" and row["id"] is None for row in dropped)
    assert any(row["detail"].startswith("sub/b.zip!y: it is an image") for row in dropped)
    samples = json.loads(made.part("samples").only().read_bytes())
    assert "<nav>menu</nav>" in samples["html"]["before"] and "menu" not in samples["html"]["after"]
    assert samples["epub"]["before"] is None and samples["epub"]["pages"] == 2


def test_files_that_hang_or_end_the_process_are_read_twice_and_cost_themselves(tmp_path: Path):
    os.mkfifo(tmp_path / "hangs")
    (tmp_path / "b").write_text(SENTENCE * 4)
    files = tuple(
        SourceFile(name, str(tmp_path / name), (tmp_path / name).stat().st_size) for name in ("hangs", "b")
    )
    found = read_shard(ExtractJob("notes", files, Limits(silence_seconds=4)), tmp_path)
    assert found["dropped"] == {"timed_out": 1} and found["documents"] == 1
    fates = pq.read_table(tmp_path / "fates.parquet").to_pylist()
    assert [(row["place"], row["reason"]) for row in fates] == [("hangs", "timed_out"), ("b", None)]


def broken(kinds: dict[str, bytes]) -> dict[str, bytes]:
    """Each file whole, cut at three places, and with bytes turned at three places."""
    rng = random.Random(5)
    found = dict(kinds)
    for name, data in kinds.items():
        for at in range(3):
            found[f"cut {at} {name}"] = data[: rng.randrange(1, len(data))]
            turned = bytearray(data)
            for _ in range(1 + len(data) // 50):
                turned[rng.randrange(len(data))] = rng.randrange(256)
            found[f"turned {at} {name}"] = bytes(turned)
    return found


def test_every_broken_file_has_a_fate_and_none_ends_the_stage(tmp_path: Path, shared_data: Path):
    pages = [[(72.0, 700.0 - 14 * n, SENTENCE) for n in range(9)]]
    html = f"<html><body><p>{SENTENCE * 9}</p></body></html>".encode()
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as tar:
        entry = tarfile.TarInfo("a.html")
        entry.size = len(html)
        tar.addfile(entry, io.BytesIO(html))
    kinds = {
        "pdf": pdf(pages),
        "docx": docx(word(SENTENCE * 9)),
        "epub": epub([f"<p>{SENTENCE * 9}</p>"] * 2),
        "html": html,
        "zip": zipped({"a.html": html, "b.pdf": pdf(pages)}),
        "tar.xz": archive.getvalue(),
        "gz": gzip.compress(html),
        "rtf": b"{\\rtf1\\ansi " + SENTENCE.encode() * 9 + b"}",
        "eml": b"From: a@b.c\nTo: d@e.f\nSubject: rain\nDate: Mon, 1 Jan 2024 00:00:00 +0000\n\n"
        + SENTENCE.encode() * 9,
        "warc": b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 4\r\n\r\nHTTP",
        "tex": b"\\documentclass{article}\n\\begin{document}\n"
        + SENTENCE.encode() * 9
        + b"\n\\end{document}",
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, data in broken(kinds).items():
        (folder / name).write_bytes(data)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as zipping:
        zipping.writestr("deep.zip", zipped({"zeros.txt": b"\0" * 300_000_000}))
    (folder / "bomb.zip").write_bytes(bomb.getvalue())
    shutil.copy(shared_data / "documents" / "pdf" / "password.pdf", folder)
    found = Store(tmp_path / "store").ensure(request(folder), Making()).artifact
    fates = rows(found, "fates")
    files = {one["name"] for one in found.manifest.inputs["files"]}
    assert files == {row["file"] for row in fates} and len(files) > 70
    reasons = {row["place"]: row["reason"] for row in fates if row["page"] is None}
    assert reasons["password.pdf"] == "encrypted" and all(
        reasons.get(name, "") is None for name in ("pdf", "docx", "epub")
    )
    assert reasons["bomb.zip!deep.zip!zeros.txt"] in ("too_large", "empty")
    assert not {"crashed", "timed_out", "too_much_memory"} & set(found.stats["dropped_by_reason"])
    assert found.stats["documents_in"] == found.stats["documents_out"] + found.stats["documents_dropped"]
    assert found.stats["documents_dropped"] == len(rows(found, "dropped"))


def test_a_killed_run_ends_with_the_same_bytes(folder: Path, made: Artifact, tmp_path: Path):
    command = [sys.executable, "-m", "tests.support.extracting", str(folder), str(tmp_path / "store")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((tmp_path / "store" / ".work").glob("extract-*/documents/*")), "some shards are there"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert "resumed" in again.stdout
    (found,) = Store(tmp_path / "store").artifacts("extract")
    # its shards are smaller, so it is compared by what is in it
    for part in ("documents", "fates", "dropped"):
        assert rows(found, part) == rows(made, part)
    assert {n: p.digest for n, p in found.manifest.parts.items() if n != "documents"} == {
        n: p.digest for n, p in made.manifest.parts.items() if n != "documents"
    }


def test_workers_give_the_same_bytes(folder: Path, made: Artifact, tmp_path: Path):
    with Workers(2) as workers:
        found = Store(tmp_path / "store").ensure(request(folder), Making(workers=workers)).artifact
    assert {n: p.digest for n, p in found.manifest.parts.items()} == {
        n: p.digest for n, p in made.manifest.parts.items()
    }
