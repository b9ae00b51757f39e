"""A file that changes, goes or fails while it is read: that passes, and nothing of it is kept under its digest."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.atomic import sha256_file
from storage.errors import StageFailed
from tasks.documents import worker
from tasks.documents.document import Document, Lost
from tasks.documents.extract_shard import ExtractJob, SourceFile, read_shard
from tests.support.papers import pdf, zipped


class ReadsHere:
    """Reads in this process: what a `Reader` does without its process."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> ReadsHere:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def read(self, path: Path, place: str) -> Iterator[Document | Lost]:
        for answer in answers(path, place):
            if "document" in answer:
                yield Document(**answer["document"] | {"pages": ()})
            elif "unopened" in answer:
                yield Lost(place, "other", "unreadable", answer["unopened"])
            elif "lost" in answer:
                yield Lost(**answer["lost"])
        while EDITS:
            EDITS.pop()(path)


EDITS: list[Any] = []


def answers(path: Path, place: str = "f") -> list[dict[str, Any]]:
    out, request = (
        io.BytesIO(),
        {"path": os.fspath(path), "place": place, "skip": 0, "limits": {}, "columns": {}},
    )
    worker._answer(request, out)
    out.seek(0)
    found = []
    while (one := worker.take(out)) is not None:
        found.append(one)
    return found


class Fails(io.FileIO):
    """A disk that gives the beginning of a file, and no more."""

    reads = 0

    def readinto(self, buffer: Any, /) -> Any:
        self.reads += 1
        if self.reads > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(buffer)


def job(path: Path) -> ExtractJob:
    return ExtractJob("notes", (SourceFile("f", str(path), path.stat().st_size, sha256_file(path)),))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.documents.extract_shard.Reader", ReadsHere)
    EDITS.clear()


def test_an_edit_of_the_same_size_is_no_text_of_the_old_file(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("first words")
    planned = job(file)
    assert read_shard(planned, tmp_path)["documents"] == 1
    file.write_text("other words")
    with pytest.raises(StageFailed, match="has changed since") as failed:
        read_shard(planned, tmp_path)
    assert failed.value.passing


@pytest.mark.parametrize("meanwhile", [os.unlink, lambda path: path.write_text("other words")])
def test_what_changes_while_it_is_read_passes(tmp_path: Path, meanwhile: Any):
    file = tmp_path / "a.txt"
    file.write_text("first words")
    EDITS.append(meanwhile)
    with pytest.raises(StageFailed) as failed:
        read_shard(job(file), tmp_path)
    assert failed.value.passing


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ESTALE, errno.EIO, errno.ENOENT])
def test_what_the_system_cannot_open_is_no_fate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int):
    file = tmp_path / "a.txt"
    file.write_text("first words")
    planned = job(file)

    def refuses(path: str) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(worker, "_opened", refuses)
    with pytest.raises(StageFailed, match="the next start tries again") as failed:
        read_shard(planned, tmp_path)
    assert failed.value.passing


@pytest.mark.parametrize(
    "data",
    [
        pdf([[(72, 700, "words")]]) + bytes(300_000),
        zipped({"a": os.urandom(300_000), "b.txt": "words"}),
        b"words " * 90000,
    ],
)
def test_a_disk_that_fails_is_no_damage_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
):
    file = tmp_path / "a"
    file.write_bytes(data)
    monkeypatch.setattr(worker, "_opened", Fails)
    assert answers(file)[-1] == {"unopened": os.strerror(errno.EIO)}
    with pytest.raises(StageFailed) as failed:
        read_shard(job(file), tmp_path)
    assert failed.value.passing
