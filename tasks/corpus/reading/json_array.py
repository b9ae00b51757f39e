"""The elements of a file that is one JSON array.

A small array is parsed at once. A larger one is walked, so that memory holds one element: the walk only follows brackets
and strings, and each element is parsed on its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.corpus.reading import limits
from tasks.corpus.reading.limits import megabytes
from tasks.corpus.reading.remote import RemoteFile
from tasks.corpus.reading.streams import LongLine, opened
from tasks.corpus.reading.strict_json import strict_loads

_BOM = b"\xef\xbb\xbf"
_IN_STRING = re.compile(rb'["\\]')
_OUTSIDE = re.compile(rb'["\[\]{},]')


class _NotOneArray(Exception):
    """The file is something else than one array."""


@dataclass(frozen=True)
class Broken:
    """Why a large array ends before its bracket: a reason and a message."""

    reason: str
    message: str


def elements_of(path: Path | RemoteFile) -> Iterator[Any | LongLine | Broken] | None:
    """The elements of the array: parsed, or, of a large array, as bytes. None if the file is not one array.

    An element of more than `LINE_BYTES` is passed over and gives its size. A large array that breaks off ends in a
    `Broken`; what does not go on as an array of objects within `ARRAY_BYTES` is none.
    """
    parts, size = list[bytes](), 0
    with opened(path) as stream:
        for chunk in stream:
            parts.append(chunk)
            size += len(chunk)
            if size > limits.ARRAY_BYTES:
                return _walked(path) if _goes_on(b"".join(parts)) else None
    data = b"".join(parts).removeprefix(_BOM)
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        if not data.lstrip().startswith(b"["):
            return None
        try:
            value = strict_loads(data)
        except (ValueError, RecursionError):
            return None
    return iter(value) if isinstance(value, list) else None


def _goes_on(head: bytes) -> bool:
    """Whether these first bytes are of an array of objects that has not ended yet."""
    if head.removeprefix(_BOM).lstrip()[1:].lstrip()[:1] != b"{":
        return False
    walk = _Walk(keep=False)
    try:
        for _ in walk.through(head[: limits.ARRAY_BYTES]):
            pass
    except _NotOneArray:
        return False
    return not walk.ended


def _walked(path: Path | RemoteFile) -> Iterator[bytes | LongLine | Broken]:
    walk = _Walk(keep=True)
    with opened(path) as stream:
        try:
            for chunk in stream:
                yield from walk.through(chunk)
                if walk.size > limits.ENDLESS_BYTES:
                    message = f"no element ends within {megabytes(walk.size)}, and reading stops there"
                    yield Broken("line_too_long", message)
                    return
        except _NotOneArray:
            yield Broken("malformed_json", "more follows after the array's end")
        if stream.fault is not None:
            yield Broken(*stream.fault)
        elif not walk.ended:
            yield Broken("malformed_json", "the array is not closed")


class _Walk:
    """Where in the array the walk stands, and the bytes of the element that it is in."""

    def __init__(self, keep: bool) -> None:
        self.ended = False
        self.size = 0  # bytes of the element that the walk is in
        self._keep = keep
        self._depth = 0
        self._string = False
        self._escaped = 0  # bytes of the next chunk that a backslash takes
        self._parts: list[bytes] = []

    def through(self, chunk: bytes) -> Iterator[bytes | LongLine]:
        """The elements that end in the next bytes of the file."""
        at = begin = 0
        if not self._depth and not self.ended:
            at = begin = self._opened(chunk)
        if self._escaped:
            at, self._escaped = at + 1, 0
        while not self.ended:
            found = (_IN_STRING if self._string else _OUTSIDE).search(chunk, at)
            if found is None:
                self._add(chunk[begin:])
                return
            sign, at = found[0], found.end()
            if sign == b"\\":
                at += 1
                self._escaped = int(at > len(chunk))
            elif sign == b'"':
                self._string = not self._string
            elif sign in b"[{":
                self._depth += 1
            elif self._depth == 1 and sign in b",]":
                self._add(chunk[begin : at - 1])
                begin = at
                self.ended = sign == b"]"
                yield from self._element(last=self.ended)
            elif sign != b",":
                self._depth -= 1
        if chunk[begin:].strip():
            raise _NotOneArray

    def _opened(self, chunk: bytes) -> int:
        """The place after the bracket that opens the array."""
        bare = chunk.removeprefix(_BOM).lstrip()
        if not bare.startswith(b"["):
            raise _NotOneArray
        self._depth = 1
        return len(chunk) - len(bare) + 1

    def _add(self, some: bytes) -> None:
        self.size += len(some)
        if self._keep and self.size <= limits.LINE_BYTES:
            self._parts.append(some)
        else:
            self._parts.clear()

    def _element(self, *, last: bool) -> Iterator[bytes | LongLine]:
        element, size = b"".join(self._parts).strip(), self.size
        self._parts, self.size = [], 0
        if size > limits.LINE_BYTES or not self._keep:
            yield LongLine(size, ended=True)
        elif element or not last:  # nothing stands between the brackets of an empty array
            yield element
