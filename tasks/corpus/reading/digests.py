"""sha256 of external files, cached by device, inode, size and times, so that each file is hashed once.

A row is covered by a checksum: one that is not what was written counts as absent.
"""

from __future__ import annotations

import os
import sqlite3
import time
import zlib
from contextlib import closing
from pathlib import Path

from storage.atomic import sha256_file

Key = tuple[int, int, int, int, int]
_SETTLED_SECONDS = 2.0  # a file changed more recently may change again within one clock tick
_SKEW_SECONDS = 60.0  # by as much, the clock of a file server may be ahead


class FileDigests:
    """Digests of files. `path`: a SQLite file that all runs share; None: the cache lives as long as this object.

    Safe for concurrent use: each query opens its own connection. An unusable database only costs time.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._memory: dict[Key, str] = {}

    def sha256(self, file: Path) -> str:
        """Hex sha256 of the file's bytes. Raises OSError if the file cannot be read."""
        status = file.stat()
        key = _key(status)
        known = self._memory.get(key) or self._recall(key)
        if known is None:
            known = sha256_file(file)
            same = key == _key(file.stat())
            if not same or not _settled(status.st_ctime):
                return known
            self._remember(key, known)
        self._memory[key] = known
        return known

    def _recall(self, key: Key) -> str | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            with closing(self._connect()) as database:
                query = "SELECT sha256, checksum FROM known WHERE file = ?"
                row = database.execute(query, (_text(key),)).fetchone()
        except (sqlite3.Error, UnicodeDecodeError):
            return None
        return str(row[0]) if row and row[1] == _checksum(key, str(row[0])) else None

    def _remember(self, key: Key, sha256: str) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as database, database:
                row = (_text(key), sha256, _checksum(key, sha256))
                database.execute("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", row)
        except (sqlite3.Error, OSError):
            return  # remembering only saves time

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(str(self.path), timeout=30)
        columns = "file TEXT PRIMARY KEY, sha256 TEXT NOT NULL, checksum INTEGER NOT NULL"
        database.execute(f"CREATE TABLE IF NOT EXISTS known ({columns})")
        return database


def _settled(changed: float) -> bool:
    """Whether a change from now on surely gets another time. The time of writing says nothing: any program can set it."""
    return not -_SKEW_SECONDS < time.time() - changed < _SETTLED_SECONDS


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _checksum(key: Key, sha256: str) -> int:
    return zlib.crc32(f"{_text(key)} {sha256}".encode())


def _text(key: Key) -> str:
    return ":".join(map(str, key))  # device and inode numbers may exceed SQLite's signed integers
