"""JSON files of the work directory that cover themselves, and the record of what else was written there for good.

A flipped byte in one of these files could change what is trained, or be committed as if it were right. A file without
a seal is one of version 0.1.0, and is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.atomic import sha256_file, write_bytes
from storage.errors import DamagedArtifact

SEAL = "sealed"
"""The key of the seal: the sha256 of all other keys."""
WRITTEN, RESULT = "written.json", "result.json"
"""The record of files written for good, and what the segment ended with, which is written last."""


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Canonical JSON, with a line end."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object durably, with its seal."""
    bare = {name: inner for name, inner in value.items() if name != SEAL}
    write_bytes(path, json_bytes({**bare, SEAL: _seal(bare)}))


def read_sealed(path: Path) -> dict[str, Any]:
    """The object, without its seal. Raises FileNotFoundError, or DamagedArtifact if it is not what was written."""
    try:
        value = json.loads(path.read_bytes())
        seal = value.pop(SEAL, None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DamagedArtifact(f"{path} is not what was written ({error}).") from error
    if seal is None:  # of 0.1.0, unless the name of the seal was hit
        rest = ({name: inner for name, inner in value.items() if name != odd} for odd in value)
        damaged = any(value[odd] == _seal(bare) for odd, bare in zip(value, rest, strict=True))
    else:
        damaged = seal != _seal(value)
    if damaged:
        raise DamagedArtifact(f"{path} is not what was written (sha256).")
    return dict(value)


def note_written(work: Path, *directories: str, also: Mapping[str, bytes] | None = None) -> None:
    """Record the digest of every file below these directories of `work`, and of files whose bytes are given."""
    try:
        known = read_sealed(work / WRITTEN)["files"]
    except (FileNotFoundError, DamagedArtifact, KeyError):
        known = {}
    kept = {
        name: digest
        for name, digest in known.items()
        if not any(name.startswith(f"{directory}/") for directory in directories)
    }
    found = {
        str(path.relative_to(work)): sha256_file(path)
        for directory in directories
        for path in sorted((work / directory).rglob("*"))
        if path.is_file()
    }
    given = {name: hashlib.sha256(data).hexdigest() for name, data in (also or {}).items()}
    write_sealed(work / WRITTEN, {"files": {**kept, **found, **given}})


def not_as_written(work: Path, *parts: str) -> list[str]:
    """What is wrong with the files of these parts (directories or files of `work`) by the record; empty if they are whole.

    A file that is not in the record counts as wrong, so without a record everything does.
    """
    try:
        known: dict[str, str] = read_sealed(work / WRITTEN)["files"]
    except FileNotFoundError:
        known = {}
    except (DamagedArtifact, KeyError) as error:
        return [str(error)]
    there = {
        str(path.relative_to(work))
        for part in parts
        for path in ([work / part] if (work / part).is_file() else (work / part).rglob("*"))
        if path.is_file()
    }
    named = {name for name in known if name.split("/", 1)[0] in parts}
    problems = []
    for name in sorted(there | named):
        if name not in known:
            problems.append(f"nobody recorded the digest of {name}")
        elif name not in there:
            problems.append(f"{name} is missing")
        elif sha256_file(work / name) != known[name]:
            problems.append(f"{name} has other bytes than were written")
    return problems


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
