"""The manifest of an artifact: what a stage made, from which inputs, with which code. It holds no absolute path."""

from __future__ import annotations

import hashlib
import json
import re
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import DamagedArtifact

FORMAT = 1
NAME = "manifest.json"
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
        """The manifest as JSON text, which 0.1.0 can read too where it names no component."""
        fields = asdict(self)
        if not self.components:
            del fields["components"]
        return (json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @property
    def bytes(self) -> int:
        """Total size of the files in parts. A file in several parts counts once."""
        return sum({f.path: f.bytes for part in self.parts.values() for f in part.files}.values())


def read_manifest(directory: Path) -> Manifest:
    """Read a directory's manifest. Raises DamagedArtifact if it is missing, truncated or in another format."""
    path = directory / NAME
    try:
        raw = json.loads(path.read_bytes())
        if raw.pop("format") != FORMAT:
            raise DamagedArtifact(f"{path} does not have the format {FORMAT}")
        parts = {
            name: Part(part["digest"], tuple(FileEntry(**entry) for entry in part["files"]))
            for name, part in raw.pop("parts").items()
        }
        manifest = Manifest(parts=parts, volatile=tuple(raw.pop("volatile")), **raw)
        _check_names(path, manifest)
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(f"{path} cannot be read: {error}") from error


def _check_names(path: Path, manifest: Manifest) -> None:
    """Refuse paths that lead out of the artifact or the store. A manifest may come from elsewhere."""
    names = [entry.path for part in manifest.parts.values() for entry in part.files]
    for name in (*names, *manifest.volatile):
        if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name:
            raise DamagedArtifact(f"{path} names the file {name[:200]!r}, which is not in the artifact")
    if not _STAGE.fullmatch(manifest.stage):
        raise DamagedArtifact(f"{path} names the stage {manifest.stage[:80]!r}, which is no name of a stage")


def size_problems(directory: Path, manifest: Manifest) -> list[str]:
    """Files of parts that are missing, have another size than recorded, or are links that lead elsewhere."""
    problems = []
    real = directory.resolve()
    inside: dict[Path, bool] = {}
    for part in manifest.parts.values():
        for entry in part.files:
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
    return sorted(set(problems))


def digest_problems(directory: Path, manifest: Manifest) -> list[str]:
    """The problems of `size_problems`, and files whose sha256 is not the recorded one (reads every byte)."""
    problems = size_problems(directory, manifest)
    if problems:
        return problems
    seen: dict[str, str] = {}
    for part in manifest.parts.values():
        for entry in part.files:
            if entry.path not in seen:
                with (directory / entry.path).open("rb") as file:
                    seen[entry.path] = hashlib.file_digest(file, "sha256").hexdigest()
            if seen[entry.path] != entry.sha256:
                problems.append(f"{entry.path} has other bytes than were committed")
    return sorted(set(problems))
