"""What a measurement has computed so far, batch by batch, so that a killed one goes on where it was.

The file lies in the stage's work directory and belongs to no artifact. Each line holds the values of one batch, with a
checksum; a line that was cut off or altered ends what counts. The batches must depend on the inputs and on `what` alone:
then a batch's values mean the same in each attempt, and the end has the bytes of a measurement that was never killed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "batches.jsonl"


class ComputedBatches:
    """The values of batches 0, 1, 2 … Those of an earlier attempt count only if it was about the same `what`.

    `what` names everything that divides into batches or touches rounding, as plain JSON: device, threads, versions.
    """

    def __init__(self, path: Path, what: Mapping[str, Any]) -> None:
        head = _line(dict(what))
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        self._values: list[Any] = []
        kept = 0
        if lines and lines[0] == head:
            kept = len(head)
            for line in lines[1:]:
                value = _value(line)
                if value is None:
                    break
                self._values.append(value)
                kept += len(line)
        self._file = path.open("r+b" if kept else "wb")
        self._file.truncate(kept)
        self._file.seek(kept)
        if not kept:
            self._file.write(head)
        self._next = 0

    def next(self) -> Any:
        """The values of the next batch, if an earlier attempt computed them; None: compute them, and `add` them."""
        if self._next == len(self._values):
            return None
        self._next += 1
        return self._values[self._next - 1]

    def add(self, values: Any) -> None:
        """Keep the values of a batch, as JSON; floats stay as they are, to the bit."""
        self._values.append(values)
        self._next += 1
        self._file.write(_line(values))
        self._file.flush()

    def close(self) -> None:
        """Close the file. It stays where it is."""
        self._file.close()

    def __enter__(self) -> ComputedBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _value(line: bytes) -> Any:
    """A line's value; None for a line that is not whole."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    return json.loads(text)
