"""Files read in this process, as a `Reader` reads them in one of its own: for tests that start none."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tasks.documents import worker
from tasks.documents.document import Document, Lost, Page


class ReadsHere:
    """Reads in this process: what a `Reader` does without its process."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> ReadsHere:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def read(self, path: Path, place: str) -> Iterator[Document | Lost]:
        for answer in answers(path, place):
            if "document" in answer:
                yield Document(
                    **answer["document"]
                    | {"pages": tuple(Page(**page) for page in answer["document"]["pages"])}
                )
            elif "unopened" in answer:
                yield Lost(place, "other", "unreadable", answer["unopened"])
            elif "lost" in answer:
                yield Lost(**answer["lost"])
        while EDITS:
            EDITS.pop()(path)


EDITS: list[Callable[[Path], Any]] = []
"""What happens to the next file after it was read."""


def answers(path: Path, place: str = "f") -> list[dict[str, Any]]:
    out, request = (
        io.BytesIO(),
        {"path": os.fsencode(path).hex(), "place": place, "skip": 0, "limits": {}, "columns": {}},
    )
    worker._answer(request, out)
    out.seek(0)
    found = []
    while (one := worker.take(out)) is not None:
        found.append(one)
    return found
