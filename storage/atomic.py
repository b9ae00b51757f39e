"""Durable writes: a file or directory exists completely or not at all, even after a power cut. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from pathlib import Path


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_file(path: Path) -> None:
    """Flush one file's bytes to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Flush every file and directory below `root`, and `root` itself."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            fsync_file(Path(directory) / name)
        fsync_directory(Path(directory))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: write to a temporary name beside it, fsync, and rename over `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    fsync_directory(path.parent)


def commit_directory(temporary: Path, final: Path) -> None:
    """Publish a directory by one rename. Everything below it is fsynced before, both parent directories after.

    `final` must not exist or must be empty. Raises OSError if the file system does.
    """
    fsync_tree(temporary)
    if not final.parent.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        fsync_directory(final.parent.parent)
    temporary.rename(final)
    fsync_directory(final.parent)
    if temporary.parent != final.parent:
        fsync_directory(temporary.parent)


def make_read_only(root: Path) -> None:
    """Remove the write permission from `root` and everything below it."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            _without_write(Path(directory) / name)
        _without_write(Path(directory))


def make_writable(root: Path) -> None:
    """Give the owner write permission on `root` and everything below it, so that the tree can be removed."""
    root.chmod(root.stat().st_mode | stat.S_IRWXU)
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory) / name
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | stat.S_IWUSR | (stat.S_IXUSR if path.is_dir() else 0))


def _without_write(path: Path) -> None:
    if not path.is_symlink():
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
