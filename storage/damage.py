"""What damage is, how it is found, and what follows from it: it is set aside, and so is what may have been made of it.

An artifact's key is made of the digests that its inputs have in their manifests. So an artifact that was made of damaged
bytes has the key of a good one, and only its own bytes differ. Since 0.2.0 a stage verifies its inputs before and after
it works, and its manifest says so (`inputs_verified`). Artifacts of 0.1.0 do not say it: if one of their inputs is found
with other bytes, they are set aside with it. What was made of those in turn needs no distrust. If they are made again
with the same bytes, it is good; if not, its key is another, and nobody asks for it any more.

What must stay true: children are set aside before the damaged artifact. If a process is killed in between, the damage is
found again. Locks are taken one at a time from an artifact to its children, never the other way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.artifact import Artifact, Input
from storage.atomic import fsync_directory, write_bytes
from storage.digests import Digests
from storage.errors import DamagedArtifact, DamagedInput, OnwardError, StageFailed
from storage.keys import parts_of
from storage.lock import Lock
from storage.manifest import (
    NAME,
    Manifest,
    Reading,
    digest_problems,
    manifest_bytes,
    parse_manifest,
    sha256_of,
    size_problems,
)
from storage.store_places import PLACE

READ_FROM = ".read-from.json"
"""In a work directory: the inputs that it reads, and the sha256 of their manifests."""
_CHAINED = "signatures"
"""The part that 0.1.0 read as a chain: a reader names the last link alone, and has read all links before it."""


class SuspectInputs(Exception):
    """Inside the store: some inputs are not what was committed. `damaged`: directories of artifacts, with the problems."""

    def __init__(self, damaged: dict[Path, list[str]]) -> None:
        super().__init__(f"{len(damaged)} damaged inputs")
        self.damaged = damaged


class Damage:
    """Finds damage in the store at `root`."""

    def __init__(self, root: Path, digests: Digests) -> None:
        self._root = root
        self._digests = digests
        self._manifests: dict[Path, tuple[tuple[int, ...], Manifest]] = {}

    def manifest(self, path: Path) -> Manifest:
        """The manifest in an artifact's directory. It is parsed and verified once, as long as its file does not change.

        Raises DamagedArtifact if it is not whole, or of an artifact that lies elsewhere.
        """
        file = path / NAME
        try:
            facts = file.stat()
        except OSError:
            manifest_bytes(file)  # it raises the fitting error
            raise
        mark = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        known = self._manifests.get(path)
        if known is not None and known[0] == mark:
            return known[1]
        data = manifest_bytes(file)
        manifest = parse_manifest(file, data)
        if (manifest.stage, manifest.key[:16]) != (path.parent.name, path.name):
            raise DamagedArtifact(
                f"{file} is the manifest of {manifest.stage}/{manifest.key[:16]}, which lies elsewhere"
            )
        name = f"{manifest.stage}/{path.name}"
        if not manifest.sealed and not self._digests.manifest(name, facts, sha256_of(data)):
            raise DamagedArtifact(f"{file} was changed since it was first read")
        self._manifests[path] = (mark, manifest)
        return manifest

    def check_inputs(self, request: Any, cause: Exception | None = None) -> None:
        """Verify every byte of a request's inputs. What is known of a file by its times is not read again.

        With `cause`, the error that a stage failed with, everything is read. Raises SuspectInputs (from `cause`), or
        StageFailed if an input was made again with other bytes than those that the request names.
        """
        wanted: dict[Path, list[Input]] = {}
        for part in parts_of(request.inputs):
            if part.root.parent.parent == self._root:
                wanted.setdefault(part.root, []).append(part)
        damaged: dict[Path, list[str]] = {}
        for path, parts in wanted.items():
            try:
                manifest = self.manifest(path)
            except DamagedArtifact as error:
                damaged[path] = [str(error)]
                continue
            for part in parts:
                if part.part not in manifest.parts or manifest.parts[part.part].digest != part.digest:
                    raise StageFailed(
                        f"{part.stage}/{path.name} was made again meanwhile, and its part {part.part} has other "
                        "bytes than before: what was to be made of the old ones is asked for anew by the next start"
                    ) from cause
            names = {part.part for part in parts}
            reading: Reading = "all" if cause else "known"
            if problems := digest_problems(path, manifest, self._digests, names, reading):
                damaged[path] = problems
        if damaged:
            raise SuspectInputs(damaged) from cause

    def note_inputs(self, request: Any, work: Path) -> None:
        """Record in a work directory which makings of its inputs it reads."""
        known = _json(work / READ_FROM)
        write_bytes(work / READ_FROM, json.dumps({**self._makings(request), **known}).encode())

    def made_again_since(self, request: Any, work: Path) -> list[str]:
        """Inputs that were made again since this work was begun. What it holds may have been made of damaged bytes."""
        known = _json(work / READ_FROM)
        return [name for name, digest in self._makings(request).items() if known.get(name, digest) != digest]

    def _makings(self, request: Any) -> dict[str, str]:
        """The sha256 of each input's manifest, which holds when it was made. A store that is moved keeps it."""
        roots = {part.root for part in parts_of(request.inputs) if part.root.parent.parent == self._root}
        return {
            f"{path.parent.name}/{path.name}": sha256_of(manifest_bytes(path / NAME))
            for path in sorted(roots)
        }

    def condemn_inputs(self, request: Any, suspects: SuspectInputs) -> OnwardError:
        """Set damaged inputs aside, with what may have been made of them. Returns the error that says so."""
        told, artifacts = [], []
        for path, problems in suspects.damaged.items():
            error = self.condemn(path, problems)
            told.append(str(error))
            artifacts.append((path.parent.name, path.name))
        return DamagedInput(f"an input of {request.stage} is damaged: {'; '.join(told)}", tuple(artifacts))

    def condemn(self, path: Path, problems: Sequence[str] = ()) -> DamagedInput:
        """Set an artifact aside, under its lock, if it is still damaged then. Returns the error that says so."""
        with self._locked(path):
            found = self.problems(path)
            aside = self.set_aside_with_children(path) if found else []
        name = f"{path.parent.name}/{path.name}"
        told = "; ".join([*(found or problems)][:3])
        went = f"set aside as {', '.join(aside)}" if aside else "another process has dealt with it"
        return DamagedInput(f"{name}: {told} ({went})", ((path.parent.name, path.name),))

    def problems(self, path: Path) -> list[str]:
        """What is wrong with the artifact in this directory, every byte of which is read; nothing if there is none."""
        if not path.exists():
            return []
        try:
            return digest_problems(path, self.manifest(path), self._digests)
        except DamagedArtifact as error:
            return [str(error)]

    def set_aside_with_children(self, path: Path) -> list[str]:
        """Set a damaged artifact aside, and before it what may have been made of its bytes. Returns the new names.

        Its own lock is held. A file of another size was never read by a stage, nor was anything under a manifest that
        cannot be read: then its children stay.
        """
        if not path.exists():
            return []
        try:
            manifest = self.manifest(path)
            rotten = not size_problems(path, manifest) and digest_problems(path, manifest, self._digests)
        except DamagedArtifact:
            rotten = []
        aside = []
        for child in self._made_of(path) if rotten else ():
            with self._locked(child):
                if child.exists():
                    aside.append(set_aside(child))
        aside.append(set_aside(path))
        return [f"{one.parent.name}/{one.name}" for one in reversed(aside)]

    def poisoned(self, artifact: Artifact) -> str | None:
        """Why an artifact of 0.1.0 may have been made of damaged bytes that were set aside since; None if it was not."""
        if artifact.manifest.inputs_verified:
            return None
        began = str(artifact.manifest.provenance.get("started", ""))
        for stage, key in _edges(artifact.manifest):
            place = self._root / stage / key[:16]
            before = list(place.parent.glob(f".damaged-{place.name}-*"))
            if not before or not place.exists():
                continue
            try:
                made = str(self.manifest(place).provenance.get("started", ""))
            except DamagedArtifact:
                continue
            if made > began or any(_started(one) > made for one in before):  # or the clock was set back since
                return f"it was made before {stage}/{place.name}, which was damaged, was made again"
        return None

    def _made_of(self, path: Path) -> list[Path]:
        """Artifacts that may have read the bytes of this one unverified; those of a chain, the last link first."""
        edges: dict[tuple[str, str], list[tuple[Path, bool]]] = {}
        for child in self._all():
            manifest = self.manifest(child)
            if manifest.inputs_verified:
                continue
            for reference in _references(manifest.inputs):
                source = (str(reference["stage"]), str(reference["key"])[:16])
                edges.setdefault(source, []).append((child, reference["part"] == _CHAINED))
        found: dict[Path, None] = {}
        waiting = [(path.parent.name, path.name)]
        seen = set(waiting)
        while waiting:
            for child, chained in edges.get(waiting.pop(), ()):
                found.setdefault(child)
                place = (child.parent.name, child.name)
                if chained and place not in seen:
                    seen.add(place)
                    waiting.append(place)
        return list(reversed(found))

    def _all(self) -> Iterator[Path]:
        for file in sorted(self._root.glob(f"[!.]*/[0-9a-f]*/{NAME}")):
            try:
                self.manifest(file.parent)
            except DamagedArtifact:
                continue
            if PLACE.fullmatch(file.parent.name):
                yield file.parent

    def _locked(self, path: Path) -> Lock:
        return Lock(self._root / ".work" / f"{path.parent.name}-{path.name}.lock")


def set_aside(path: Path) -> Path:
    """Rename an artifact's directory to `.damaged-<name>-<number>` beside it. Raises OnwardError if that is elsewhere."""
    if path.parent.is_symlink():
        raise OnwardError(
            f"{path} is damaged, but {path.parent} is a link to {path.parent.resolve()}: nothing outside the store is "
            "moved. Move it away there by hand; the next run makes it again"
        )
    number = 1
    while (target := path.with_name(f".damaged-{path.name}-{number}")).exists():
        number += 1
    path.rename(target)
    fsync_directory(path.parent)
    return target


def _started(path: Path) -> str:
    """When an artifact that was set aside was begun; empty if its manifest cannot be read."""
    provenance = _json(path / NAME).get("provenance")
    return str(provenance.get("started", "")) if isinstance(provenance, dict) else ""


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _edges(manifest: Manifest) -> set[tuple[str, str]]:
    return {(str(one["stage"]), str(one["key"])) for one in _references(manifest.inputs)}


def _references(value: Any) -> Iterator[dict[str, Any]]:
    """The parts of other artifacts in recorded inputs."""
    if isinstance(value, dict):
        if {"stage", "key", "part", "digest"} <= value.keys():
            yield value
        else:
            for item in value.values():
                yield from _references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
