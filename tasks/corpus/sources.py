"""Which files and units a slice of a source reads: a plan made of names, sizes and the slice before, before any reading.

A source is a list of units in a fixed order: row groups of Parquet files, stretches of JSON-lines files, whole files
otherwise, groups of installed Python files. The first slice freezes the list; a slice goes on from where the one before
ended (the cursor) and takes units until their estimated text reaches `slice_bytes`. The names, sizes and sha256 of only
the files that it takes are in its key; paths never are.

    units   a/0  c/1  a/1  b/0  c/0 …        (ordered by hash of seed, source, file name and piece)
    slice 1 ├────────────┤                   ends inside a unit, at the row where slice_bytes of text are reached
    slice 2              ├───────┤
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import field_validator, model_validator

from storage.artifact import Input
from storage.errors import ConfigError
from storage.settings import Count, Settings, execution, identity
from tasks.corpus import python_docs
from tasks.corpus.digests import FileDigests
from tasks.corpus.parquet import read_footer
from tasks.corpus.streams import opened, spans, uncompressed_size

_COMPRESSED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")
_TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst")
_PARQUET_SUFFIXES = (".parquet", ".pq")
_GLOB_CHARACTERS = frozenset("*?[")


class SourceConfig(Settings):
    """One source of documents, as it stands in the configuration file."""

    name: str = identity(
        description="Its name in documents, metrics and reports; decides the documents' ids.",
        pattern=r"^[a-z0-9_-]+$",
    )
    role: Literal["domain", "replay"] = identity(
        description="domain: what the model shall learn; replay: general text, so that it forgets less."
    )
    weight: float = identity(description="Share of the training tokens, relative to the other sources.", gt=0)
    files: tuple[str, ...] | None = execution(
        None,
        description="Files or patterns: parquet, jsonl (plain, gz, zst), txt. Content is identity, paths are not.",
    )
    python_docs: Literal["domain", "general"] | None = identity(
        None, description="The embedded source: documentation of the installed Python, instead of files."
    )
    text_field: str = identity("text", description="The column or field that holds the text.", min_length=1)
    order: Literal["seeded", "as_given"] = identity(
        "seeded",
        description="seeded mixes files and row groups; as_given reads them in the order of `files`.",
    )

    @field_validator("files", mode="before")
    @classmethod
    def _one_pattern(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        given = [name for name in ("files", "python_docs") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "neither"
            raise ValueError(
                f"source {self.name!r}: give exactly one of files and python_docs ({what} given)"
            )
        if self.files is not None and not self.files:
            raise ValueError(f"source {self.name!r}: files is empty")
        return self


class IngestConfig(Settings):
    """What the bytes of a slice depend on, its inputs aside."""

    name: str = identity(description="The source's name.")
    text_field: str = identity("text", description="The column or field that holds the text.")
    order: Literal["seeded", "as_given"] = identity("seeded", description="Order of files and row groups.")
    python_docs: Literal["domain", "general"] | None = identity(None, description="The embedded source.")
    slice_bytes: Count = identity(description="About so much text a slice, in bytes of UTF-8.", gt=0)
    seed: int = identity(0, description="Seed of the order.")
    max_bad_fraction: float = identity(
        0.01, description="The stage fails where more of the rows than this were set aside.", ge=0, le=1
    )

    @classmethod
    def of(
        cls, source: SourceConfig, *, slice_bytes: int, seed: int, max_bad_fraction: float = 0.01
    ) -> IngestConfig:
        """The part of a source's configuration that ingest depends on; role and weight are not."""
        return cls(
            name=source.name,
            text_field=source.text_field,
            order=source.order,
            python_docs=source.python_docs,
            slice_bytes=slice_bytes,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
        )


@dataclass(frozen=True)
class IngestInputs:
    """What a slice reads. In the key: the slice before, and the files or distributions by content."""

    cursor: Input | None
    files: tuple[dict[str, Any], ...]  # {name, bytes, sha256}, in the order in which they are first read
    distributions: dict[str, str] | None  # python_docs: distribution to version, Python's among them
    paths: dict[str, str] = field(metadata={"in_key": False})
    reading: dict[str, Any] = field(
        metadata={"in_key": False}
    )  # files (frozen), total, begin, units, warnings


@dataclass(frozen=True)
class SlicePlan:
    """The next slice of a source: what `run` takes, and what can be said of it beforehand."""

    config: IngestConfig
    inputs: IngestInputs
    number: int  # counts from 1
    estimated_bytes: int
    last: bool  # nothing is left after it, unless it ends inside its last unit
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """A file of a source, or a group of Python files. `estimates`: bytes of text in each of its pieces."""

    kind: str
    estimates: tuple[int, ...]
    version: str | None = None


class _Origin(Protocol):
    def names(self) -> list[str]: ...
    def survey(self, name: str) -> Member: ...


def plan_slice(
    config: IngestConfig,
    source: SourceConfig,
    cursor: Input | None,
    base_directory: Path,
    digests: FileDigests,
) -> SlicePlan | None:
    """What the slice after `cursor` (None: the first) reads; None where the source is used up.

    Relative patterns are taken from `base_directory`. Raises ConfigError where a pattern matches nothing, or where a
    file of the first slice's list is missing or has changed.
    """
    state = read_cursor(cursor)
    if state and state["exhausted"]:
        return None
    origin: _Origin = _Installed(config) if config.python_docs else _Files(config, source, base_directory)
    names = origin.names()
    warnings: list[str] = []
    if state:
        frozen = state["files"]
        added = sorted(set(names) - {entry["name"] for entry in frozen})
        if added:
            warnings.append(
                f"source {config.name!r}: {len(added)} files came after its first slice and are not read "
                f"({', '.join(added[:3])}{', …' if len(added) > 3 else ''}); make them a source of their own"
            )
    else:
        members = {name: origin.survey(name) for name in names}
        frozen = [_frozen(name, members[name]) for name in names]
    order = ordered_units(config, frozen)
    begin = state["position"] if state else {"unit": 0, "row": 0, "offset": 0, "bytes": 0}
    units = _taken(config, origin, {entry["name"]: entry for entry in frozen}, order, begin, set(names))
    reading = {"files": frozen, "total": len(order), "begin": begin, "units": units, "warnings": warnings}
    return SlicePlan(
        config=config,
        inputs=_inputs(config, origin, cursor, reading, digests),
        number=state["slice"] + 1 if state else 1,
        estimated_bytes=sum(unit["estimate"] for unit in units),
        last=begin["unit"] + len(units) == len(order),
        warnings=tuple(warnings),
    )


def read_cursor(cursor: Input | None) -> dict[str, Any] | None:
    """The content of a cursor part, or None for none."""
    if cursor is None:
        return None
    state: dict[str, Any] = json.loads(cursor.only().read_bytes())
    return state


def ordered_units(config: IngestConfig, frozen: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """All units of a source, (name, piece), in the order in which its slices read them."""
    units = [(entry["name"], piece) for entry in frozen for piece in range(entry["pieces"])]
    if config.order == "as_given":
        return units

    def place(unit: tuple[str, int]) -> tuple[bytes, str, int]:
        text = json.dumps([config.seed, config.name, *unit])
        return hashlib.blake2b(text.encode(), digest_size=16).digest(), *unit

    return sorted(units, key=place)


def _frozen(name: str, member: Member) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "kind": member.kind, "pieces": len(member.estimates)}
    return entry if member.version is None else {**entry, "version": member.version}


def _taken(
    config: IngestConfig,
    origin: _Origin,
    frozen: Mapping[str, dict[str, Any]],
    order: list[tuple[str, int]],
    begin: Mapping[str, int],
    present: set[str],
) -> list[dict[str, Any]]:
    """Units from `begin` on until their estimates reach `slice_bytes`; at least one."""
    units: list[dict[str, Any]] = []
    members: dict[str, Member] = {}
    total, already = 0, begin["bytes"]
    for index in range(begin["unit"], len(order)):
        name, piece = order[index]
        if name not in members:
            members[name] = _survey_again(config, origin, frozen[name], present)
        estimate = members[name].estimates[piece]
        if already:  # an estimate that proved too small says nothing of what is left
            estimate = estimate - already if estimate > already else config.slice_bytes
        units.append(
            {"index": index, "name": name, "piece": piece, "kind": frozen[name]["kind"], "estimate": estimate}
        )
        total, already = total + estimate, 0
        if total >= config.slice_bytes:
            break
    return units


def _survey_again(config: IngestConfig, origin: _Origin, entry: dict[str, Any], present: set[str]) -> Member:
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
    origin: _Origin,
    cursor: Input | None,
    reading: dict[str, Any],
    digests: FileDigests,
) -> IngestInputs:
    names = list(dict.fromkeys(unit["name"] for unit in reading["units"]))
    if isinstance(origin, _Installed):
        groups = [origin.groups[name] for name in names]
        versions = {"python": python_docs.python_version()} | {g.distribution: g.version for g in groups}
        reading["members"] = {name: list(origin.groups[name].files) for name in names}
        paths = {name: str(origin.groups[name].root) for name in names}
        return IngestInputs(cursor, (), dict(sorted(versions.items())), paths, reading)
    assert isinstance(origin, _Files)
    known = {entry["name"]: entry.get("sha256") for entry in reading["files"]}
    files = []
    for name in names:
        path = origin.paths[name]
        sha256 = digests.sha256(path)
        if known.get(name) not in (None, sha256):
            raise ConfigError(
                f"source {config.name!r}: {name} is no longer the file that an earlier slice read. What was read "
                "before is kept; put it back as it was, or run again from the first slice"
            )
        files.append({"name": name, "bytes": path.stat().st_size, "sha256": sha256})
    paths = {name: str(origin.paths[name]) for name in names}
    return IngestInputs(cursor, tuple(files), None, paths, reading)


class _Installed:
    """The embedded source: groups of documentation files of installed distributions."""

    def __init__(self, config: IngestConfig) -> None:
        assert config.python_docs is not None
        self.groups = python_docs.groups(config.python_docs)
        if not self.groups:
            raise ConfigError(f"source {config.name!r}: no installed distribution has documentation for it")

    def names(self) -> list[str]:
        return list(self.groups)

    def survey(self, name: str) -> Member:
        group = self.groups[name]
        return Member("python", (group.estimated_bytes,), group.version)


class _Files:
    """Files by patterns. A file's name is its path below its pattern's fixed prefix."""

    def __init__(self, config: IngestConfig, source: SourceConfig, base_directory: Path) -> None:
        self.source, self.text_field = config.name, config.text_field
        self.paths: dict[str, Path] = named_files(config.name, source.files or (), base_directory)

    def names(self) -> list[str]:
        return list(self.paths)

    def survey(self, name: str) -> Member:
        try:
            return survey_file(self.paths[name], self.text_field)
        except OSError as error:
            raise ConfigError(
                f"source {self.source!r}: {self.paths[name]} cannot be read ({error.strerror or error}); "
                "nothing was started. Make it readable, or leave it out of files"
            ) from error


def survey_file(path: Path, text_field: str) -> Member:
    """Kind, pieces and estimated text bytes of a file. Its first bytes count, where they tell, and then its name."""
    size = path.stat().st_size
    *_, inner, outer = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    suffix = inner if outer in _COMPRESSED_SUFFIXES else outer
    with opened(path) as stream:
        magic, plain = stream.magic, stream.plain
    if magic == b"PAR1" or (suffix in _PARQUET_SUFFIXES and plain):
        footer = read_footer(path, text_field)
        return Member("parquet", footer.text_bytes if footer and footer.text_bytes else (size,))
    if not plain:
        return Member("text" if suffix in _TEXT_SUFFIXES else "lines", (uncompressed_size(path),))
    pieces = 1 if suffix in _TEXT_SUFFIXES else spans(path)
    return Member("text" if suffix in _TEXT_SUFFIXES else "lines", (size // pieces,) * pieces)


def named_files(source: str, patterns: tuple[str, ...], base_directory: Path) -> dict[str, Path]:
    """Names to absolute paths, in the order of the patterns and sorted within each. Raises ConfigError on no match."""
    base_directory = base_directory.absolute()
    matched: list[tuple[Path, list[Path]]] = []
    for pattern in patterns:
        full = Path(base_directory, Path(pattern).expanduser())
        prefix, files = (full.parent, [full]) if full.is_file() else (_fixed_prefix(full), _glob(full))
        if not files:
            why = " (it is a directory; write its files, such as *.parquet)" if full.is_dir() else ""
            raise ConfigError(f"source {source!r}: {pattern!r} matches no file{why}; looked for {full}")
        matched.append((prefix, files))
    several = len({prefix for prefix, _ in matched}) > 1
    named: dict[str, Path] = {}
    taken: set[Path] = set()
    for index, (prefix, files) in enumerate(matched):
        for path in files:
            if path not in taken:
                taken.add(path)
                name = _name_of(source, path.relative_to(prefix))
                named[f"{index}/{name}" if several else name] = path
    return named


def _name_of(source: str, path: Path) -> str:
    name = path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"source {source!r}: the file name {name!r} is no UTF-8; rename the file") from None
    return name


def _glob(pattern: Path) -> list[Path]:
    return sorted(
        (Path(found) for found in glob.glob(str(pattern), recursive=True) if Path(found).is_file()),
        key=lambda path: path.as_posix(),
    )


def _fixed_prefix(pattern: Path) -> Path:
    parts: list[str] = []
    for part in pattern.parts:
        if _GLOB_CHARACTERS.intersection(part):
            break
        parts.append(part)
    return Path(*parts)
