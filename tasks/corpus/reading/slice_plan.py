"""Plan which files and units a slice reads. The plan uses names, sizes and the previous slice; no text is read.

A source is a list of units in a fixed order: row groups of Parquet files, spans of JSON-lines files, other files as a
whole, groups of installed Python files. The first slice freezes this list. A slice starts where the previous one ended
(the cursor) and takes units until their estimated text reaches `slice_bytes`. Its key contains the names, sizes and
sha256 of the files that it takes, and no others. Paths are never in the key.

    units   a/0  c/1  a/1  b/0  c/0 …        (ordered by hash of seed, source, file name and piece)
    slice 1 ├────────────┤                   ends inside a unit, at the row where slice_bytes of text are reached
    slice 2              ├───────┤
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from storage.artifact import Input
from storage.errors import ConfigError
from tasks.corpus.reading import python_docs
from tasks.corpus.reading.digests import FileDigests
from tasks.corpus.reading.extracted import Shelf
from tasks.corpus.reading.hub import Remembered
from tasks.corpus.reading.origins import Files, Hub, Installed, Member, Origin
from tasks.corpus.reading.sources import IngestConfig, SourceConfig

T = TypeVar("T")
_SHELF_FILES = 16
"""Files of the hub are surveyed this many at a time, and mixed within such a shelf. So a source of thousands of files
starts at once."""


@dataclass(frozen=True)
class IngestInputs:
    """What a slice reads. In the key: the previous slice, and the files or distributions by content."""

    cursor: Input | None
    files: tuple[dict[str, Any], ...]  # {name, bytes, sha256}, in the order in which they are first read
    distributions: dict[str, str] | None  # python_docs: distribution to version, Python itself included
    paths: dict[str, str] = field(metadata={"in_key": False})
    reading: dict[str, Any] = field(
        metadata={"in_key": False}
    )  # files (frozen), total, begin, units, warnings
    hub: dict[str, str | None] | None = None  # dataset, name (configuration), split, commit
    extracted: Input | None = field(
        default=None, metadata={"since": "0.2"}
    )  # documents that `extract` read out of a shelf of files


@dataclass(frozen=True)
class SlicePlan:
    """The next slice of a source: the arguments of `run`, and what is known before it runs."""

    config: IngestConfig
    inputs: IngestInputs
    number: int  # counts from 1
    estimated_bytes: int
    last: bool  # nothing is left after it, unless it ends inside its last unit
    warnings: tuple[str, ...]


def plan_slice(
    config: IngestConfig,
    source: SourceConfig,
    cursor: Input | None,
    base_directory: Path,
    digests: FileDigests,
    remembered: Remembered | None = None,
    documents: Shelf | None = None,
) -> SlicePlan | None:
    """Plan the slice after `cursor` (None: the first slice). Returns None if the source is exhausted.

    Relative patterns start at `base_directory`. `remembered` holds earlier answers of the hub. `documents`: the shelf that
    the slice reads; a cursor at the end of a shelf begins the next one, and units are numbered on. Raises ConfigError if a
    pattern matches nothing, if a file in the first slice's list is missing or has changed, or if the hub lacks what is
    named. Raises HubUnreachable if the hub does not answer.
    """
    state = read_cursor(cursor)
    before = 0  # units of earlier shelves
    number = state["slice"] + 1 if state else 1
    if state and state["exhausted"]:
        if documents is None:
            return None
        before, state = state["position"]["unit"], None
    elif state:
        before = state.get("before", 0)
    origin = documents or _origin(config, source, state, base_directory, remembered or Remembered(None))
    shelf = (1 if config.order == "as_given" else _SHELF_FILES) if isinstance(origin, Hub) else None
    names = origin.names()
    warnings: list[str] = []
    if state:
        frozen = list(state["files"])
        added = sorted(set(names) - {entry["name"] for entry in frozen})
        if added:
            warnings.append(
                f"source {config.name!r}: {len(added)} files came after its first slice and are not read "
                f"({', '.join(added[:3])}{', …' if len(added) > 3 else ''}); make them a source of their own"
            )
    else:
        frozen = [{"name": name} for name in (_mixed(config, names) if shelf else names)]
        _look_into(origin, frozen, shelf)
    begin = state["position"] if state else {"unit": before, "row": 0, "offset": 0, "bytes": 0}
    units = _taken(config, origin, frozen, shelf, {**begin, "unit": begin["unit"] - before}, set(names))
    units = [{**unit, "index": unit["index"] + before} for unit in units]
    total = (
        before + len(ordered_units(config, frozen, shelf)) + sum("pieces" not in entry for entry in frozen)
    )
    reading = {"files": frozen, "total": total, "begin": begin, "units": units, "warnings": warnings}
    if before:
        reading["before"] = before
    return SlicePlan(
        config=config,
        inputs=_inputs(config, origin, cursor, reading, digests),
        number=number,
        estimated_bytes=sum(unit["estimate"] for unit in units),
        last=begin["unit"] + len(units) == total,
        warnings=tuple(warnings),
    )


def _origin(
    config: IngestConfig,
    source: SourceConfig,
    state: Mapping[str, Any] | None,
    base_directory: Path,
    remembered: Remembered,
) -> Origin:
    if config.python_docs:
        return Installed(config)
    if source.hub is None:
        return Files(config, source, base_directory)
    return Hub(config, source.hub, state["hub"]["commit"] if state else None, remembered)


def read_cursor(cursor: Input | None) -> dict[str, Any] | None:
    """The content of a cursor part; None if there is no part."""
    if cursor is None:
        return None
    state: dict[str, Any] = json.loads(cursor.only().read_bytes())
    return state


def ordered_units(
    config: IngestConfig, frozen: list[dict[str, Any]], shelf: int | None = None
) -> list[tuple[str, int]]:
    """The units (name, piece) of all files surveyed so far, in the order in which slices read them.

    Units are mixed within each shelf of `shelf` files (None: over all files), so a later survey moves no earlier unit.
    """
    known = [entry for entry in frozen if "pieces" in entry]
    units: list[tuple[str, int]] = []
    size = shelf or max(1, len(known))
    for begin in range(0, len(known), size):
        here = known[begin : begin + size]
        units += _mixed(
            config, [(entry["name"], piece) for entry in here for piece in range(entry["pieces"])]
        )
    return units


def _mixed(config: IngestConfig, things: list[T]) -> list[T]:
    """Units or names in the source's order."""
    if config.order == "as_given":
        return things

    def place(thing: Any) -> tuple[bytes, Any]:
        text = json.dumps([config.seed, config.name, *((thing,) if isinstance(thing, str) else thing)])
        return hashlib.blake2b(text.encode(), digest_size=16).digest(), thing

    return sorted(things, key=place)


def _look_into(origin: Origin, frozen: list[dict[str, Any]], shelf: int | None) -> bool:
    """Survey the next shelf of files and freeze their pieces. Returns whether any file was left."""
    begin = sum("pieces" in entry for entry in frozen)
    end = begin + (shelf or len(frozen))
    for index, entry in enumerate(frozen[begin:end], begin):
        frozen[index] = _frozen(entry["name"], origin.survey(entry["name"]))
    return begin < len(frozen)


def _frozen(name: str, member: Member) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "kind": member.kind, "pieces": len(member.estimates)}
    return entry if member.version is None else {**entry, "version": member.version}


def _taken(
    config: IngestConfig,
    origin: Origin,
    frozen: list[dict[str, Any]],
    shelf: int | None,
    begin: Mapping[str, int],
    present: set[str],
) -> list[dict[str, Any]]:
    """Units from `begin` on, at least one, until their estimates reach `slice_bytes`. Surveys further shelves if
    needed."""
    units: list[dict[str, Any]] = []
    members: dict[str, Member] = {}
    total, already, index = 0, begin["bytes"], begin["unit"]
    while True:
        order = ordered_units(config, frozen, shelf)
        entries = {entry["name"]: entry for entry in frozen}
        for place in range(index, len(order)):
            name, piece = order[place]
            entry = entries[name]
            if name not in members:
                members[name] = _survey_again(config, origin, entry, present)
            estimate = members[name].estimates[piece]
            if already:  # an estimate that was too small says nothing about the rest
                estimate = estimate - already if estimate > already else config.slice_bytes
            units.append(
                {"index": place, "name": name, "piece": piece, "kind": entry["kind"], "estimate": estimate}
            )
            total, already = total + estimate, 0
            if total >= config.slice_bytes:
                return units
        index = len(order)
        if not _look_into(origin, frozen, shelf):
            return units


def _survey_again(config: IngestConfig, origin: Origin, entry: dict[str, Any], present: set[str]) -> Member:
    name = entry["name"]
    if name not in present:
        raise ConfigError(
            f"source {config.name!r}: {name} is in the list that its first slice froze, and is missing now. "
            "What was read before is kept; put the file back, or give the source another name to begin anew"
        )
    member = origin.survey(name)
    if _frozen(name, member) != {key: value for key, value in entry.items() if key != "sha256"}:
        raise ConfigError(
            f"source {config.name!r}: {name} has changed since the first slice was planned "
            f"({_described(entry)}, now {_described(_frozen(name, member))}). "
            "What was read before is kept; put it back as it was, or give the source another name to begin anew"
        )
    return member


def _described(entry: Mapping[str, Any]) -> str:
    version = f" of version {entry['version']}" if "version" in entry else ""
    return f"{entry['kind']} in {entry['pieces']} pieces{version}"


def _inputs(
    config: IngestConfig,
    origin: Origin,
    cursor: Input | None,
    reading: dict[str, Any],
    digests: FileDigests,
) -> IngestInputs:
    names = list(dict.fromkeys(unit["name"] for unit in reading["units"]))
    if isinstance(origin, Installed):
        groups = [origin.groups[name] for name in names]
        versions = {"python": python_docs.python_version()} | {g.distribution: g.version for g in groups}
        reading["members"] = {name: list(origin.groups[name].files) for name in names}
        paths = {name: str(origin.groups[name].root) for name in names}
        return IngestInputs(cursor, (), dict(sorted(versions.items())), paths, reading)
    if isinstance(origin, Hub):
        listed = [origin.files[name] for name in names]
        content = tuple({"name": file.path, "bytes": file.bytes, "sha256": file.digest} for file in listed)
        reading["remote"] = {name: origin.remote(name) for name in names}
        return IngestInputs(cursor, content, None, {name: name for name in names}, reading, origin.facts)
    assert isinstance(origin, Files | Shelf)
    known = {entry["name"]: entry.get("sha256") for entry in reading["files"]}
    files = []
    extracted = origin.extracted if isinstance(origin, Shelf) else None
    own = set(origin.paths) - set(origin.rows) if isinstance(origin, Shelf) else set()
    for name in names:
        if name in own:  # covered by the digest of the part
            continue
        path = origin.paths[name]
        sha256 = digests.sha256(path)
        if known.get(name) not in (None, sha256):
            raise ConfigError(
                f"source {config.name!r}: {name} is no longer the file that an earlier slice read. What was read "
                "before is kept; put it back as it was, or run again from the first slice"
            )
        files.append({"name": name, "bytes": path.stat().st_size, "sha256": sha256})
    paths = {name: str(origin.paths[name]) for name in names}
    return IngestInputs(cursor, tuple(files), None, paths, reading, extracted=extracted)
