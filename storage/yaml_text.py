"""YAML as people write it in a configuration: plain values only, and each key once.

The text is read event by event, so its depth and its size are known before anything is built. The result holds
mappings with text keys, lists, texts, numbers, true, false and null, and nothing else: what YAML would make into another
type (a date, a tag that names a class) is refused. Every error is a ConfigError with the place, the line and the key.
"""

from __future__ import annotations

import copy
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from storage.errors import ConfigError

LARGEST = 1 << 20
"""The most bytes of a file. Longer ones are some other file: reading YAML takes seconds per megabyte."""
_DEEPEST = 32
"""The deepest nesting. The configuration of a run has six levels."""
_MOST_VALUES = 100_000
"""The most values, counting what an alias (`*name`) repeats as often as it is repeated."""
_LONGEST_NUMBER = 100

_CORE = "tag:yaml.org,2002:"
_PLAIN = frozenset(_CORE + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq"))
_MERGE = _CORE + "merge"


def read_yaml(path: Path, refused_tags: Mapping[str, str] | None = None) -> Any:
    """The plain values of a YAML file (UTF-8). Raises ConfigError; `refused_tags` says more about some tags."""
    return parse_yaml(_text_of(path), str(path), refused_tags)


def parse_yaml(text: str, where: str, refused_tags: Mapping[str, str] | None = None) -> Any:
    """The plain values of a YAML text; None if it is empty. Raises ConfigError that begins with `where`."""
    try:
        return _Parser(text, where, refused_tags or {}).document()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = error.character if isinstance(error.character, int) else ord(str(error.character)[:1])
        raise ConfigError(
            f"{where}: line {line}: the character U+{character:04X} cannot stand in YAML; remove it"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line_of = f"line {mark.line + 1}: " if mark else ""
        raise ConfigError(f"{where} is not YAML: {line_of}{_in_words(str(error.problem))}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())[:200]}") from error


def _in_words(problem: str) -> str:
    if "'\\t'" in problem:
        return "a tab stands where YAML wants blanks; indent with blanks"
    return problem


def _text_of(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
            raise ConfigError(f"{path} is {kind}; name a YAML file")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # NUL in the name
        raise ConfigError(f"{str(path)!r} is no name of a file") from error
    if len(content) > LARGEST:
        raise ConfigError(f"{path} is no configuration: it is larger than {LARGEST >> 20} MiB")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"{path} is UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path} is no UTF-8 text (line {line}); save it as UTF-8") from error


class _Parser:
    """Builds the values of one document. `size` counts them, and `anchors` keeps each anchored value with its own size."""

    def __init__(self, text: str, where: str, refused_tags: Mapping[str, str]) -> None:
        self._loader: Any = yaml.SafeLoader(text)
        self._where = where
        self._refused = refused_tags
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._size = 0

    def document(self) -> Any:
        loader = self._loader
        loader.get_event()  # the stream begins
        if loader.check_event(yaml.StreamEndEvent):
            return None
        loader.get_event()  # the document begins
        value = self._value(loader.get_event(), ())
        loader.get_event()  # the document ends
        if not loader.check_event(yaml.StreamEndEvent):
            raise self._error(loader.peek_event(), (), "a second document begins; a file holds one")
        return value

    def _value(self, event: Any, path: tuple[str, ...]) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        before = self._size
        self._count(event, path, 1)
        if len(path) > _DEEPEST:
            raise self._error(event, path, f"lists and sections lie more than {_DEEPEST} deep")
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, path, event.tag)
            value = self._sequence(path)
        else:
            self._check_tag(event, path, event.tag)
            value = self._mapping(path)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._size - before
        return value

    def _alias(self, event: Any, path: tuple[str, ...]) -> Any:
        if event.anchor not in self._anchors:
            raise self._error(event, path, f"nothing before it is named &{event.anchor}")
        value, size = self._anchors[event.anchor]
        self._count(event, path, size)
        return copy.deepcopy(value)

    def _count(self, event: Any, path: tuple[str, ...], more: int) -> None:
        self._size += more
        if self._size > _MOST_VALUES:
            raise self._error(
                event, path, f"more than {_MOST_VALUES:,} values stand here, aliases (*) written out"
            )

    def _sequence(self, path: tuple[str, ...]) -> list[Any]:
        found: list[Any] = []
        while not self._loader.check_event(yaml.SequenceEndEvent):
            found.append(self._value(self._loader.get_event(), (*path, f"[{len(found)}]")))
        self._loader.get_event()
        return found

    def _mapping(self, path: tuple[str, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        while not self._loader.check_event(yaml.MappingEndEvent):
            event = self._loader.get_event()
            key, merges = self._key(event, path)
            below = (*path, key)
            if key in lines:
                raise self._error(
                    event, below, f"stands a second time (first in line {lines[key]}); remove one of the two"
                )
            lines[key] = event.start_mark.line + 1
            value_event = self._loader.get_event()
            value = self._value(value_event, below)
            if merges:
                merged = self._merged(value_event, below, value)
            else:
                own[key] = value
        self._loader.get_event()
        return {**merged, **own}

    def _key(self, event: Any, path: tuple[str, ...]) -> tuple[str, bool]:
        """A key, and whether it merges another mapping into this one (`<<`)."""
        if not isinstance(event, yaml.ScalarEvent):
            raise self._error(event, path, "a key must be a plain word, not a list, a section or an alias")
        tag = self._tag(event, path)
        if tag not in (_CORE + "str", _MERGE):
            raise self._error(event, path, f"the key {event.value[:40]!r} is no text; write it in quotes")
        return event.value, tag == _MERGE

    def _merged(self, event: Any, path: tuple[str, ...], value: Any) -> dict[str, Any]:
        sections = value if isinstance(value, list) else [value]
        if not all(isinstance(section, dict) for section in sections):
            raise self._error(event, path, "merges what is no section")
        found: dict[str, Any] = {}
        for section in reversed(sections):  # the first one that has a key gives its value
            found.update(section)
        return found

    def _scalar(self, event: Any, path: tuple[str, ...]) -> Any:
        tag = self._tag(event, path)
        self._check_tag(event, path, tag)
        node = yaml.ScalarNode(tag, event.value, event.start_mark)
        if tag in (_CORE + "int", _CORE + "float"):
            if len(event.value) > _LONGEST_NUMBER:
                raise self._error(event, path, f"a number of {len(event.value):,} digits is no value here")
            make = (
                self._loader.construct_yaml_int if tag == _CORE + "int" else self._loader.construct_yaml_float
            )
            try:
                return make(node)
            except (ValueError, IndexError, OverflowError) as error:
                raise self._error(event, path, f"{event.value[:40]!r} is no number") from error
        if tag == _CORE + "bool":
            if event.value.lower() not in self._loader.bool_values:
                raise self._error(event, path, f"{event.value[:40]!r} is neither true nor false")
            return self._loader.bool_values[event.value.lower()]
        return None if tag == _CORE + "null" else event.value

    def _tag(self, event: Any, path: tuple[str, ...]) -> str:
        """The type of a scalar: the one that is written (`!!int`), or the one that its form implies."""
        if event.tag not in (None, "!"):
            return str(event.tag)
        if event.tag == "!" or not event.implicit[0]:
            return _CORE + "str"
        found = str(self._loader.resolve(yaml.ScalarNode, event.value, event.implicit))
        if found == _CORE + "timestamp":
            raise self._error(
                event, path, f"{event.value} is a date in YAML, which no key takes; write it in quotes"
            )
        return _CORE + "str" if found == _CORE + "value" else found

    def _check_tag(self, event: Any, path: tuple[str, ...], tag: str | None) -> None:
        if tag is None or tag == "!" or tag in _PLAIN:
            return
        if tag == _MERGE:
            raise self._error(
                event, path, "<< merges a section and stands where a key does; for a text quote it"
            )
        shown = re.sub(f"^{_CORE}", "!!", tag)
        raise self._error(
            event,
            path,
            self._refused.get(tag) or f"the tag {shown[:80]} names more than a plain value; remove it",
        )

    def _error(self, event: Any, path: tuple[str, ...], problem: str) -> ConfigError:
        dotted = ".".join(path).replace(".[", "[")
        name = f"{dotted if len(dotted) <= 200 else dotted[:200] + '…'}: " if dotted else ""
        return ConfigError(f"{self._where}: line {event.start_mark.line + 1}: {name}{problem}")
