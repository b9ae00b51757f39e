"""The held-out text of a training: the tokens whose loss the trainer measures on the way, and what it measured.

The tokens are a fixed part of each source's holdout: the same number of each, from the beginnings of documents in the
order of their ids, none longer than a sequence. What was measured is in no artifact's bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.corpus.documents import read_documents
from tasks.corpus.tokens.vocabulary import Vocabulary
from tasks.training.state.heldout import LINES, PREFIX, TOKENS, read_lines

_CHARACTERS = 32
"""Of a document so many characters for each wanted token are tokenized. English has about four."""


def write_heldout(
    path: Path, holdouts: Mapping[str, Sequence[Path]], vocabulary: Vocabulary, *, first: int, longest: int
) -> None:
    """Write what the trainer measures, as JSON: by source the ids of documents, each after the token `first`.

    `holdouts`: files of held-out documents by source. A source without any is left out.
    """
    share = TOKENS // max(1, len(holdouts))
    found = {
        name: list(_beginnings(files, vocabulary, share, first, longest)) for name, files in holdouts.items()
    }
    path.write_text(json.dumps({name: held for name, held in found.items() if held}), encoding="utf-8")


def _beginnings(
    files: Sequence[Path], vocabulary: Vocabulary, tokens: int, first: int, longest: int
) -> Iterable[list[int]]:
    texts = read_documents(files, columns=["id", "text"]).sort_by("id")["text"]
    for text in texts:
        ids, _ = vocabulary.encode([text.as_py()[: longest * _CHARACTERS]])
        held = ids[:-1][: min(longest, tokens)].tolist()
        tokens -= len(held)
        if held:
            yield [first, *held]
        if tokens <= 0:
            return


def measured(directory: Path) -> list[dict[str, Any]]:
    """What was measured in a segment's work directory or artifact: lines with `step`, `tokens` and a loss by source."""
    return read_lines(directory / LINES)


def sources_of(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sources that such lines hold, in order."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(PREFIX))
    return [name.removeprefix(PREFIX) for name in names]
