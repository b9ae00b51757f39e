"""A file that changes, goes or fails while it is read: that passes, and nothing of it is kept under its digest."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from storage.atomic import sha256_file
from storage.errors import StageFailed
from tasks.documents import worker
from tasks.documents.extract_shard import ExtractJob, SourceFile, read_shard
from tests.support.papers import pdf, zipped
from tests.support.read_here import EDITS, ReadsHere, answers


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
