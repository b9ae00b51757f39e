"""A stage's work directory: survives a crash, so that a stage resumes inside it; shards are committed one by one.

<store>/.work/<stage>-<key[:16]>/
    <part>/<shard>/…         a committed shard, with `.shard.json` (its statistics, sizes and sha256)
    .tmp/…                   shards being written; whatever lies here is from a process that is gone
    anything else            the stage's own; in the artifact only if declared by `part` or `volatile`
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from storage.atomic import commit_directory, fsync_file, sha256_file
from storage.errors import OnwardError
from storage.manifest import FileEntry, Part, part_of
from storage.workers import Workers

J = TypeVar("J")
SHARD_RECORD = ".shard.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

Progress = Callable[[int, int | None, str], None]


class Draft:
    """Where a stage writes. `workers` runs its shards; `descriptor` is the lock's, for a child process to hold."""

    def __init__(
        self,
        path: Path,
        *,
        workers: Workers | None = None,
        progress: Progress | None = None,
        warn: Callable[[str], None] | None = None,
        descriptor: int | None = None,
    ) -> None:
        self.path = path
        self.descriptor = descriptor
        self.warnings: list[str] = []
        self.execution: dict[str, Any] = {}
        self._workers = workers or Workers(1)
        self._progress = progress
        self._warn = warn
        self._parts: dict[str, set[str]] = {}
        self._volatile: set[str] = set()
        self._known: dict[str, FileEntry] = {}
        path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(path / ".tmp", ignore_errors=True)

    def part(self, name: str, *paths: str) -> None:
        """Declare files, or directories with all below them, relative to `path`, as (more of) the part `name`."""
        self._parts.setdefault(name, set()).update(self._files(paths))

    def volatile(self, *paths: str) -> None:
        """Declare files that are kept but belong to no digest: clock readings, logs."""
        self._volatile.update(self._files(paths))

    def note(self, **facts: Any) -> None:
        """Facts of execution for the manifest's provenance, such as the resolved device."""
        self.execution.update(facts)

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """How far the stage is; cheap, may be called often."""
        if self._progress:
            self._progress(done, total, unit)

    def warn(self, message: str) -> None:
        """Something the user should know; shown at once and kept in the manifest's provenance."""
        self.warnings.append(message)
        if self._warn:
            self._warn(message)

    def shards(
        self, part: str, jobs: Mapping[str, J], make: Callable[[J, Path], dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        """Make the shards that are not committed yet, and declare all as files of `part`.

        `make(job, directory)` is a module-level function that writes into an empty directory and returns JSON
        statistics (`rows` and `tokens` among them go to the file's entry). Returns the statistics by name, in the
        order of `jobs`, whose number and content must depend on data alone.
        """
        records = self._run_shards(part, jobs, make)
        for name in jobs:
            self._declare_shard(part, name, records[name])
        return {name: records[name]["stats"] for name in jobs}

    def scratch(
        self, name: str, jobs: Mapping[str, J], make: Callable[[J, Path], dict[str, Any]]
    ) -> dict[str, Path]:
        """The same for what the stage only needs on its way: it survives a crash, belongs to no part and goes at commit.

        Returns the shards' directories by name, in the order of `jobs`.
        """
        self._run_shards(f"scratch/{name}", jobs, make)
        return {job: self.path / "scratch" / name / job for job in jobs}

    def _run_shards(
        self, part: str, jobs: Mapping[str, J], make: Callable[[J, Path], dict[str, Any]]
    ) -> dict[str, dict[str, Any]]:
        for name in (*part.split("/"), *jobs):
            if not _NAME.fullmatch(name):
                raise OnwardError(f"{name!r} cannot name a shard: use a-z, 0-9, '.', '_' and '-'")
        done = {name: record for name in jobs if (record := _committed(self.path / part / name)) is not None}
        missing = {name: job for name, job in jobs.items() if name not in done}
        self.progress(len(done), len(jobs), "shards")
        calls = ((name, _make_shard, (make, job, self.path, part, name)) for name, job in missing.items())
        for name, record in self._workers.run(calls):
            done[name] = record
            self.progress(len(done), len(jobs), "shards")
        return done

    def _declare_shard(self, part: str, name: str, record: dict[str, Any]) -> None:
        files = self._parts.setdefault(part, set())
        for entry in record["files"]:
            path = f"{part}/{name}/{entry['path']}"
            files.add(path)
            self._known[path] = FileEntry(**{**entry, "path": path})
        self._volatile.add(f"{part}/{name}/{SHARD_RECORD}")

    def finish(self) -> tuple[dict[str, Part], tuple[str, ...]]:
        """Flush what was declared and give the parts with their digests, and the volatile files. Nothing is removed yet."""
        files = sorted(set().union(*self._parts.values()))
        for path in sorted({*files, *self._volatile} - set(self._known)):
            fsync_file(self.path / path)
        digests = {path: self._entry(path) for path in files}
        parts = {
            name: part_of([digests[path] for path in files]) for name, files in sorted(self._parts.items())
        }
        return parts, tuple(sorted(self._volatile))

    def _entry(self, path: str) -> FileEntry:
        if path in self._known:
            return self._known[path]
        file = self.path / path
        return FileEntry(path, file.stat().st_size, sha256_file(file), rows=_rows(file))

    def _files(self, paths: tuple[str, ...]) -> set[str]:
        found: set[str] = set()
        for name in paths:
            path = self.path / name
            if not path.resolve().is_relative_to(self.path.resolve()):
                raise OnwardError(f"{name} lies outside the work directory {self.path}")
            if path.is_dir():
                found.update(str(file.relative_to(self.path)) for file in path.rglob("*") if file.is_file())
            elif path.is_file():
                found.add(str(path.relative_to(self.path)))
            else:
                raise OnwardError(f"{name} was declared, but is not in the work directory {self.path}")
        return found


def _make_shard(
    make: Callable[[Any, Path], dict[str, Any]], job: Any, work: Path, part: str, name: str
) -> dict[str, Any]:
    final = work / part / name
    if final.exists():  # half of a directory that no rename of ours left: a foreign hand, or a damaged disk
        shutil.rmtree(final)
    temporary = work / ".tmp" / f"{part.replace('/', '-')}-{name}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary.mkdir(parents=True)
    try:
        stats = make(job, temporary)
        names = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
        files = [_shard_entry(temporary, path, stats, alone=len(names) == 1) for path in names]
        record = {"stats": stats, "files": files}
        (temporary / SHARD_RECORD).write_text(json.dumps(record, allow_nan=False))
        commit_directory(temporary, final)
        return record
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _shard_entry(root: Path, name: str, stats: dict[str, Any], alone: bool) -> dict[str, Any]:
    path = root / name
    rows = stats.get("rows") if alone else None
    tokens = stats.get("tokens") if alone else None
    return {
        "path": name,
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "rows": rows if rows is not None else _rows(path),
        "tokens": tokens,
    }


def _committed(directory: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((directory / SHARD_RECORD).read_bytes())
        whole = all((directory / e["path"]).stat().st_size == e["bytes"] for e in record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def _rows(path: Path) -> int | None:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    return None


def remove_undeclared(root: Path, declared: set[str]) -> None:
    """Remove every file below `root` that is not named (relative to it), and the directories that this leaves empty."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(directory) / name
            if str(path.relative_to(root)) not in declared:
                path.unlink()
        here = Path(directory)
        if here != root and not any(here.iterdir()):
            here.rmdir()
