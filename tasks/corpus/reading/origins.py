"""The origin of a source's text: files given by patterns, a dataset on the hub, or the installed Python's docs.

An origin names its members (files or groups of files). Its survey of a member gives the kind, the number of pieces,
and the approximate bytes of text in each piece. `slice_plan` decides what a slice takes of them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from storage.errors import ConfigError
from tasks.corpus.reading import python_docs
from tasks.corpus.reading.hub import Remembered, commit_of, split_files
from tasks.corpus.reading.kinds import (
    COMPRESSED_SUFFIXES,
    LINES_SUFFIXES,
    PARQUET_SUFFIXES,
    PROSE_SUFFIXES,
    TEXT_SUFFIXES,
    refusal,
)
from tasks.corpus.reading.parquet import read_footer
from tasks.corpus.reading.patterns import matches, why_none
from tasks.corpus.reading.remote import Missing, RemoteFile, keep_ends, spooled
from tasks.corpus.reading.sources import HubConfig, IngestConfig, SourceConfig
from tasks.corpus.reading.streams import opened, spans, uncompressed_size


@dataclass(frozen=True)
class Member:
    """A file of a source, or a group of Python files. `estimates`: bytes of text in each piece."""

    kind: str
    estimates: tuple[int, ...]
    version: str | None = None


class Origin(Protocol):
    """Members by name, in the given order."""

    def names(self) -> list[str]:
        """Names of all members."""

    def survey(self, name: str) -> Member:
        """Kind, pieces and estimates of one member."""


class Installed:
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


class Files:
    """Files given by patterns. A file's name is its path below the fixed prefix of its pattern."""

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


class Hub:
    """A split of a dataset on the hub. The commit is that of the previous slices; for the first slice, the revision's.

    Raises ConfigError, naming the field, if the dataset, revision, configuration or split is not available. Raises
    HubUnreachable if the hub does not answer and no answer is cached.
    """

    def __init__(
        self, config: IngestConfig, hub: HubConfig, commit: str | None, remembered: Remembered
    ) -> None:
        self.source, self.text_field, self.remembered = config.name, config.text_field, remembered
        where = f"corpus.sources: {config.name}: hub"
        self.commit = commit or commit_of(
            "dataset", hub.dataset, hub.revision, f"{where}.dataset", remembered, f"{where}.revision"
        )
        found = split_files(hub.dataset, hub.name, hub.split, self.commit, where, remembered)
        if not found:
            raise ConfigError(f"{where}.split: {hub.dataset} has no file in split {hub.split!r}")
        for file in found:
            if not _is_readable(file.path):
                raise ConfigError(
                    f"{where}.dataset: {hub.dataset} has {file.path}, and only Parquet, JSON lines and text are read "
                    "(plain, gz or zst); its revision refs/convert/parquet may hold the same as Parquet"
                )
        self.facts = {"dataset": hub.dataset, "name": hub.name, "split": hub.split, "commit": self.commit}
        self.files = {file.path: file for file in found}

    def names(self) -> list[str]:
        """Paths in the repository, in the order in which `datasets` reads them."""
        return list(self.files)

    def remote(self, name: str) -> RemoteFile:
        """A file, ready to be read."""
        kept = self.remembered.directory
        return RemoteFile(
            self.facts["dataset"] or "",
            self.commit,
            name,
            self.files[name].bytes,
            str(kept) if kept else None,
        )

    def survey(self, name: str) -> Member:
        """As for a local file with these bytes. A file that the hub lacks counts as one piece, which ingest sets
        aside."""
        question = ("survey", self.facts["dataset"], self.commit, name, self.text_field)
        known: dict[str, Any] | None = self.remembered.recall(*question)
        if known is None:
            member = self._survey(self.remote(name))
            known = self.remembered.remember(
                {"kind": member.kind, "estimates": list(member.estimates)}, *question
            )
        return Member(known["kind"], tuple(known["estimates"]))

    def _survey(self, file: RemoteFile) -> Member:
        try:
            if file.suffixes[-1:] != [] and file.suffixes[-1].lower() in PARQUET_SUFFIXES:
                keep_ends(file)
                with tempfile.TemporaryDirectory() as directory, spooled(file, None, Path(directory)) as path:
                    return survey_file(path, self.text_field)
            if (strange := refusal(file)) is not None:
                raise ConfigError(
                    f"source {self.source!r}: {file.name} of {file.dataset} is {strange[0]}, and only Parquet, JSON lines "
                    "and text are read; its revision refs/convert/parquet may hold the same as Parquet"
                )
            return survey_file(file, self.text_field)
        except Missing:
            return Member("lines", (file.size,))


def _is_readable(name: str) -> bool:
    *_, inner, outer = ["", "", *(suffix.lower() for suffix in Path(name).suffixes)]
    plain = (*PARQUET_SUFFIXES, *LINES_SUFFIXES, *PROSE_SUFFIXES)
    return outer in plain or (outer in COMPRESSED_SUFFIXES and inner in plain)


def survey_file(path: Path | RemoteFile, text_field: str) -> Member:
    """Kind, pieces and estimated text bytes of a file. The kind follows from its first bytes, else from its name."""
    size = path.stat().st_size
    *_, inner, outer = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    suffix = inner if outer in COMPRESSED_SUFFIXES else outer
    with opened(path) as stream:
        magic, plain = stream.magic, stream.plain
    if isinstance(path, Path) and (magic == b"PAR1" or (suffix in PARQUET_SUFFIXES and plain)):
        footer = read_footer(path, text_field)
        return Member("parquet", footer.text_bytes if footer and footer.text_bytes else (size,))
    if not plain:
        return Member("text" if suffix in TEXT_SUFFIXES else "lines", (uncompressed_size(path),))
    pieces = 1 if suffix in TEXT_SUFFIXES else spans(path)
    return Member("text" if suffix in TEXT_SUFFIXES else "lines", (size // pieces,) * pieces)


def named_files(source: str, patterns: tuple[str, ...], base_directory: Path) -> dict[str, Path]:
    """Names to absolute paths, in the order of the patterns and sorted within each. Raises ConfigError if one matches
    no file."""
    base_directory = base_directory.absolute()
    matched: list[tuple[Path, list[Path]]] = []
    for pattern in patterns:
        found = matches(pattern, base_directory)
        files = found.files
        if not files:
            raise ConfigError(
                f"source {source!r}: {pattern!r} matches no file: {why_none(pattern, base_directory)}"
            )
        matched.append((found.prefix, files))
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
