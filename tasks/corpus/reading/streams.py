"""Bytes of an external file in chunks, decompressed according to its first bytes. A broken end is reported as a fault.

gzip files may have several members, and zstd files several frames. Everything that decompresses before a fault is
returned. Memory stays flat, whatever a file unpacks to: data is decompressed in pieces of at most `_PIECE`, a line longer
than `LINE_BYTES` is passed over, and what expands without end is given up (limits.py).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from tasks.corpus.reading import limits
from tasks.corpus.reading.limits import megabytes
from tasks.corpus.reading.remote import RemoteFile

BLOCK_BYTES = 8 << 20
SPAN_BYTES = 16 << 20
"""Uncompressed JSON-lines files are read in spans of this size, so that a seeded order also mixes large files."""

_CHUNK = 1 << 20
_COMPRESSED_CHUNK = 1 << 16
_PIECE = 32 << 20
_ZSTD_FEED = 1 << 10
"""So many bytes are at most 256 blocks of zstd, and a block gives at most 128 KiB: together one `_PIECE`."""
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
        kind = "gzip" if self.gzip else "zstd"
        start: Callable[[], _Gzip | _Zstd] = _Gzip if self.gzip else _Zstd
        decoder, used, given = start(), False, 0  # `used`: this member or frame has begun
        data = self.file.read(_COMPRESSED_CHUNK)
        while data:
            if decoder.eof:
                decoder, used = start(), False
                if self.gzip and not data.strip(b"\0"):  # padding, as tar and tapes leave it
                    data = self.file.read(_COMPRESSED_CHUNK)
                    continue
            used = True
            try:
                for chunk in decoder.pieces(data):
                    yield chunk
                    given += len(chunk)
                    if given > max(limits.ENDLESS_BYTES, limits.EXPANSION * self.file.tell()):
                        self.fault = (
                            "expands_too_much",
                            f"{self.file.tell():,} bytes of {kind} unpack to more than {megabytes(given)}, "
                            f"{limits.EXPANSION:,} times as much, which no text does; the rest is not read",
                        )
                        return
            except (zlib.error, zstandard.ZstdError) as error:
                self.fault = _damage(kind, error)
                return
            data = decoder.rest or self.file.read(_COMPRESSED_CHUNK)
        if used and not decoder.eof:
            self.fault = ("truncated_file", f"the {kind} data ends early")


class _Gzip:
    """One gzip member."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def rest(self) -> bytes:
        """What follows the member in the data that were given last."""
        return self._decoder.unused_data if self.eof else b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What the data unpack to, in pieces of at most `_PIECE`."""
        while data and not self.eof:
            if chunk := self._decoder.decompress(data, _PIECE):
                yield chunk
            data = self._decoder.unconsumed_tail


class _Zstd:
    """One zstd frame."""

    def __init__(self) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=1 << limits.WINDOW_LOG)
        self._decoder: Any = decompressor.decompressobj()
        self._after = b""

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    @property
    def rest(self) -> bytes:
        """What follows the frame in the data that were given last."""
        return bytes(self._decoder.unused_data) + self._after if self.eof else b""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What the data unpack to, as one piece, or in several of at most twice `_PIECE`.

        The decoder has no limit for its output, so it is given little at a time. An error loses what the data gave
        before it, up to one piece.
        """
        made, size = list[bytes](), 0
        for begin in range(0, len(data), _ZSTD_FEED):
            chunk = self._decoder.decompress(data[begin : begin + _ZSTD_FEED])
            made.append(chunk)
            size += len(chunk)
            self._after = data[begin + _ZSTD_FEED :] if self.eof else b""
            if size and (size >= _PIECE or self.eof or begin + _ZSTD_FEED >= len(data)):
                yield b"".join(made)
                made, size = [], 0
            if self.eof:
                return


def _damage(kind: str, error: Exception) -> tuple[str, str]:
    if "too much memory" in str(error):
        return (
            "window_too_large",
            f"its zstd window is larger than {1 << (limits.WINDOW_LOG - 20)} MiB; unpack it with zstd -d --long=31, "
            "and compress it again without --long",
        )
    return "unreadable_file", f"the {kind} data is damaged ({error})"


@contextlib.contextmanager
def opened(path: Path | RemoteFile) -> Iterator[Stream]:
    """Open a file as a `Stream`."""
    with path.open("rb") as file:
        yield Stream(file)


@dataclass(frozen=True)
class LongLine:
    """A line longer than `LINE_BYTES`. `size`: its bytes without the newline; `ended`: whether a newline follows."""

    size: int
    ended: bool


def blocks(stream: Stream) -> Iterator[bytes | LongLine]:
    """Blocks of whole lines, each of about `BLOCK_BYTES`, or one longer line. Only the last may lack its newline.

    After `ENDLESS_BYTES` without a newline the stream gets a fault and nothing more is read of it.
    """
    pending: list[bytes] = []
    size = passed = 0  # `passed`: bytes of a long line that were let go
    for chunk in stream:
        if passed:
            end = chunk.find(b"\n")
            if end < 0:
                passed += len(chunk)
                if passed > limits.ENDLESS_BYTES:
                    message = f"no line ends within {megabytes(passed)}, and reading stops there"
                    stream.fault = ("line_too_long", message)
                    return
                continue
            yield LongLine(passed + end, ended=True)
            chunk, passed = chunk[end + 1 :], 0
        size += len(chunk)
        if size >= BLOCK_BYTES and (end := chunk.rfind(b"\n") + 1):
            yield b"".join([*pending, chunk[:end]])
            chunk = chunk[end:]
            pending, size = [], len(chunk)
        pending.append(chunk)
        if size > limits.LINE_BYTES:
            held = b"".join(pending)
            if end := held.rfind(b"\n") + 1:
                yield held[:end]
            size = len(held) - end
            pending = [held[end:]]
            if size > limits.LINE_BYTES:
                pending, size, passed = [], 0, size
    if passed:
        yield LongLine(passed, ended=False)
    elif size:
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
            if stream.file.tell() >= _SAMPLE or given >= limits.ENDLESS_BYTES:
                break
        return size * given // max(1, min(size, stream.file.tell()))


def line_span(path: Path | RemoteFile, piece: int) -> tuple[int, int | None]:
    """Byte range of the lines that begin in span `piece` of an uncompressed file; empty if none begins there.

    Only a span in which a line begins is looked beyond: a line of many spans is not searched through for each of them.
    """
    size = path.stat().st_size
    begin, following = piece * SPAN_BYTES, (piece + 1) * SPAN_BYTES
    with path.open("rb") as file:
        start = _line_start(file, begin, size, following)
        if start >= min(following, size):
            return start, start
        return start, _line_start(file, following, size, size)


def _line_start(file: BinaryIO, position: int, size: int, limit: int) -> int:
    """The first byte at or after `position` at which a line begins; at least `limit` if there is none before it."""
    if position == 0 or position >= size:
        return min(position, size)
    file.seek(position - 1)
    at = position - 1
    while at < limit and (chunk := file.read(_CHUNK)):
        found = chunk.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(chunk)
    return max(at, limit) if at < size else size
