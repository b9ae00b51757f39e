"""Bytes of an external file in chunks, decompressed according to its first bytes. A broken end is reported as a fault.

gzip files may have several members, and zstd files several frames. Everything that decompresses before a fault is
returned.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from tasks.corpus.reading.remote import RemoteFile

BLOCK_BYTES = 8 << 20
SPAN_BYTES = 16 << 20
"""Uncompressed JSON-lines files are read in spans of this size, so that a seeded order also mixes large files."""

_CHUNK = 1 << 20
_COMPRESSED_CHUNK = 1 << 16
_SAMPLE = 4 << 16
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes([0x50 + n, 0x2A, 0x4D, 0x18]) for n in range(16))


class Stream:
    """An open file. Iterating yields its bytes. If the end cannot be reached, `fault` is (reason, message) afterwards."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.fault: tuple[str, str] | None = None
        self.magic = magic = file.read(4)
        file.seek(0)
        self.empty = not magic
        self.gzip = magic.startswith(_GZIP)
        self.zstd = magic == _ZSTD or magic in _ZSTD_SKIPPABLE
        self.plain = not (self.gzip or self.zstd)
        self._start = 0
        self._end: int | None = None
        head = self._head()
        self.utf16 = head.startswith((b"\xff\xfe", b"\xfe\xff"))
        self.array = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["

    @property
    def divisible(self) -> bool:
        """Whether reading can start in the middle of the file: not compressed, UTF-8, and not one JSON array."""
        return self.plain and not self.utf16 and not self.array

    def read_from(self, start: int, end: int | None = None) -> None:
        """Limit iteration to the (uncompressed) bytes from `start` on, up to `end` if given."""
        self._start, self._end = start, end

    def __iter__(self) -> Iterator[bytes]:
        self.fault = None
        if self.plain:
            yield from self._plain()
            return
        skip = self._start
        for chunk in self._decompressed():
            if skip >= len(chunk):
                skip -= len(chunk)
            else:
                yield chunk[skip:]
                skip = 0

    def _head(self) -> bytes:
        head = next(iter(self), b"")[:4096]
        self.file.seek(0)
        self.fault = None
        return head

    def _plain(self) -> Iterator[bytes]:
        self.file.seek(self._start)
        left = None if self._end is None else self._end - self._start
        while left is None or left > 0:
            chunk = self.file.read(_CHUNK if left is None else min(_CHUNK, left))
            if not chunk:
                return
            if left is not None:
                left -= len(chunk)
            yield chunk

    def _decompressed(self) -> Iterator[bytes]:
        self.file.seek(0)
        start: Callable[[], Any]
        if self.gzip:
            kind, start = "gzip", lambda: zlib.decompressobj(wbits=31)
        else:
            kind, start = "zstd", lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        decoder, used = start(), False  # `used`: this member or frame has begun
        data = self.file.read(_COMPRESSED_CHUNK)
        while data:
            if decoder.eof:
                decoder, used = start(), False
                if self.gzip and not data.strip(b"\0"):  # padding, as tar and tapes leave it
                    data = self.file.read(_COMPRESSED_CHUNK)
                    continue
            used = True
            try:
                chunk = decoder.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                self.fault = ("unreadable_file", f"the {kind} data is damaged ({error})")
                return
            if chunk:
                yield chunk
            data = (decoder.unused_data if decoder.eof else b"") or self.file.read(_COMPRESSED_CHUNK)
        if used and not decoder.eof:
            self.fault = ("truncated_file", f"the {kind} data ends early")


@contextlib.contextmanager
def opened(path: Path | RemoteFile) -> Iterator[Stream]:
    """Open a file as a `Stream`."""
    with path.open("rb") as file:
        yield Stream(file)


def blocks(stream: Stream) -> Iterator[bytes]:
    """Blocks of whole lines, each of about `BLOCK_BYTES`, or one longer line. Only the last may lack its newline."""
    pending: list[bytes] = []
    size = 0
    for chunk in stream:
        size += len(chunk)
        if size >= BLOCK_BYTES and (end := chunk.rfind(b"\n") + 1):
            yield b"".join([*pending, chunk[:end]])
            chunk = chunk[end:]
            pending, size = [], len(chunk)
        pending.append(chunk)
    if size:
        yield b"".join(pending)


def spans(path: Path | RemoteFile) -> int:
    """Number of units in a file of lines: spans of `SPAN_BYTES` if the file is divisible, else one."""
    with opened(path) as stream:
        if stream.divisible:
            return max(1, -(-path.stat().st_size // SPAN_BYTES))
    return 1


def uncompressed_size(path: Path | RemoteFile) -> int:
    """Estimated uncompressed size of a file: its size times the compression ratio of its first 256 KiB."""
    size, given = path.stat().st_size, 0
    with opened(path) as stream:
        for chunk in stream:
            given += len(chunk)
            if stream.file.tell() >= _SAMPLE:
                break
        return size * given // max(1, min(size, stream.file.tell()))


def line_span(path: Path | RemoteFile, piece: int) -> tuple[int, int | None]:
    """Byte range of the lines that begin in span `piece` of an uncompressed file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = _line_start(file, piece * SPAN_BYTES, size)
        end = _line_start(file, (piece + 1) * SPAN_BYTES, size)
    return start, end


def _line_start(file: BinaryIO, position: int, size: int) -> int:
    """The first byte at or after `position` at which a line begins; `size` if there is none."""
    if position == 0 or position >= size:
        return min(position, size)
    file.seek(position - 1)
    at = position - 1
    while chunk := file.read(_CHUNK):
        found = chunk.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(chunk)
    return size
