"""The artifact store, the only cache. An artifact is an immutable directory, complete if and only if it has a manifest.

<store>/<stage>/<key[:16]>/             committed, read-only
<store>/<stage>/.damaged-<key[:16]>-N/  set aside, because its bytes differed from its manifest
<store>/.work/<stage>-<key[:16]>/       in progress; survives a crash
<store>/.work/<stage>-<key[:16]>.lock   never unlinked
<store>/.digests                        the sha256 of files that were read (digests.py)
<store>/.lock                           shared by runs, exclusive for gc

What is damaged, and what follows from it, is in damage.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from storage.artifact import Artifact
from storage.atomic import commit_directory, make_read_only, make_writable, write_bytes
from storage.damage import Damage, SuspectInputs, set_aside
from storage.digests import NAME as DIGESTS
from storage.digests import Digests
from storage.draft import Draft, Progress, remove_undeclared
from storage.errors import DamagedArtifact, HubUnreachable, Interrupted, OnwardError, StageFailed
from storage.keys import changed_components, key_inputs, recorded_inputs, stage_key
from storage.lock import Lock
from storage.manifest import (
    NAME,
    VERIFIED,
    Manifest,
    Reading,
    digest_problems,
    files_of,
    read_manifest,
    size_problems,
)
from storage.memory import give_back
from storage.provenance import provenance
from storage.settings import Section, identity_of
from storage.store_places import PLACE
from storage.workers import Workers

_FULL = {
    errno.ENOSPC: "no space left under",
    errno.EDQUOT: "the quota is used up under",
    errno.EFBIG: "a file grew larger than is allowed (ulimit -f, or the file system) under",
}
"""The errors of a disk that takes no more."""


class StageModule(Protocol):
    """A stage: a name, a version, and a plain function from configuration and inputs to files and statistics.

    It may have `COMPONENTS` and `components(config, inputs)` too (storage/keys.py).
    """

    STAGE: str
    VERSION: int

    @staticmethod
    def run(config: Any, inputs: Any, draft: Draft) -> Any:
        """Write the stage's output into the draft. Returns its statistics, a dataclass of plain JSON."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A stage with its configuration and inputs: everything that determines an artifact."""

    module: Any
    config: Section
    inputs: Any

    @property
    def stage(self) -> str:
        """The stage's name."""
        return str(self.module.STAGE)

    @property
    def components(self) -> dict[str, int]:
        """The versions of the stage's components that are used here and have changed since 0.1.0."""
        return changed_components(self.module, self.config, self.inputs)

    @property
    def identity(self) -> dict[str, Any]:
        """All that the key is made of, as plain JSON."""
        components = self.components
        return {
            "stage": self.stage,
            "version": self.module.VERSION,
            "config": identity_of(self.config),
            "inputs": key_inputs(self.inputs),
            **({"components": components} if components else {}),
        }

    @property
    def key(self) -> str:
        """The stage key, 64 hex digits."""
        return stage_key(**self.identity)


@dataclasses.dataclass(frozen=True)
class Making:
    """How an artifact is made. Nothing here changes its bytes."""

    workers: Workers | None = None
    progress: Progress | None = None
    warn: Callable[[str], None] | None = None
    waiting: Callable[[Path], None] | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Facts for the manifest's provenance, such as the flow run id."""
    held: tuple[int, ...] = ()
    """Descriptors that child processes hold too: locks on exclusive resources of the stage, such as a GPU."""


@dataclasses.dataclass(frozen=True)
class Ensured:
    """The result of `ensure`. `state` is built, cached, or reproduced (a forced build gave the same bytes; if it
    has parts that the artifact lacked, it takes its place).

    `differs`: a forced build gave other bytes than the existing artifact.
    """

    artifact: Artifact
    state: str
    differs: bool = False


class Store:
    """The artifacts under one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.digests = Digests(self.root / DIGESTS)
        self.damage = Damage(self.root, self.digests)

    def path_of(self, stage: str, key: str) -> Path:
        """The directory of the artifact with this key. It may not exist yet."""
        return self.root / stage / key[:16]

    def work_of(self, stage: str, key: str) -> Path:
        """The directory in which this artifact is made."""
        return self.root / ".work" / f"{stage}-{key[:16]}"

    def lookup(self, stage: str, key: str) -> Artifact | None:
        """The committed artifact, or None. Raises DamagedArtifact if a file has another size than recorded."""
        return self._found(stage, key, size_problems)

    def look(self, stage: str, key: str, *, fully: bool = False) -> Artifact | None:
        """Like `lookup`, and files that changed since they were last read are read again; with `fully`, all not yet known.

        Raises DamagedArtifact also for an artifact that was made of bytes that turned out to be damaged.
        """
        reading: Reading = "known" if fully else "changed"
        found = self._found(
            stage, key, lambda path, manifest: digest_problems(path, manifest, self.digests, reading=reading)
        )
        if found is not None and (poisoned := self.damage.poisoned(found)):
            raise DamagedArtifact(f"{found.path.relative_to(self.root)}: {poisoned}")
        return found

    def _found(
        self, stage: str, key: str, problems_of: Callable[[Path, Manifest], list[str]]
    ) -> Artifact | None:
        path = self.path_of(stage, key)
        if not path.exists():
            return None
        artifact = self.read(path)
        problems = problems_of(path, artifact.manifest)
        if artifact.key != key:
            problems.append(f"it holds the key {artifact.key[:16]}…, not {key[:16]}…")
        if problems:
            raise DamagedArtifact(f"{path.relative_to(self.root)}: {'; '.join(problems[:5])}")
        return artifact

    def ensure(
        self, request: Request, making: Making | None = None, *, force: bool = False, fully: bool = False
    ) -> Ensured:
        """The artifact of a request. It is found and verified (see `look`), or this process alone makes it now.

        A damaged artifact is set aside, reported and made again. With `force`, the artifact is made beside the existing one
        and compared. If both are equal, the old one stays; otherwise the old one is set aside.

        Before anything is made, every byte of the inputs is verified. Raises DamagedInput if one is damaged, also where
        that made the stage fail. The damaged artifact is then set aside, and what was made so far is discarded.
        """
        making = making or Making()
        key = request.key
        if not force and (found := self._sound(request.stage, key, fully)):
            return Ensured(found, "cached")
        work = self.work_of(request.stage, key)
        try:
            with Lock(work.with_name(work.name + ".lock"), waiting=making.waiting) as lock:
                found = self._sound(
                    request.stage, key, fully
                )  # another process may have made it during the wait
                if found is None:
                    self._set_aside(request.stage, key, making, fully)
                    return Ensured(self._make(request, key, work, making, lock), "built")
                if not force:
                    return Ensured(found, "cached")
                return self._remake(request, key, work, making, lock, found)
        except SuspectInputs as suspects:  # this lock is free again: theirs are taken one by one
            raise self.damage.condemn_inputs(request, suspects) from suspects.__cause__

    def artifacts(self, stage: str = "[!.]*") -> Iterator[Artifact]:
        """All committed artifacts (of one stage) with a readable manifest, by stage and key."""
        for manifest in sorted(self.root.glob(f"{stage}/[0-9a-f]*/{NAME}")):
            with contextlib.suppress(DamagedArtifact):
                yield self.read(manifest.parent)

    def artifacts_aside(self) -> Iterator[Artifact]:
        """Artifacts that were set aside, as far as their manifests can be read. They say what was needed."""
        for manifest in sorted(self.root.glob(f"[!.]*/.damaged-*/{NAME}")):
            with contextlib.suppress(OnwardError):
                yield Artifact(manifest.parent, read_manifest(manifest.parent))

    def read(self, path: Path) -> Artifact:
        """The artifact in a directory of this store. Raises DamagedArtifact if its manifest is not whole, or of another."""
        return Artifact(path, self.damage.manifest(path))

    def places(self, stages: Iterable[str]) -> Iterator[Path]:
        """Directories of this store that artifacts of these stages lie in, by their names alone. No link is followed."""
        for stage in stages:
            directory = self.root / stage
            if directory.is_symlink() or not directory.is_dir():
                continue
            for path in sorted(directory.iterdir()):
                if PLACE.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                    yield path

    def unreadable(self, stages: Iterable[str] | None = None) -> list[Path]:
        """Directories in the place of an artifact (of these stages, or of any), but without a readable manifest."""
        found = []
        for path in self.places(_stages(self.root) if stages is None else stages):
            try:
                self.read(path)
            except DamagedArtifact:
                found.append(path)
        return sorted(found)

    def verify(self, artifact: Artifact) -> list[str]:
        """The problems with the artifact's bytes. Reads every byte; empty if the artifact is sound."""
        return digest_problems(artifact.path, artifact.manifest, self.digests)

    def verified(self, artifact: Artifact, *parts: str) -> Artifact:
        """The artifact, some parts of which (default: all) are read now if their bytes are not known yet.

        Raises DamagedInput, and sets it aside, if they are not what was committed.
        """
        named = [name for name in parts if artifact.has(name)] if parts else None
        if digest_problems(artifact.path, artifact.manifest, self.digests, named, "known"):
            raise self.damage.condemn(artifact.path)
        return artifact

    def aside(self, stage: str, key: str) -> list[Path]:
        """Where artifacts of this key were set aside, oldest first."""
        found = (self.root / stage).glob(f".damaged-{key[:16]}-*")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def set_aside(self, stage: str, key: str) -> Path | None:
        """Move a damaged artifact out of the way. Returns its new path, or None if there was no artifact."""
        path = self.path_of(stage, key)
        return set_aside(path) if path.exists() else None

    def _sound(self, stage: str, key: str, fully: bool) -> Artifact | None:
        try:
            found = self.look(stage, key, fully=fully)
        except DamagedArtifact:
            return None
        if found is not None and found.path.stat().st_mode & stat.S_IWUSR:
            make_read_only(found.path)  # a process was killed between the rename and this
        return found

    def _set_aside(self, stage: str, key: str, making: Making, fully: bool) -> None:
        """Set a damaged artifact aside. Its lock is held."""
        try:
            self.look(stage, key, fully=fully)
        except DamagedArtifact as error:
            aside = self.damage.set_aside_with_children(self.path_of(stage, key))
            if aside and making.warn:
                making.warn(f"damaged: {error}; set aside as {', '.join(aside)}, made again")

    def _make(self, request: Request, key: str, work: Path, making: Making, lock: Lock) -> Artifact:
        manifest = self._finished(work, key) or self._draft(request, key, work, making, lock)
        return self._publish(work, manifest)

    def _finished(self, work: Path, key: str) -> Manifest | None:
        """The manifest of a work directory whose process was killed between its last write and the rename."""
        if not (work / NAME).exists():
            return None
        with contextlib.suppress(DamagedArtifact):
            manifest = read_manifest(work)
            if manifest.key == key and not digest_problems(work, manifest, self.digests):
                return manifest
        return None

    def _remake(
        self, request: Request, key: str, work: Path, making: Making, lock: Lock, old: Artifact
    ) -> Ensured:
        beside = work.with_name(work.name + ".force")
        if beside.exists():
            _remove(beside)
        manifest = self._draft(request, key, beside, making, lock)
        made, known = (
            {name: part.digest for name, part in one.parts.items()} for one in (manifest, old.manifest)
        )
        if made == known:
            _remove(beside)
            return Ensured(old, "reproduced")
        target = self.set_aside(request.stage, key)
        if known.items() <= made.items():  # made by a release that makes more parts of the same key
            published = self._publish(beside, manifest)
            if target:
                _remove(target)
            return Ensured(published, "reproduced")
        if making.warn and target:
            making.warn(
                f"{request.stage} {key[:16]} made again has other bytes than before; "
                f"the old one is set aside as {target.relative_to(self.root)}"
            )
        return Ensured(self._publish(beside, manifest), "built", differs=True)

    def _draft(self, request: Request, key: str, work: Path, making: Making, lock: Lock) -> Manifest:
        try:
            self.damage.check_inputs(request)
            if work.exists() and (others := self.damage.made_again_since(request, work)):
                _remove(work)
                if making.warn:
                    making.warn(f"begun anew: {others[0]} was made again since this work was begun")
            manifest = self._drafted(request, key, work, making, lock)
            self.damage.check_inputs(request)  # by their times: nothing was changed while they were read
            return manifest
        except SuspectInputs:
            if work.exists():
                _remove(work)  # it may have been made of what is damaged
            raise

    def _drafted(self, request: Request, key: str, work: Path, making: Making, lock: Lock) -> Manifest:
        began, ticked = time.time(), time.monotonic()
        draft = Draft(
            work,
            workers=making.workers,
            progress=making.progress,
            warn=making.warn,
            descriptor=lock.descriptor,
            held=making.held,
        )
        (draft.path / NAME).unlink(missing_ok=True)
        try:
            self.damage.note_inputs(request, draft.path)
            stats = request.module.run(request.config, request.inputs, draft)
            give_back()
            parts, volatile = draft.finish()
        except (Interrupted, HubUnreachable):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise self._full(request, work, error) from error
            self.damage.check_inputs(request, cause=error)
            raise
        return Manifest(
            stage=request.stage,
            version=request.module.VERSION,
            key=key,
            config=identity_of(request.config),
            inputs=recorded_inputs(request.inputs),
            parts=parts,
            volatile=volatile,
            stats=_plain_stats(stats),
            provenance={
                **provenance(
                    request.module,
                    began,
                    time.monotonic() - ticked,
                    draft.warnings,
                    draft.execution,
                    making.facts,
                ),
                VERIFIED: True,
            },
            components=request.components,
        )

    def _publish(self, work: Path, manifest: Manifest) -> Artifact:
        """Write the manifest and commit. Once the manifest is written, a killed process only has this step to repeat."""
        final = self.path_of(manifest.stage, manifest.key)
        if not (work / NAME).exists():
            write_bytes(work / NAME, manifest.to_bytes())
        files = {entry.path for part in manifest.parts.values() for entry in part.files}
        remove_undeclared(work, {*files, *manifest.volatile, NAME})
        commit_directory(work, final)
        make_read_only(final)
        self.digests.remember((final / entry.path, entry.sha256) for entry in files_of(manifest))
        return Artifact(final, manifest)

    def _full(self, request: Request, work: Path, error: OSError) -> StageFailed:
        free = shutil.disk_usage(work).free
        written = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
        needed = max(2 * written, 64_000_000)
        return StageFailed(
            f"{request.stage}: {_FULL[error.errno or 0]} {self.root} ({free:,} bytes free); the stage has written "
            f"{written:,} bytes and may need about {needed:,} more. Every committed artifact and shard is whole; "
            "make room first",
            passing=True,
        )


def _stages(root: Path) -> list[str]:
    return (
        sorted(path.name for path in root.iterdir() if not path.name.startswith(".")) if root.is_dir() else []
    )


def _plain_stats(stats: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(stats) and not isinstance(stats, type):
        return dataclasses.asdict(stats)
    if isinstance(stats, dict):
        return stats
    raise OnwardError(
        f"a stage returned a {type(stats).__name__} as its statistics; a dataclass or dict is expected"
    )


def _remove(path: Path) -> None:
    make_writable(path)
    shutil.rmtree(path)
