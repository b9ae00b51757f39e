"""Run records: the configuration and keys of each run. They are the roots of garbage collection.

Each change rewrites `<store>/runs/<run>.json` as a whole. `<run>` is the configuration's name and short digest.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.artifact import Artifact
from storage.atomic import make_writable, write_bytes
from storage.errors import OnwardError
from storage.lock import Lock
from storage.store import Store
from storage.store_places import WORK

_BESIDE = re.compile(r"(\.force)?(\.gone-[0-9a-f]+)?$")
_TRASHED = re.compile(rf"(\.work-)?{WORK.pattern}(\.force)?(\.gone-[0-9a-f]+)?")


@dataclass(frozen=True)
class RunRecord:
    """One configuration that was run: the configuration, its artifacts, and its attempts (flow run ids, newest last)."""

    run: str
    name: str
    config: dict[str, Any]
    artifacts: tuple[tuple[str, str], ...] = ()
    """(stage, key) of every artifact of the run."""
    attempts: tuple[str, ...] = ()
    state: str = "running"
    facts: dict[str, Any] = field(default_factory=dict)
    """`processes` maps each attempt to its process (ProcessId): one that is at work, or was at work when it was killed."""

    @property
    def processes(self) -> dict[str, dict[str, Any]]:
        """The processes of the attempts that have not ended by themselves."""
        return dict(self.facts.get("processes", {}))


def write_record(store: Store, record: RunRecord) -> Path:
    """Write or replace a run's record."""
    directory = store.root / "runs"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record.run}.json"
    write_bytes(path, (json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n").encode())
    return path


def amend_record(store: Store, run: str, change: Callable[[RunRecord | None], RunRecord]) -> RunRecord:
    """Replace a run's record by the result of `change`. One process at a time may do this.

    `change` gets the newest record, or None if there is no record yet. Attempts at one configuration may run in parallel,
    so a change must keep what another attempt has written since.
    """
    with Lock(store.root / "runs" / f".{run}.lock"):
        known = {record.run: record for record in read_records(store)}
        record = change(known.get(run))
        write_record(store, record)
    return record


def read_records(store: Store) -> Iterator[RunRecord]:
    """All records, sorted by file name. Raises OnwardError if one cannot be read."""
    for path in sorted((store.root / "runs").glob("[!.]*.json")):
        try:
            raw = json.loads(path.read_bytes())
            raw["artifacts"] = tuple((stage, key) for stage, key in raw["artifacts"])
            raw["attempts"] = tuple(raw["attempts"])
            yield RunRecord(**raw)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OnwardError(f"the run record {path} cannot be read: {error}") from error


def shared_lock(store: Store) -> Lock:
    """The lock that each run holds, so that no artifact is collected while it runs."""
    return Lock(store.root / ".lock", shared=True)


def reachable(store: Store, roots: Iterable[str]) -> set[str]:
    """Keys of the given artifacts and of all artifacts that they were made from."""
    by_key = {artifact.key: artifact for artifact in store.artifacts()}
    waiting, seen = list(roots), set[str]()
    while waiting:
        key = waiting.pop()
        if key in seen or key not in by_key:
            continue
        seen.add(key)
        waiting += [reference["key"] for reference in references(by_key[key])]
    return seen


def references(artifact: Artifact) -> list[dict[str, Any]]:
    """The parts of other artifacts that this one was made from: stage, key, part, digest."""
    found: list[dict[str, Any]] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            if {"stage", "key", "part", "digest"} <= value.keys():
                found.append(value)
            else:
                for item in value.values():
                    collect(item)
        elif isinstance(value, list):
            for item in value:
                collect(item)

    collect(json.loads(json.dumps(artifact.manifest.inputs)))
    return found


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would remove: artifacts, work directories, and their size in bytes."""

    artifacts: tuple[str, ...]
    work: tuple[str, ...]
    bytes: int


def collect_garbage(
    store: Store,
    keep: Iterable[str] = (),
    *,
    forget: Collection[str] = (),
    spare: Callable[[Sequence[Artifact]], Iterable[str]] | None = None,
    work: bool = False,
    dry_run: bool = False,
) -> Collected:
    """Remove artifacts that are not reachable from a run record, a key in `keep` (prefixes) or a key that `spare` returns.

    The records of the runs in `forget` do not count as roots, and are removed. `spare` is called once, while no run can use
    the store, with the artifacts that would be removed. If it raises, nothing is removed and no run is forgotten. With
    `work`, unfinished work directories are removed too; by default they stay, because a killed stage resumes from them.

    Raises OnwardError while a run holds the store.
    """
    lock = Lock(store.root / ".lock")
    if not lock.try_acquire():
        raise OnwardError(f"a run is using {store.root}; nothing was collected, try again when it has ended")
    try:
        keep = tuple(keep)
        records = [record for record in read_records(store) if record.run not in forget]
        roots = [key for record in records for _, key in record.artifacts]
        roots += [artifact.key for artifact in store.artifacts() if keep and artifact.key.startswith(keep)]
        unneeded = _unneeded(store, roots)
        if spare is not None:
            unneeded = _unneeded(store, [*roots, *spare(unneeded)])
        half_made = [path for path in sorted((store.root / ".work").glob("*")) if work and _abandoned(path)]
        freed = sum(artifact.manifest.bytes for artifact in unneeded)
        freed += sum(file.stat().st_size for path in half_made for file in path.rglob("*") if file.is_file())
        if not dry_run:
            for name in forget:
                (store.root / "runs" / f"{name}.json").unlink(missing_ok=True)
            _remove(store.root / ".trash", [*(artifact.path for artifact in unneeded), *half_made])
        names = tuple(str(artifact.path.relative_to(store.root)) for artifact in unneeded)
        return Collected(names, tuple(path.name for path in half_made), freed)
    finally:
        lock.release()


def _unneeded(store: Store, roots: Iterable[str]) -> list[Artifact]:
    needed = reachable(store, roots)
    return [
        artifact for artifact in store.artifacts() if artifact.key not in needed and _is_own(artifact.path)
    ]


def _is_own(path: Path) -> bool:
    """Whether a directory lies in the store itself: what a link leads to may be another store's."""
    return not path.is_symlink() and not path.parent.is_symlink()


def _abandoned(path: Path) -> bool:
    """Whether no process holds a work directory. An orphan of a killed run may still be writing its checkpoint there."""
    name = _BESIDE.sub("", path.name)  # beside it, or what it had begun again without
    if not WORK.fullmatch(name) or not path.is_dir() or not _is_own(path):
        return False
    lock = Lock(path.with_name(f"{name}.lock"))
    free = lock.try_acquire()
    lock.release()
    return free


def _remove(trash: Path, paths: list[Path]) -> None:
    """Move everything aside first, then delete. A killed collection then leaves nothing that looks like an artifact."""
    if trash.is_symlink():
        raise OnwardError(
            f"{trash} is a link to {trash.resolve()}: nothing was collected; remove the link first"
        )
    _empty(trash)  # of a collection that was killed: its names may come again
    trash.mkdir(exist_ok=True)
    for path in paths:
        make_writable(path)
        path.rename(trash / f"{path.parent.name}-{path.name}")
    _empty(trash)


def _empty(trash: Path) -> None:
    """Delete what a collection moved there, and nothing else that may lie in a directory of this name."""
    for path in list(trash.iterdir()) if trash.is_dir() else ():
        if _TRASHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            make_writable(path)
            shutil.rmtree(path)
    with contextlib.suppress(OSError):  # not there, or something else in it
        trash.rmdir()
