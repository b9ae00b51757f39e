"""The sha256 of files that were read, remembered by device, inode, size and times, so that a second reader pays nothing.

`<store>/.digests` is a text file to which each process appends a line for each file that it read:

    <device> <inode> <size> <mtime> <ctime> <sha256> <crc32 of all before>        a file, times in nanoseconds
    manifest <stage>/<key> <device> <inode> <sha256> <crc32 of all before>        a manifest of 0.1.0, which covers nothing

What must stay true: nothing here makes bytes good. A remembered digest is compared with the one that a manifest names,
and a line that is not what was written (cut off, a flipped byte) counts as absent. A file that changes gets another
change time, which no program can set; so it is read again. The file may be removed at any time. Bytes that rot on the
disk without being written keep all times: `onward verify` reads everything, and so does the search for a crash's cause.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage.atomic import write_bytes
from storage.lock import Lock

NAME = ".digests"
MOST_BYTES = 32 << 20
"""Size at which the file is written anew, with the newest half of what is known."""
_BLOCK = 1 << 20
_SMALL = 4 << 20
_THREADS = max(2, min(8, os.cpu_count() or 1))
_COARSE = 5  # CLOCK_REALTIME_COARSE: the clock that file systems take times from

Mark = tuple[int, int, int]
"""Size, and times of the last write and the last change, in nanoseconds."""


class Digests:
    """The digests that are known in a store. Safe to use from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hashed_bytes = 0
        """Bytes that this process has read for a digest."""
        self.hashed_seconds = 0.0
        self._files: dict[tuple[int, int], tuple[Mark, str]] = {}
        self._manifests: dict[tuple[str, int, int], str] = {}
        self._read = (0, 0)  # inode, and how far it was read
        self._lock = threading.RLock()

    def of(self, paths: Sequence[Path], *, fresh: bool = False) -> list[str]:
        """The sha256 of files, as far as possible from memory; with `fresh`, every byte is read. Raises OSError."""
        self._learn()
        found: dict[Path, str] = {}
        for path in dict.fromkeys(paths):
            if not fresh and (known := self._known(path.stat())) is not None:
                found[path] = known
        missing = [path for path in dict.fromkeys(paths) if path not in found]
        if missing:
            began = time.perf_counter()
            big = sum(path.stat().st_size for path in missing) > _SMALL and len(missing) > 1
            if big:
                with ThreadPoolExecutor(_THREADS) as pool:
                    read = list(pool.map(_hashed, missing))
            else:
                read = [_hashed(path) for path in missing]
            self.hashed_seconds += time.perf_counter() - began
            self.hashed_bytes += sum(mark.st_size for mark, _, _ in read)
            found |= {path: digest for path, (_, digest, _) in zip(missing, read, strict=True)}
            self._note([(mark, digest) for mark, digest, steady in read if steady])
        return [found[path] for path in paths]

    def suspect(self, facts: os.stat_result, digest: str) -> bool:
        """Whether the file was read before, and had another digest then, or was changed since (if only its permissions)."""
        self._learn()
        known = self._files.get((facts.st_dev, facts.st_ino))
        return known is not None and known != (_mark(facts), digest)

    def remember(self, made: Iterable[tuple[Path, str]]) -> None:
        """Remember what this process has just written and hashed. Waits for the clock's next tick (4 ms)."""
        with contextlib.suppress(OSError):
            facts = [(path.stat(), digest) for path, digest in made]
            if facts:
                _wait_past(max(one.st_ctime_ns for one, _ in facts))  # a later change has another time
                self._note(facts)

    def manifest(self, name: str, facts: os.stat_result, digest: str) -> bool:
        """Whether a manifest that covers nothing is as it was first seen. A first sight is remembered."""
        self._learn()
        place = (name, facts.st_dev, facts.st_ino)
        if place not in self._manifests:
            with self._lock:
                self._manifests[place] = digest
            self._append([f"manifest {name} {facts.st_dev} {facts.st_ino} {digest}"])
        return self._manifests[place] == digest

    def _known(self, facts: os.stat_result) -> str | None:
        known = self._files.get((facts.st_dev, facts.st_ino))
        return known[1] if known is not None and known[0] == _mark(facts) else None

    def _note(self, read: Sequence[tuple[os.stat_result, str]]) -> None:
        with self._lock:
            for facts, digest in read:
                self._files[facts.st_dev, facts.st_ino] = (_mark(facts), digest)
        self._append(
            [
                f"{facts.st_dev} {facts.st_ino} {' '.join(map(str, _mark(facts)))} {digest}"
                for facts, digest in read
            ]
        )

    def _append(self, lines: list[str]) -> None:
        """One write. It begins with a line end, in case another process was killed within a line."""
        text = "\n" + "".join(f"{line} {zlib.crc32(line.encode()):08x}\n" for line in lines)
        with contextlib.suppress(OSError):  # a full disk, or a store that cannot be written to
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)

    def _learn(self) -> None:
        """Read what was appended since."""
        with self._lock, contextlib.suppress(OSError):
            facts = self.path.stat()
            inode, at = self._read
            at = at if inode == facts.st_ino and at <= facts.st_size else 0
            if at < facts.st_size:
                with self.path.open("rb") as file:
                    file.seek(at)
                    content = file.read()
                end = content.rfind(b"\n") + 1
                for line in content[:end].split(b"\n"):
                    self._take(line)
                at += end
            self._read = (facts.st_ino, at)
            if facts.st_size > MOST_BYTES:
                self._write_anew()

    def _take(self, line: bytes) -> None:
        """Take a line, if it is what was written."""
        text, _, check = line.rpartition(b" ")
        with contextlib.suppress(ValueError):
            if not text or zlib.crc32(text) != int(check, 16) or len(check) != 8:
                return
            if text.startswith(b"manifest "):
                _, name, device, inode, digest = text.decode().split(" ")
                self._manifests.setdefault((name, int(device), int(inode)), digest)
                return
            device, inode, size, written, changed, digest = text.decode().split(" ")
            self._files.pop((int(device), int(inode)), None)  # the newest last
            self._files[int(device), int(inode)] = ((int(size), int(written), int(changed)), digest)

    def _write_anew(self) -> None:
        """Write the file with what is known, and forget the older half. A process that appends meanwhile loses a line."""
        lock = Lock(self.path.with_name(f"{NAME}.lock"))
        if not lock.try_acquire():
            return
        try:
            newest = list(self._files.items())[-MOST_BYTES // 400 :]
            self._files = dict(newest)
            lines = [
                f"{device} {inode} {' '.join(map(str, mark))} {digest}"
                for (device, inode), (mark, digest) in newest
            ]
            lines += [
                f"manifest {' '.join(map(str, place))} {digest}" for place, digest in self._manifests.items()
            ]
            text = "".join(f"{line} {zlib.crc32(line.encode()):08x}\n" for line in lines)
            write_bytes(self.path, text.encode())
            self._read = (self.path.stat().st_ino, len(text.encode()))
        finally:
            lock.release()


def _mark(facts: os.stat_result) -> Mark:
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def _hashed(path: Path) -> tuple[os.stat_result, str, bool]:
    """A file's facts and sha256, and whether it surely had these bytes at that time."""
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        _wait_past(before.st_ctime_ns)
        digest, block = hashlib.sha256(), bytearray(min(_BLOCK, before.st_size + 1))
        view = memoryview(block)
        while count := file.readinto(block):
            digest.update(view[:count])
        after = os.fstat(file.fileno())
    return after, digest.hexdigest(), _mark(before) == _mark(after)


def _wait_past(moment: int) -> None:
    """Wait until a file that changes now gets a time after `moment`. Clocks of other machines are not waited for."""
    deadline = time.monotonic() + 0.05
    while _tick() <= moment and time.monotonic() < deadline:
        time.sleep(0.001)


def _tick() -> int:
    try:
        return time.clock_gettime_ns(_COARSE)
    except OSError:  # no Linux
        return time.time_ns() - 10_000_000
