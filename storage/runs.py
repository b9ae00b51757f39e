"""Run records: the configuration and keys of each run. They are the roots of garbage collection.

Each change rewrites `<store>/runs/<run>.json` as a whole. `<run>` is the configuration's name and short digest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.artifact import Artifact
from storage.atomic import make_writable, write_bytes
from storage.errors import OnwardError
from storage.lock import Lock
from storage.manifest import NAME
from storage.store import Store
from storage.store_places import WORK

_SEAL = "record_sha256"
_ASIDE = re.compile(r"\.damaged-(.+)-[0-9]+\.json")
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
    raw = asdict(record)
    raw["facts"] = {**record.facts, _SEAL: _digest_of(raw)}
    write_bytes(path, (json.dumps(raw, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def amend_record(
    store: Store,
    run: str,
    change: Callable[[RunRecord | None], RunRecord],
    warn: Callable[[str], None] = lambda line: None,
) -> RunRecord:
    """Replace a run's record by the result of `change`. One process at a time may do this.

    `change` gets the newest record, or None if there is no record yet. Attempts at one configuration may run in parallel,
    so a change must keep what another attempt has written since. A record that cannot be read is set aside, and `warn` is
    told.
    """
    path = store.root / "runs" / f"{run}.json"
    with Lock(store.root / "runs" / f".{run}.lock"):
        before = None
        try:
            before = _read(path)
        except FileNotFoundError:
            pass
        except DamagedRecord as error:
            aside = _free_name(path)
            path.rename(aside)
            warn(f"{error}; set aside as runs/{aside.name}, and written anew")
        record = change(before)
        write_record(store, record)
    return record


def rename_record(store: Store, before: str, now: str, wanted: Callable[[RunRecord], bool]) -> None:
    """Give a run's record another name, if there is none of that name and the record is `wanted`."""
    old, new = (store.root / "runs" / f"{name}.json" for name in (before, now))
    if before == now or new.exists() or not old.exists():
        return
    with Lock(store.root / "runs" / f".{before}.lock"), contextlib.suppress(DamagedRecord, FileNotFoundError):
        record = _read(old)
        if wanted(record) and not new.exists():
            write_record(store, dataclasses.replace(record, run=now))
            old.unlink()


class DamagedRecord(OnwardError):
    """A run's record is not what was written."""


def read_records(store: Store) -> Iterator[RunRecord]:
    """All records that can be read, sorted by file name. `damaged_records` names the others."""
    for path in sorted((store.root / "runs").glob("[!.]*.json")):
        with contextlib.suppress(DamagedRecord, FileNotFoundError):
            yield _read(path)


def damaged_records(store: Store) -> list[Path]:
    """Records that cannot be read, and those that were set aside and not written anew by a run that ended since."""
    found = []
    for path in sorted((store.root / "runs").glob("*.json")):
        aside = _ASIDE.fullmatch(path.name)
        if path.name.startswith(".") and aside is None:
            continue
        try:
            record = _read(path.with_name(f"{aside[1]}.json") if aside else path)
        except (DamagedRecord, FileNotFoundError):
            found.append(path)
            continue
        if aside and record.state != "completed":  # it may not name all yet
            found.append(path)
    return found


def record_name(path: Path) -> str:
    """The run whose record this is, or was until it was set aside."""
    aside = _ASIDE.fullmatch(path.name)
    return aside[1] if aside else path.stem


def damaged_names(store: Store) -> set[str]:
    """The names of the runs whose records were set aside."""
    found = (_ASIDE.fullmatch(path.name) for path in (store.root / "runs").glob(".damaged-*.json"))
    return {match[1] for match in found if match}


def _read(path: Path) -> RunRecord:
    """A record. Raises DamagedRecord, or FileNotFoundError."""
    try:
        raw = json.loads(path.read_bytes())
        seal = raw["facts"].pop(_SEAL, None)
        if seal not in (None, _digest_of(raw)):  # none in a record that 0.1.0 wrote
            raise ValueError("it is not what was written")
        raw["artifacts"] = tuple((stage, key) for stage, key in raw["artifacts"])
        raw["attempts"] = tuple(raw["attempts"])
        record = RunRecord(**raw)
        if record.run != path.stem:
            raise ValueError(f"it is the record of {record.run}")
        return record
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRecord(f"the run record {path} cannot be read: {error}") from error


def _digest_of(raw: dict[str, Any]) -> str:
    """The sha256 of a record's fields, without itself."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True, default=list).encode()).hexdigest()


def _free_name(path: Path) -> Path:
    number = 1
    while (target := path.with_name(f".damaged-{path.stem}-{number}.json")).exists():
        number += 1
    return target


def shared_lock(store: Store) -> Lock:
    """The lock that each run holds, so that no artifact is collected while it runs."""
    return Lock(store.root / ".lock", shared=True)


def reachable(store: Store, roots: Iterable[str]) -> set[str]:
    """Keys of the given artifacts and of all artifacts that they were made from, also by way of what was set aside."""
    by_key = {artifact.key: artifact for artifact in (*store.artifacts_aside(), *store.artifacts())}
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
        _refuse_damaged(store, forget)
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
                for aside in (store.root / "runs").glob(".damaged-*.json"):
                    if (found := _ASIDE.fullmatch(aside.name)) and found[1] == name:
                        aside.unlink()
            _remove(store.root / ".trash", [*(artifact.path for artifact in unneeded), *half_made])
        names = tuple(str(artifact.path.relative_to(store.root)) for artifact in unneeded)
        return Collected(names, tuple(path.name for path in half_made), freed)
    finally:
        lock.release()


def _refuse_damaged(store: Store, forget: Collection[str]) -> None:
    """Raise OnwardError if it cannot be told what is needed: behind a record or a manifest that cannot be read."""
    for path in damaged_records(store):
        if (name := record_name(path)) not in forget:
            raise OnwardError(
                f"{path} cannot be read, so it is not known what its run needs: nothing was collected. Run its "
                f"configuration again to its end, which writes the record anew; or forget it: onward gc --forget {name}"
            )
    for path in store.unreadable():
        if (path / NAME).exists():
            raise OnwardError(
                f"{path / NAME} cannot be read, so it is not known what that artifact was made of: nothing was "
                f"collected. Start the run that made it again, which makes it anew; or set it aside: "
                f"onward verify --store {shlex.quote(str(store.root))} --repair"
            )


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
