"""The manifest of an artifact: what a stage made, from which inputs, with which code. It holds no absolute path.

It covers itself. The key is that of stage, version, configuration, inputs and components; each part's digest is that of
its files; and `provenance.manifest_sha256` is the sha256 of the file with zeros in its own place (manifests of 0.1.0
have none). A manifest that does not agree with itself is damaged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from storage.digests import Digests
from storage.errors import DamagedArtifact, OnwardError

FORMAT = 1
NAME = "manifest.json"
SEAL = "manifest_sha256"
VERIFIED = "inputs_verified"
"""The fact, in the provenance, that all bytes of the inputs were verified when the artifact was made."""
_ZEROS = "0" * 64
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
"""What the system says of a file that is gone or rotten; not of one that this user may not read."""
_STAGE = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class FileEntry:
    """One file of a part: path relative to the artifact, size in bytes, sha256, and, if known, rows and tokens."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Part:
    """Files that are used together. `digest` covers the sorted paths and the sha256 of the files."""

    digest: str
    files: tuple[FileEntry, ...]


def part_of(files: list[FileEntry]) -> Part:
    """Build a part with its digest. The files are sorted by path."""
    ordered = tuple(sorted(files, key=lambda entry: entry.path))
    lines = "".join(f"{entry.path}\0{entry.sha256}\n" for entry in ordered)
    return Part(hashlib.sha256(lines.encode()).hexdigest(), ordered)


@dataclass(frozen=True)
class Manifest:
    """The recorded facts about an artifact; `manifest.json` holds exactly these fields."""

    stage: str
    version: int
    key: str
    config: dict[str, Any]
    inputs: dict[str, Any]
    parts: dict[str, Part]
    volatile: tuple[str, ...] = ()
    stats: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    components: dict[str, int] = field(default_factory=dict)
    """Versions of the stage's components that stand in the key; none in a manifest of 0.1.0."""

    def to_bytes(self) -> bytes:
        """The manifest as JSON text, sealed. 0.1.0 can read it too where it names no component."""
        fields = asdict(self)
        fields["provenance"] = {**self.provenance, SEAL: _ZEROS}
        if not self.components:
            del fields["components"]
        text = json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        mark = f'"{SEAL}": "{_ZEROS}"'
        before, _, after = text.rpartition(mark)
        return (before + mark.replace(_ZEROS, sha256_of(text.encode())) + after).encode()

    @property
    def sealed(self) -> bool:
        """Whether every byte of the manifest is covered by its own digest. Those of 0.1.0 are not."""
        return SEAL in self.provenance

    @property
    def inputs_verified(self) -> bool:
        """Whether the bytes of the inputs were verified when the artifact was made. 0.1.0 did not."""
        return bool(self.provenance.get(VERIFIED))

    @property
    def bytes(self) -> int:
        """Total size of the files in parts. A file in several parts counts once."""
        return sum({f.path: f.bytes for part in self.parts.values() for f in part.files}.values())


def read_manifest(directory: Path) -> Manifest:
    """Read a directory's manifest. Raises DamagedArtifact if it is missing, in another format, or not what was written."""
    path = directory / NAME
    return parse_manifest(path, manifest_bytes(path))


def manifest_bytes(path: Path) -> bytes:
    """The bytes of a manifest. Raises DamagedArtifact if the disk does not give them, OnwardError if we may not read."""
    try:
        return path.read_bytes()
    except OSError as error:
        kind = DamagedArtifact if error.errno in _LOST else OnwardError
        raise kind(f"{path} cannot be read: {error}") from error


def parse_manifest(path: Path, data: bytes) -> Manifest:
    """The manifest in a file's bytes. Raises DamagedArtifact, naming `path`."""
    try:
        raw = json.loads(data)
        if raw.pop("format") != FORMAT:
            raise DamagedArtifact(f"{path} does not have the format {FORMAT}")
        parts = {
            name: Part(part["digest"], tuple(FileEntry(**entry) for entry in part["files"]))
            for name, part in raw.pop("parts").items()
        }
        manifest = Manifest(parts=parts, volatile=tuple(raw.pop("volatile")), **raw)
        _check_names(path, manifest)
        _check_digests(path, data, manifest)
        return manifest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedArtifact(f"{path} cannot be read: {error}") from error


def _check_names(path: Path, manifest: Manifest) -> None:
    """Refuse paths that lead out of the artifact or the store. A manifest may come from elsewhere."""
    names = [entry.path for part in manifest.parts.values() for entry in part.files]
    for name in (*names, *manifest.volatile):
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DamagedArtifact(f"{path} names the file {name[:200]!r}, which is not in the artifact")
    if not _STAGE.fullmatch(manifest.stage):
        raise DamagedArtifact(f"{path} names the stage {manifest.stage[:80]!r}, which is no name of a stage")


def _check_digests(path: Path, data: bytes, manifest: Manifest) -> None:
    seal = manifest.provenance.get(SEAL)
    if seal is None:
        whole = not manifest.inputs_verified  # 0.1.0 wrote neither
    else:
        whole = sha256_of(data.replace(str(seal).encode(), _ZEROS.encode(), 1)) == seal
    payload = {
        "stage": manifest.stage,
        "version": manifest.version,
        "config": manifest.config,
        "inputs": bare(manifest.inputs),
        **({"components": manifest.components} if manifest.components else {}),
    }
    canonical = json.dumps(payload, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if not whole or sha256_of(canonical.encode()) != manifest.key:
        raise DamagedArtifact(f"{path} is not what was written")
    for name, part in manifest.parts.items():
        if part_of(list(part.files)).digest != part.digest:
            raise DamagedArtifact(
                f"{path} is not what was written: the digest of its part {name} is of other files"
            )


def bare(value: Any) -> Any:
    """Recorded inputs as they stand in the key: the digest alone for each part of another artifact."""
    if isinstance(value, dict):
        if {"stage", "key", "part", "digest"} <= value.keys():
            return value["digest"]
        return {name: bare(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [bare(item) for item in value]
    return value


def sha256_of(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()


def files_of(manifest: Manifest, parts: Collection[str] | None = None) -> list[FileEntry]:
    """The files of some parts, or of all, each once."""
    named = manifest.parts if parts is None else {name: manifest.parts[name] for name in parts}
    return list({entry.path: entry for part in named.values() for entry in part.files}.values())


def size_problems(directory: Path, manifest: Manifest, parts: Collection[str] | None = None) -> list[str]:
    """Files of parts that are missing, have another size than recorded, or are links that lead elsewhere."""
    return _sizes(directory, files_of(manifest, parts))[0]


def _sizes(directory: Path, files: list[FileEntry]) -> tuple[list[str], dict[str, os.stat_result]]:
    problems = []
    seen: dict[str, os.stat_result] = {}
    real = directory.resolve()
    inside: dict[Path, bool] = {}
    for entry in files:
        path = directory / entry.path
        folder = Path(entry.path).parent
        try:
            found = path.lstat()
        except OSError:
            problems.append(f"{entry.path} is missing")
            continue
        if folder not in inside:
            inside[folder] = path.parent.resolve() == real / folder
        if not stat.S_ISREG(found.st_mode) or not inside[folder]:
            problems.append(f"{entry.path} is a link or no plain file")
        elif found.st_size != entry.bytes:
            problems.append(f"{entry.path} has {found.st_size:,} bytes, not {entry.bytes:,}")
        seen[entry.path] = found
    return sorted(set(problems)), seen


Reading = Literal["changed", "known", "all"]
"""Which files are read for a digest: those that have changed since they were last read, those that are not known as
they are, or all."""


def digest_problems(
    directory: Path,
    manifest: Manifest,
    digests: Digests,
    parts: Collection[str] | None = None,
    reading: Reading = "all",
) -> list[str]:
    """The problems of `size_problems`, and files of parts whose sha256 is not the recorded one."""
    files = files_of(manifest, parts)
    problems, seen = _sizes(directory, files)
    if problems:
        return problems
    if reading == "changed":
        files = [entry for entry in files if digests.suspect(seen[entry.path], entry.sha256)]
    try:
        found = digests.of([directory / entry.path for entry in files], fresh=reading == "all")
    except OSError as error:
        if error.errno not in _LOST:
            raise
        return [f"{error.filename or directory} cannot be read: {error.strerror or error}"]
    return [
        f"{entry.path} has other bytes than were committed"
        for entry, digest in zip(files, found, strict=True)
        if digest != entry.sha256
    ]
