"""Which files a pattern of a source names, and why it names none.

A pattern is a path in which `*`, `?`, `[…]` and `**` stand for other characters. A folder or file that really has such
characters in its name is found by that name: first the pattern is read as it stands, then with the folders that exist by
their names, then with all brackets as brackets. The first reading that finds a file counts.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Matches:
    """What a pattern names, sorted: files, and whatever else has such a name. `prefix`: the folder that names start at."""

    prefix: Path
    found: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """The files among it."""
        return [path for path in self.found if path.is_file()]


def full_path(pattern: str, base: Path) -> Path:
    """The pattern below `base`, with `~` as the user's home. A user that is not known is the name of a folder."""
    try:
        return Path(base, Path(pattern).expanduser())
    except RuntimeError:
        return Path(base, pattern)


def matches(pattern: str, base: Path) -> Matches:
    """What a pattern names below `base`. A file that is there is itself, whatever characters its name has."""
    full = full_path(pattern, base)
    if os.path.lexists(full) and not full.is_dir():
        return Matches(full.parent, (full,))
    folders: Matches | None = None
    for reading in _readings(full):
        found = _expanded(reading)
        if any(not path.is_dir() for path in found.found):
            return found
        folders = folders or (found if found.found else None)
    return folders or Matches(base, ())


def other_reading(pattern: str, base: Path) -> str | None:
    """How to write the pattern for the existing folder of that name, where it also stands for other folders."""
    full = full_path(pattern, base)
    as_it_stands, by_name, _ = _readings(full)
    if by_name.parts == as_it_stands.parts or (os.path.lexists(full) and not full.is_dir()):
        return None
    usual = set(_expanded(as_it_stands).files)
    if not usual or not set(_expanded(by_name).files) - usual:
        return None
    written, above = Path(*by_name.parts), Path(glob.escape(str(base)))
    return str(written.relative_to(above) if written.is_relative_to(above) else written)


def why_none(pattern: str, base: Path) -> str:
    """Why a pattern names no file, and what to write."""
    full = full_path(pattern, base)
    if re.match(r"[a-z0-9]+://", pattern):
        return "it is an address; fetch the files first, or name a dataset under hub"
    if full.is_dir():
        return f"it is a directory; write its files, such as {pattern.rstrip('/')}/*.jsonl"
    for written, advice in _other_spellings(pattern):
        if matches(written, base).found:
            return f"{advice}: {written}"
    if any(path.is_dir() for path in matches(pattern, base).found):
        return f"only directories have such names; write their files, such as {pattern.rstrip('/')}/*.jsonl"
    if re.search(r"\{[^{}]*[,.][^{}]*\}", pattern):
        return "braces stand for themselves; write a pattern for each of the names"
    if "\\" in pattern:
        return "folders are parted by /, not by a backslash"
    if re.search(r"\$\w|\$\{|%\w+%", pattern):
        return "variables are not replaced; write the path itself"
    return _missing(full)


def _other_spellings(pattern: str) -> Iterator[tuple[str, str]]:
    if "\\" in pattern:
        yield pattern.replace("\\", "/"), "write / in place of the backslash"
    if pattern != pattern.strip():
        yield pattern.strip(), "leave out the blanks around it"
    if "**" in pattern and "/**/" not in f"/{pattern}/":
        yield re.sub(r"\*\*+", "**/*", pattern), "** is a part of its own between two /"
    for name in ("*.jsonl.gz", "*.jsonl.zst", "*.parquet", "*.jsonl", "*.json", "*.txt", "*.md"):
        if pattern.rpartition("/")[2].startswith("*."):
            yield pattern.rpartition("/")[0] + "/" * ("/" in pattern) + name, "other files are there"


def _missing(full: Path) -> str:
    """The first part of a path that is not there, and names like it that are."""
    folders = [Path(full.anchor)]
    for part in full.parts[1:]:
        if _GLOB.search(part) and not any(os.path.lexists(folder / part) for folder in folders):
            found = [path for folder in folders for path in Matches(folder, _below(folder, part)).found]
        else:
            found = [folder / part for folder in folders if os.path.lexists(folder / part)]
        if not found:
            return _like(part, folders[0])
        folders = found
    return f"nothing is at {full}"


def _below(folder: Path, part: str) -> tuple[Path, ...]:
    return tuple(Path(name) for name in sorted(glob.glob(glob.escape(str(folder)) + "/" + part)))


def _like(part: str, folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except NotADirectoryError:
        return f"{folder} is no directory"
    except OSError as error:
        return f"{folder} cannot be read ({error.strerror})"
    near = difflib.get_close_matches(part.lower(), [name.lower() for name in names], 3)
    like = [name for name in names if name.lower() in near] or names[:3]
    shown = ", ".join(repr(name) for name in like[:3]) + (", …" if len(names) > len(like) else "")
    return f"nothing in {folder} is called {part!r}; it holds {shown or 'nothing'}"


@dataclass(frozen=True)
class _Reading:
    """A pattern in parts, in which what stands for itself is escaped. `prefix`: the folder that names start at."""

    parts: tuple[str, ...]
    prefix: Path


def _readings(full: Path) -> tuple[_Reading, _Reading, _Reading]:
    """As it stands; with the folders that are there by their names; and also with every bracket as a bracket."""
    parts = full.parts
    plain = next((n for n, part in enumerate(parts) if _GLOB.search(part)), len(parts))
    folder, there = Path(full.anchor), 1
    for part in parts[1:]:
        folder = folder / part
        if not os.path.lexists(folder):
            break
        there += 1
    rest = parts[there:]
    bare = tuple(part.replace("[", "[[]") for part in rest)
    named = tuple(glob.escape(part) for part in parts[:there])
    names = next((n for n, part in enumerate(rest) if _GLOB.search(part)), len(rest))
    prefix = Path(*parts[: there + names])
    return (
        _Reading(parts, Path(*parts[:plain])),
        _Reading((*named, *rest), prefix),
        _Reading((*named, *bare), prefix),
    )


def _expanded(reading: _Reading) -> Matches:
    found = (Path(name) for name in glob.glob(str(Path(*reading.parts)), recursive=True))
    return Matches(reading.prefix, tuple(sorted(found, key=lambda path: path.as_posix())))
