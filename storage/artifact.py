"""References to parts of committed artifacts, which stages pass to each other. This module only reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from storage.errors import OnwardError
from storage.manifest import Manifest


@dataclass(frozen=True)
class Input:
    """One part of a committed artifact, as the input of a stage. Only `digest` enters the key."""

    stage: str
    key: str
    part: str
    digest: str
    root: Path = field(compare=False)
    files: tuple[str, ...] = field(compare=False, repr=False)
    stats: Mapping[str, Any] = field(compare=False, repr=False, default_factory=dict)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Absolute paths of the part's files, sorted by relative name."""
        return tuple(self.root / name for name in self.files)

    def only(self) -> Path:
        """The part's only file. Raises OnwardError if the part has no file or several."""
        if len(self.files) != 1:
            raise OnwardError(
                f"part {self.part} of {self.stage} {self.key[:12]} has {len(self.files)} files, not one"
            )
        return self.root / self.files[0]


@dataclass(frozen=True)
class Chain:
    """Parts, oldest first. Each digest covers the part before it, so only the last digest is in a key."""

    links: tuple[Input, ...]

    @property
    def digest(self) -> str | None:
        """The digest of the last link, which stands for the whole chain; None if the chain is empty."""
        return self.links[-1].digest if self.links else None


@dataclass(frozen=True)
class Artifact:
    """A committed, immutable directory with its manifest."""

    path: Path
    manifest: Manifest
    estimated: ClassVar[bool] = False
    """Whether it only stands for an artifact that is not made yet, with estimates as statistics."""

    @property
    def stage(self) -> str:
        """Name of the stage that made the artifact."""
        return self.manifest.stage

    @property
    def key(self) -> str:
        """The stage key, 64 hex digits."""
        return self.manifest.key

    @property
    def stats(self) -> dict[str, Any]:
        """The statistics that the stage returned. They are deterministic."""
        return self.manifest.stats

    def has(self, part: str) -> bool:
        """Whether the artifact has a part of this name."""
        return part in self.manifest.parts

    def part(self, name: str) -> Input:
        """A reference to one part. Raises OnwardError if the artifact has no part of this name."""
        if name not in self.manifest.parts:
            raise OnwardError(
                f"{self.stage} {self.key[:12]} has no part {name!r}; it has {sorted(self.manifest.parts)}"
            )
        part = self.manifest.parts[name]
        files = tuple(entry.path for entry in part.files)
        return Input(self.stage, self.key, name, part.digest, self.path, files, self.manifest.stats)
