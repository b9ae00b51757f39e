"""The manifest of an artifact: what a stage made, of what, by which code. No absolute path stands in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import DamagedArtifact

FORMAT = 1
NAME = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """One file of a part: path relative to the artifact, size in bytes, sha256, and rows and tokens where known."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Part:
    """Files that are used together. `digest` is over the sorted paths and sha256 of the files."""

    digest: str
    files: tuple[FileEntry, ...]


def part_of(files: list[FileEntry]) -> Part:
    """A part with its digest; the files sorted by path."""
    ordered = tuple(sorted(files, key=lambda entry: entry.path))
    lines = "".join(f"{entry.path}\0{entry.sha256}\n" for entry in ordered)
    return Part(hashlib.sha256(lines.encode()).hexdigest(), ordered)


@dataclass(frozen=True)
class Manifest:
    """What is known of an artifact; `manifest.json` holds exactly this."""

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

    def to_bytes(self) -> bytes:
        """The manifest as JSON text."""
        return (json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @property
    def bytes(self) -> int:
        """Total size of the files in parts; a file in several parts counts once."""
        return sum({f.path: f.bytes for part in self.parts.values() for f in part.files}.values())


def read_manifest(directory: Path) -> Manifest:
    """Read a directory's manifest. Raises DamagedArtifact where it is missing, torn or of another format."""
    path = directory / NAME
    try:
        raw = json.loads(path.read_bytes())
        if raw.pop("format") != FORMAT:
            raise DamagedArtifact(f"{path} is of another format than {FORMAT}")
        parts = {
            name: Part(part["digest"], tuple(FileEntry(**entry) for entry in part["files"]))
            for name, part in raw.pop("parts").items()
        }
        return Manifest(parts=parts, volatile=tuple(raw.pop("volatile")), **raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(f"{path} cannot be read: {error}") from error


def size_problems(directory: Path, manifest: Manifest) -> list[str]:
    """Files of parts that are missing or whose size is not the recorded one."""
    problems = []
    for part in manifest.parts.values():
        for entry in part.files:
            path = directory / entry.path
            try:
                size = path.stat().st_size
            except OSError:
                problems.append(f"{entry.path} is missing")
                continue
            if size != entry.bytes:
                problems.append(f"{entry.path} has {size:,} bytes, not {entry.bytes:,}")
    return sorted(set(problems))


def digest_problems(directory: Path, manifest: Manifest) -> list[str]:
    """The same, and files whose sha256 is not the recorded one (reads every byte)."""
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
