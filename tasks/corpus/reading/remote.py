"""A file of a dataset on the hub, read by byte ranges like a local file.

It has a path's `open`, `stat` and `suffixes`. Reading uses blocks of at most `BLOCK_BYTES`, so memory stays flat for
any file. Each block is one request; it is repeated after a pause if the connection breaks, the hub answers 5xx or no
byte arrives for a while. From a Parquet file only its ends and one row group are fetched. They are written at their
own offsets into a sparse file (`spooled`), so that the readers of local files can read it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from storage.atomic import write_bytes
from storage.errors import StageFailed
from tasks.corpus.reading.hub import asked

BLOCK_BYTES = 8 << 20
RETRIES = 6
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
"""After a failed request the client waits 1, 2, 4, 8, 16 and 30 s (or as long as the hub asks): about a minute in all,
then it raises an error."""
SILENCE_SECONDS = 30.0
"""A connection without a byte for this long counts as broken."""

_FIRST_BLOCK = 1 << 18
_TAIL_BYTES = 1 << 16
_MOST_FOOTER_BYTES = 1 << 28
_MAGIC = b"PAR1"


class Missing(OSError):
    """The commit lists the file, but the hub does not have it."""


@dataclass(frozen=True)
class RemoteFile:
    """One file at one commit. `kept`: a directory that caches the ends of Parquet files."""

    dataset: str
    commit: str
    name: str
    size: int
    kept: str | None = None

    def __str__(self) -> str:
        return f"{self.dataset}@{self.commit[:12]}/{self.name}"

    @property
    def suffixes(self) -> list[str]:
        """As `Path.suffixes`."""
        return PurePosixPath(self.name).suffixes

    def stat(self) -> SimpleNamespace:
        """The file's size, as `st_size`."""
        return SimpleNamespace(st_size=self.size)

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open for reading bytes, from the beginning or after `seek`."""
        return cast(BinaryIO, io.BufferedReader(_Blocks(self), 1 << 16))

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), which must lie in the file, by one request.

        Raises Missing if the hub has no such file, ConfigError if it refuses the file, HubUnreachable if every attempt
        failed, StageFailed if it returned other bytes than requested.
        """
        if start >= end:
            return b""
        response = asked(
            lambda: self._request(start, end), "dataset", self.dataset, self.commit, f"reading {self}"
        )
        if _is_missing(response):
            raise Missing(f"the hub has no such file at commit {self.commit[:12]}")
        content: bytes = response.content
        if response.status_code == 200 and len(content) == self.size:  # the server ignored the range
            content = content[start:end]
        if len(content) != end - start:
            raise StageFailed(
                f"reading {self}: the hub returned {len(content):,} bytes instead of the requested {end - start:,} "
                f"(from byte {start:,} of {self.size:,}). What was read before is kept",
                passing=True,
            )
        return content

    def _request(self, start: int, end: int) -> Any:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        response = http_backoff(
            "GET",
            hf_hub_url(self.dataset, self.name, repo_type="dataset", revision=self.commit),
            headers={
                **build_hf_headers(),
                "Range": f"bytes={start}-{end - 1}",
                "Accept-Encoding": "identity",
            },
            timeout=SILENCE_SECONDS,
            max_retries=RETRIES,
            base_wait_time=FIRST_WAIT_SECONDS,
            max_wait_time=LONGEST_WAIT_SECONDS,
        )
        if not _is_missing(response):
            hf_raise_for_status(response)
        return response


def _is_missing(response: Any) -> bool:
    """Whether only the file is missing. A missing repository or revision is a different error."""
    of_repository = response.headers.get("X-Error-Code") in ("RepoNotFound", "RevisionNotFound", "GatedRepo")
    return response.status_code in (404, 410) and not of_repository


class _Blocks(io.RawIOBase):
    """A raw stream over ranges of a file. Blocks grow during sequential reading, and start small after a jump."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0
        self._begin, self._block = 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._file.size:
            return 0
        end = self._begin + len(self._block)
        if not self._begin <= self._at < end:
            size = min(BLOCK_BYTES, 4 * len(self._block)) if self._at == end else _FIRST_BLOCK
            self._begin = self._at
            self._block = self._file.read(self._at, min(self._at + max(size, _FIRST_BLOCK), self._file.size))
        piece = self._block[self._at - self._begin : self._at - self._begin + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


@contextlib.contextmanager
def spooled(file: RemoteFile, group: int | None, directory: Path) -> Iterator[Path]:
    """A local sparse file of the same size: a Parquet file's ends and one row group, each at its own offset."""
    path = directory / f".remote-{hashlib.sha256(str(file).encode()).hexdigest()[:16]}.parquet"
    head, tail = _ends(file)
    try:
        with path.open("wb") as out:
            out.truncate(file.size)
            out.write(head)
            out.seek(file.size - len(tail))
            out.write(tail)
            out.flush()
            begin, end = _span(path, group) if group is not None else (0, 0)
            out.seek(begin)
            for start in range(begin, end, BLOCK_BYTES):
                out.write(file.read(start, min(end, start + BLOCK_BYTES)))
        yield path
    finally:
        path.unlink(missing_ok=True)


def keep_ends(file: RemoteFile) -> None:
    """Fetch the ends of a Parquet file once, for all later readers of its row groups."""
    if file.kept is None or _kept(file).is_file():
        return
    head, tail = _ends(file)
    _kept(file).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(_kept(file), head.ljust(4, b"\0") + tail)


def _kept(file: RemoteFile) -> Path:
    assert file.kept is not None
    return (
        Path(file.kept)
        / f"{hashlib.sha256(f'{file.dataset}@{file.commit}/{file.name}'.encode()).hexdigest()}.ends"
    )


def _ends(file: RemoteFile) -> tuple[bytes, bytes]:
    """The first four bytes, and the footer with what follows it. If there is no footer: the last 64 KiB."""
    if file.kept is not None and _kept(file).is_file():
        data = _kept(file).read_bytes()
        return data[: min(4, file.size)], data[4:]
    tail = file.read(max(0, file.size - _TAIL_BYTES), file.size)
    if tail.endswith(_MAGIC) and len(tail) >= 8:
        wanted = min(int.from_bytes(tail[-8:-4], "little") + 8, file.size)
        if len(tail) < wanted <= _MOST_FOOTER_BYTES:
            tail = file.read(file.size - wanted, file.size - len(tail)) + tail
        else:
            tail = tail[-wanted:] if wanted <= len(tail) else tail
    return file.read(0, min(4, file.size)), tail


def _span(path: Path, group: int) -> tuple[int, int]:
    """The byte range of a row group; empty if the footer does not tell."""
    try:
        with pq.ParquetFile(path) as parquet:
            if group >= parquet.num_row_groups:
                return 0, 0
            row_group = parquet.metadata.row_group(group)
            columns = [row_group.column(index) for index in range(row_group.num_columns)]
    except (pa.ArrowException, OSError):
        return 0, 0
    size = path.stat().st_size
    begins = [_begin(column) for column in columns]
    ends = [begin + column.total_compressed_size for begin, column in zip(begins, columns, strict=True)]
    begin, end = (
        min(begins, default=0),
        max(ends, default=0) + 100,
    )  # old writers leave the headers out of the size
    return (begin, min(end, size)) if 0 <= begin < end else (0, 0)


def _begin(column: Any) -> int:
    dictionary = column.dictionary_page_offset
    first: int = column.data_page_offset
    return min(first, dictionary) if dictionary else first
