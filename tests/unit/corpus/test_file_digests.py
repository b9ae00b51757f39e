"""The digests of source files: remembered by times that no program can set, and only once the file has settled."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from storage.atomic import sha256_file
from tasks.corpus.reading import digests
from tasks.corpus.reading.digests import FileDigests, _settled


@pytest.mark.parametrize("written", [-86400 * 400, 0, 3600, 86400 * 400])
def test_a_file_that_changed_is_read_again_whatever_its_time_of_writing(
    tmp_path: Path, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 0.05)
    file, cache = tmp_path / "a.jsonl", tmp_path / "cache.sqlite"
    moment = time.time_ns() + written * 10**9

    def write(content: bytes) -> None:
        file.write_bytes(content)
        os.utime(file, ns=(moment, moment))

    write(b"good")
    FileDigests(cache).sha256(file)
    assert not cache.exists(), "it may change again within the same tick of the clock"
    time.sleep(0.1)
    good = FileDigests(cache).sha256(file)
    assert cache.exists()
    write(b"evil")
    assert FileDigests(cache).sha256(file) == sha256_file(file) != good


def test_a_clock_that_was_set_back_makes_no_file_unsettled_for_long() -> None:
    now = time.time()
    assert [_settled(now - ago) for ago in (0, 1, 3, 1e9)] == [False, False, True, True]
    assert not _settled(now + 5), "the clock of a file server may be ahead"
    assert _settled(now + 3600), "a change from now on has another time"
