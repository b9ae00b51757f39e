"""The process that reads files for `reader.Reader`: requests on standard input, answers on standard output, in frames.

A frame is the length of its JSON as four bytes, and the JSON. Requests: `{path, place, skip, limits, columns}`. Answers,
for each request: `{at: [entry, place]}` before each entry and now and then while it is read, `{document: …}`, `{lost: …}`,
and at last `{end: null}`, or `{unopened: message}`
where the system could not open or read the file. What libraries print goes to standard error.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import resource
import signal
import sys
import time
from dataclasses import asdict
from typing import Any, BinaryIO

import orjson

from tasks.documents.document import Columns, Document
from tasks.documents.limits import Limits
from tasks.documents.read import read

_STILL_SECONDS = 1.0
_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    while (request := take(requests)) is not None:
        _answer(request, answers)


def _answer(request: dict[str, Any], answers: BinaryIO) -> None:
    said = (0, 0.0)

    def alive(entry: int, place: str) -> None:
        nonlocal said
        now = time.monotonic()
        if entry != said[0] or now > said[1] + _STILL_SECONDS:
            said = (entry, now)
            put(answers, {"at": [entry, place]})

    failed: list[OSError] = []
    try:
        with io.BufferedReader(
            _Watched(_opened(os.fsdecode(bytes.fromhex(request["path"]))), failed), 1 << 16
        ) as file:
            limits = Limits(**request["limits"])
            columns = Columns(**request["columns"])
            for found in read(
                file, request["place"], limits, alive=alive, skip=request["skip"], columns=columns
            ):
                put(answers, {"document" if isinstance(found, Document) else "lost": asdict(found)})
    except OSError as error:
        failed.append(error)
    put(answers, {"unopened": failed[0].strerror or str(failed[0])} if failed else {"end": None})


def _opened(path: str) -> io.FileIO:
    return open(path, "rb", buffering=0)  # noqa: PTH123 (a path of bytes that are no text stays as it is)


class _Watched(io.RawIOBase):
    """A file that notes in `failed` where the system cannot read it, whatever a library makes of the error."""

    def __init__(self, raw: io.RawIOBase, failed: list[OSError]) -> None:
        super().__init__()
        self._raw, self._failed = raw, failed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._raw.seekable()

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any, /) -> int | None:
        try:
            return self._raw.readinto(buffer)
        except OSError as error:
            self._failed.append(error)
            raise

    def close(self) -> None:
        self._raw.close()
        super().close()


def put(stream: BinaryIO, message: dict[str, Any]) -> None:
    """Write a frame."""
    data = orjson.dumps(message, default=str)
    stream.write(len(data).to_bytes(4, "little") + data)
    stream.flush()


def take(stream: BinaryIO) -> dict[str, Any] | None:
    """Read a frame; None at the end."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    found: dict[str, Any] = orjson.loads(stream.read(int.from_bytes(head, "little")))
    return found


def _end_with_parent() -> None:
    """Ask the kernel to end this process with the one that started it, also in the middle of a file that hangs."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def main(memory_bytes: int) -> None:
    """Serve on standard input and output, with so much address space."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main(int(sys.argv[1]))
