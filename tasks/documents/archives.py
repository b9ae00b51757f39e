"""What is in an archive, one entry after the other, never more at once than one entry, and never more than the limits."""

from __future__ import annotations

import bz2
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from tasks.documents.document import Unreadable

CALLED = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}
_CHUNK = 1 << 20
_IGNORED = ("__MACOSX/", ".git/")
DAMAGE = (
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    OSError,
    NotImplementedError,
)
"""What the libraries raise for damaged data."""


class Counted(io.RawIOBase):
    """A file read forward only. `count` is told of every number of bytes that come out, and may raise."""

    def __init__(self, read: Callable[[int], bytes], count: Callable[[int], None]) -> None:
        super().__init__()
        self._read, self._count = read, count

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(min(len(buffer), _CHUNK))
        self._count(len(data))
        buffer[: len(data)] = data
        return len(data)


def unpacked(kind: str, file: BinaryIO, count: Callable[[int], None]) -> BinaryIO:
    """The bytes of a compressed file, as a file."""
    reader: Any
    if kind == "gz":
        reader = _Members(file, lambda: zlib.decompressobj(wbits=31))
    elif kind == "bz2":
        reader = _Members(file, bz2.BZ2Decompressor)
    elif kind == "xz":
        reader = _Members(file, lambda: lzma.LZMADecompressor(memlimit=256 << 20))
    else:
        reader = _Members(file, _Zstd)
    return io.BufferedReader(Counted(_told(reader.read, CALLED[kind]), count), 1 << 16)


def _told(read: Callable[[int], bytes], name: str) -> Callable[[int], bytes]:
    """A reader that says of damaged data what they are."""

    def reading(size: int) -> bytes:
        try:
            return read(size)
        except EOFError as error:
            raise Unreadable("damaged", f"the {name} data end early") from error
        except DAMAGE as error:
            raise Unreadable("damaged", f"the {name} data are damaged ({error})") from error

    return reading


class _Zstd:
    """A frame of zstd with the methods of the standard library's decompressors.

    Its own reader takes a cut frame for a whole one. It has no limit for what comes out, so little goes in at a time: 1 KiB
    are at most 256 blocks of 128 KiB.
    """

    _FEED = 1 << 10

    def __init__(self) -> None:
        self._decoder: Any = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        self.unconsumed_tail = b""
        self.unused_data = b""

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    def decompress(self, data: bytes, size: int) -> bytes:
        found = bytes(self._decoder.decompress(data[: self._FEED]))
        rest = data[self._FEED :]
        self.unconsumed_tail, self.unused_data = (
            (b"", bytes(self._decoder.unused_data) + rest) if self.eof else (rest, b"")
        )
        return found


class _Members:
    """Reads compressed members one after another, never more than asked for. Ends early: raises EOFError."""

    def __init__(self, file: BinaryIO, start: Callable[[], Any]) -> None:
        self._file, self._start = file, start
        self._decoder = start()
        self._data = b""
        self._begun = False
        self._waiting = b""

    def read(self, size: int) -> bytes:
        if not self._waiting:
            self._waiting = self._next(size)
        found, self._waiting = self._waiting[:size], self._waiting[size:]
        return found

    def _next(self, size: int) -> bytes:
        while True:
            if self._decoder.eof:
                self._data = self._decoder.unused_data or self._file.read(1 << 16)
                if not self._data.strip(b"\0"):
                    return b""
                self._decoder, self._begun = self._start(), False
            waiting = getattr(self._decoder, "unconsumed_tail", b"") or self._data
            needs = getattr(self._decoder, "needs_input", True)
            if not waiting and needs:
                waiting = self._file.read(1 << 16)
                if not waiting:
                    if self._begun:
                        raise EOFError("the data ends early")
                    return b""
            self._data = b""
            self._begun = True
            found: bytes = self._decoder.decompress(waiting, size)
            if found:
                return found


def zip_entries(
    file: BinaryIO,
) -> Iterator[tuple[str, Callable[[Callable[[int], None]], BinaryIO] | Unreadable]]:
    """Name and opener of each file in a zip, in its order; an Unreadable for one that has a password."""
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Unreadable("damaged", f"the zip cannot be opened ({error})") from error
    with archive:
        for entry in entries:
            if entry.is_dir() or entry.filename.startswith(_IGNORED) or entry.filename.endswith(".DS_Store"):
                continue
            if entry.flag_bits & 1:
                yield entry.filename, Unreadable("encrypted", "the file in the zip has a password")
                continue

            def opened(count: Callable[[int], None], entry: zipfile.ZipInfo = entry) -> BinaryIO:
                stream = archive.open(entry)
                return io.BufferedReader(Counted(_told(stream.read, "zip"), count), 1 << 16)

            yield entry.filename, opened


def tar_entries(file: BinaryIO) -> Iterator[tuple[str, BinaryIO]]:
    """Name and content of each regular file in a tar. Links, devices and folders are passed over."""
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for entry in archive:
                if entry.isreg() and not entry.name.endswith(".DS_Store"):
                    stream = archive.extractfile(entry)
                    if stream is not None:
                        yield entry.name, stream  # type: ignore[misc]
    except (tarfile.TarError, EOFError) as error:
        raise Unreadable("damaged", f"the tar ends early or is damaged ({error})") from error
