"""The work directory of a stage. It survives a crash, so a stage can resume inside it. Shards are committed one by one.

<store>/.work/<stage>-<key[:16]>/
    <part>/<shard>/…         a committed shard, with `.shard.json` (its statistics, sizes and sha256)
    .tmp/<attempt>/…         shards that this attempt at the stage is writing
    anything else            the stage's own files; the artifact gets them only if `part` or `volatile` declares them

On a cluster, two workers may make the same shard at once, and a task may outlive the run that started it and held the
lock. Therefore a worker writes only below `.tmp/<attempt>`, creates no directory above its own, and commits by one
rename. If two workers make the same shard, the first commit stays. Before an attempt begins, and before its files are
declared final, `.tmp` is renamed away in one step. After that, no earlier task can commit or write anything here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from storage.atomic import fsync_directory, fsync_file, fsync_tree, sha256_file
from storage.errors import OnwardError, StageFailed
from storage.manifest import FileEntry, Part, part_of
from storage.memory import give_back_in_worker
from storage.provenance import host_name
from storage.workers import Workers

J = TypeVar("J")
SHARD_RECORD = ".shard.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SEEN_WITHIN_SECONDS = 60.0  # a network file system may show another machine's rename late

Progress = Callable[[int, int | None, str], None]


class Draft:
    """The directory that a stage writes to. `workers` runs its shards.

    A child process must hold `descriptor` (the lock) and the descriptors in `held` (other resources of this stage alone).
    """

    def __init__(
        self,
        path: Path,
        *,
        workers: Workers | None = None,
        progress: Progress | None = None,
        warn: Callable[[str], None] | None = None,
        descriptor: int | None = None,
        held: tuple[int, ...] = (),
    ) -> None:
        self.path = path
        self.descriptor = descriptor
        self.held = held
        self.warnings: list[str] = []
        self.execution: dict[str, Any] = {}
        self._workers = workers or Workers(1)
        self._progress = progress
        self._warn = warn
        self._parts: dict[str, set[str]] = {}
        self._volatile: set[str] = set()
        self._known: dict[str, FileEntry] = {}
        self._making: Path | None = None
        path.mkdir(parents=True, exist_ok=True)
        self._shut_out()

    def part(self, name: str, *paths: str) -> None:
        """Add files to the part `name`. `paths` are relative to `path`; a directory stands for everything below it."""
        self._parts.setdefault(name, set()).update(self._files(paths))

    def volatile(self, *paths: str) -> None:
        """Declare files that are kept but enter no digest: clock readings, logs."""
        self._volatile.update(self._files(paths))

    def note(self, **facts: Any) -> None:
        """Add facts about the execution, such as the resolved device, to the manifest's provenance."""
        self.execution.update(facts)

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """Report how far the stage is. The call is cheap and may come often."""
        if self._progress:
            self._progress(done, total, unit)

    def say(self, message: str) -> None:
        """Tell the user something about this attempt alone. The message is shown at once, and kept nowhere."""
        if self._warn:
            self._warn(message)

    def warn(self, message: str) -> None:
        """Tell the user something. The message is shown at once and kept in the manifest's provenance."""
        self.warnings.append(message)
        self.say(message)

    def shards(
        self,
        part: str,
        jobs: Mapping[str, J],
        make: Callable[[J, Path], dict[str, Any]],
        aside: tuple[str, ...] = (),
    ) -> dict[str, dict[str, Any]]:
        """Make the shards that are not committed yet, and declare all of them as files of `part`.

        `make(job, directory)` is a module-level function. It writes only into the given empty directory and returns JSON
        statistics (`rows` and `tokens` go to the file's entry). Files named in `aside` belong to no part and are removed at
        commit. The number and content of `jobs` must depend on data alone. Returns the statistics by name, in the order of
        `jobs`.
        """
        records = self._run_shards(part, jobs, make, aside)
        for name in jobs:
            self._declare_shard(part, name, records[name])
        return {name: records[name]["stats"] for name in jobs}

    def scratch(
        self, name: str, jobs: Mapping[str, J], make: Callable[[J, Path], dict[str, Any]]
    ) -> dict[str, Path]:
        """Like `shards`, for intermediate files. They survive a crash, belong to no part, and are removed at commit.

        Returns the shards' directories by name, in the order of `jobs`.
        """
        self._run_shards(f"scratch/{name}", jobs, make)
        return {job: self.path / "scratch" / name / job for job in jobs}

    def _run_shards(
        self,
        part: str,
        jobs: Mapping[str, J],
        make: Callable[[J, Path], dict[str, Any]],
        aside: tuple[str, ...] = (),
    ) -> dict[str, dict[str, Any]]:
        for name in (*part.split("/"), *jobs):
            if not _NAME.fullmatch(name):
                raise OnwardError(f"{name!r} cannot name a shard: use a-z, 0-9, '.', '_' and '-'")
        root = self.path / part
        done = self._whole(root, jobs, aside)
        missing = {name: job for name, job in jobs.items() if name not in done}
        unit = f"shards of {part.removeprefix('scratch/')}"
        self.progress(len(done), len(jobs), unit)
        if not missing:
            return done
        making = self._place_for_shards(root, missing)
        calls = (
            (name, _make_shard, (make, job, making, root / name, aside)) for name, job in missing.items()
        )
        for name, record in self._workers.run(calls):
            _wait_to_see(root / name / SHARD_RECORD)
            done[name] = record
            self.progress(len(done), len(jobs), unit)
        return done

    def _whole(self, root: Path, jobs: Mapping[str, J], aside: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """The records of shards that an earlier attempt committed, as far as their bytes are still those."""
        done = {name: record for name in jobs if (record := _committed(root / name, aside)) is not None}
        with ThreadPoolExecutor() as pool:
            whole = list(pool.map(_is_whole, [root / name for name in done], done.values()))
        return {name: record for (name, record), good in zip(done.items(), whole, strict=True) if good}

    def _place_for_shards(self, root: Path, missing: Mapping[str, Any]) -> Path:
        """The directory that workers write to. Anything that would block their renames is moved away first."""
        if self._making is None:
            self._making = self.path / ".tmp" / secrets.token_hex(8)
            self._making.mkdir(parents=True)
        root.mkdir(parents=True, exist_ok=True)
        fsync_directory(root.parent)
        for name in missing:
            if (
                root / name
            ).exists():  # a partial shard that none of our renames left: foreign writes or a damaged disk
                (root / name).rename(self._making / f"damaged-{name}-{secrets.token_hex(4)}")
        return self._making

    def _shut_out(self) -> None:
        """Make sure that no task that began earlier can still commit a shard here."""
        self._making = None
        if (self.path / ".tmp").exists():
            (self.path / ".tmp").rename(self.path.with_name(f"{self.path.name}.gone-{secrets.token_hex(4)}"))
        for gone in self.path.parent.glob(f"{self.path.name}.gone-*"):
            shutil.rmtree(gone, ignore_errors=True)

    def _declare_shard(self, part: str, name: str, record: dict[str, Any]) -> None:
        files = self._parts.setdefault(part, set())
        for entry in record["files"]:
            path = f"{part}/{name}/{entry['path']}"
            files.add(path)
            self._known[path] = FileEntry(**{**entry, "path": path})
        self._volatile.add(f"{part}/{name}/{SHARD_RECORD}")

    def finish(self) -> tuple[dict[str, Part], tuple[str, ...]]:
        """Flush all declared files. Returns the parts with their digests, and the volatile files. Removes nothing yet."""
        self._shut_out()
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
    make: Callable[[Any, Path], dict[str, Any]], job: Any, making: Path, final: Path, aside: tuple[str, ...]
) -> dict[str, Any]:
    """Runs in a worker: make one shard in its own directory below `making`, and commit it as `final`."""
    temporary = making / f"{final.parent.name}-{final.name}-{secrets.token_hex(8)}"
    try:
        temporary.mkdir()
    except FileNotFoundError as error:
        raise StageFailed(
            f"{host_name()} does not see {making}: every worker needs the store under the same path as the "
            "run itself (or the run that asked for this shard is gone)"
        ) from error
    own = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        stats = make(job, temporary)
        names = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
        names = [name for name in names if name not in aside]
        files = [_shard_entry(temporary, path, stats, alone=len(names) == 1) for path in names]
        record = {"stats": stats, "files": files, "host": host_name()}
        record["aside"] = {name: sha256_file(temporary / name) for name in aside}
        text = json.dumps(record | {"record": _digest_of(record)}, allow_nan=False)
        (temporary / SHARD_RECORD).write_text(text, encoding="utf-8")
        if not os.path.samestat(os.fstat(own), temporary.stat()):
            raise StageFailed(
                f"{temporary} was taken away while its shard was made: the run that asked is gone"
            )
        return _commit_shard(temporary, final, record, aside)
    finally:
        os.close(own)
        shutil.rmtree(temporary, ignore_errors=True)
        give_back_in_worker()


def _commit_shard(
    temporary: Path, final: Path, record: dict[str, Any], aside: tuple[str, ...]
) -> dict[str, Any]:
    """Commit by one rename. If another worker committed this shard first, its shard stays and its record is returned."""
    fsync_tree(temporary)
    try:
        temporary.rename(final)
    except OSError as error:
        first = _committed(final, aside) if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else None
        if first is None:
            raise
        return first
    fsync_directory(final.parent)
    return record


def _wait_to_see(path: Path) -> None:
    deadline = time.monotonic() + _SEEN_WITHIN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise StageFailed(
                f"{path} was committed by a worker, but is not seen here {_SEEN_WITHIN_SECONDS:g} s later: the store "
                "has to be one file system that shows renames to all machines (NFS: mount with lookupcache=positive)"
            )
        time.sleep(0.2)


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


def _committed(directory: Path, aside: tuple[str, ...] = ()) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((directory / SHARD_RECORD).read_bytes())
        whole = all((directory / e["path"]).stat().st_size == e["bytes"] for e in record["files"])
        whole = whole and all((directory / name).is_file() for name in aside)
        written = record.pop("record", None)
        whole = whole and written in (None, _digest_of(record))  # none in a shard that 0.1.0 made
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole else None


def _is_whole(directory: Path, record: dict[str, Any]) -> bool:
    """Whether the files of a shard have the bytes that were committed."""
    named = {entry["path"]: entry["sha256"] for entry in record["files"]} | record.get("aside", {})
    try:
        return all(sha256_file(directory / name) == digest for name, digest in named.items())
    except OSError:
        return False


def _digest_of(record: dict[str, Any]) -> str:
    """The sha256 of a shard's record, without itself."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _rows(path: Path) -> int | None:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return int(pq.read_metadata(path).num_rows)
    return None


def remove_undeclared(root: Path, declared: set[str]) -> None:
    """Remove every file below `root` that is not in `declared` (relative paths), and directories that become empty."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(directory) / name
            if str(path.relative_to(root)) not in declared:
                path.unlink()
        here = Path(directory)
        if here != root and not any(here.iterdir()):
            here.rmdir()
