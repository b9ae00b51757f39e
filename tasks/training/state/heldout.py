"""The files of the loss on held-out text (tasks/training/heldout.py): their names, how often a line is written, and which
lines a resume keeps.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from storage.atomic import write_bytes
from tasks.training.spec import AUTO

TEXT = "heldout.json"
"""What is measured: by source, the tokens of documents, each after the token that a document begins with."""
LINES = "heldout.jsonl"
PREFIX = "heldout/"
"""Of a source's mean loss in a line, in nats per token."""
DOCUMENTS = "documents"
"""Of each source in a line: [tokens, nats] of each document."""
TOKENS = 8_192
"""Tokens that are measured each time, shared among the sources."""
COST = 0.02
"""The largest share of a segment's arithmetic that `auto` spends."""
MOST = 100
"""Measurements of a segment that `auto` makes at most."""


def spacing(asked: int | str | None, measured: int, segment: int) -> int | None:
    """Tokens from one measurement to the next; None: never.

    `measured` tokens are measured each time, `segment` trained. A forward pass takes a third of the arithmetic of a step
    on as many tokens (Kaplan et al. 2020, arXiv:2001.08361, table 1: 2 of 6 operations).
    """
    if asked is None or not measured:
        return None
    if asked != AUTO:
        return int(asked)
    every = max(math.ceil(measured / (3 * COST)), segment // MOST)
    return every if every <= segment else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file LINES, oldest first; none if there is no such file."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    found = []
    for line in data.split(b"\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def cut(path: Path, step: int) -> None:
    """Keep the lines up to `step`, and no half line. The file is replaced as a whole."""
    lines = read_lines(path)
    kept = [line for line in lines if line["step"] <= step]
    if not path.exists() or (len(kept) == len(lines) and path.read_bytes().endswith(b"\n")):
        return
    write_bytes(path, b"".join((json.dumps(line) + "\n").encode() for line in kept))
