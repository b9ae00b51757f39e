"""sha256 of external files, cached by device, inode, size and modification time, so that each file is hashed once."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from storage.atomic import sha256_file

_SETTLED_SECONDS = 2.0  # a file changed more recently may change again within one clock tick


class FileDigests:
    """Digests of files. `path`: a SQLite file that all runs share; None: the cache lives as long as this object.

    Safe for concurrent use: each query opens its own connection. An unusable database only costs time.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._memory: dict[tuple[int, int, int, int], str] = {}

    def sha256(self, file: Path) -> str:
        """Hex sha256 of the file's bytes. Raises OSError if the file cannot be read."""
        status = file.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._memory.get(key) or self._recall(key)
        if known is None:
            known = sha256_file(file)
            after = file.stat()
            same = key == (after.st_dev, after.st_ino, after.st_size, after.st_mtime_ns)
            if not same or time.time() - status.st_mtime < _SETTLED_SECONDS:
                return known
            self._remember(key, known)
        self._memory[key] = known
        return known

    def _recall(self, key: tuple[int, int, int, int]) -> str | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            with closing(self._connect()) as database:
                row = database.execute("SELECT sha256 FROM digests WHERE file = ?", (_text(key),)).fetchone()
        except sqlite3.Error:
            return None
        return str(row[0]) if row else None

    def _remember(self, key: tuple[int, int, int, int], sha256: str) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connect()) as database, database:
                database.execute("INSERT OR REPLACE INTO digests VALUES (?, ?)", (_text(key), sha256))
        except (sqlite3.Error, OSError):
            return  # remembering only saves time

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(str(self.path), timeout=30)
        database.execute("CREATE TABLE IF NOT EXISTS digests (file TEXT PRIMARY KEY, sha256 TEXT NOT NULL)")
        return database


def _text(key: tuple[int, int, int, int]) -> str:
    return ":".join(map(str, key))  # device and inode numbers may exceed SQLite's signed integers
