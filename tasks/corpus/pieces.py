"""Pieces of long documents that are held out, where there are too few documents to hold out whole ones.

Of a document one piece is cut, at line ends (or between words, where a text has one line), and the rest is trained on.
So pieces are of different documents, as independent of each other as documents are. Where a piece lies follows from
the hash of its document's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tasks.corpus.duplicates.containment import Pairs
from tasks.corpus.holdout import MAX_RAISED, MIN_DOCUMENTS

LONG = 4
"""A document is long if it has so many times the bytes of a piece: at most a quarter of it is cut."""
_FIRST, _LAST = 0.1, 0.75
"""The share of the document within which a piece begins. Its head, with title and contents, is left where it is."""


@dataclass(frozen=True)
class Piece:
    """Characters [begin, end) of the text in a row of the slice."""

    row: int
    begin: int
    end: int

    def of(self, text: str) -> str:
        """The piece of the document's text."""
        return text[self.begin : self.end]

    def rest(self, text: str) -> str:
        """What is left of the document's text."""
        return text[: self.begin] + text[self.end :]


def is_long(text_bytes: np.ndarray, size: int) -> np.ndarray:
    """Which documents (bool) give a piece of `size` bytes, and are not held out whole."""
    return np.asarray(text_bytes >= LONG * size)


def cut(row: int, text: str, size: int, number: int) -> Piece | None:
    """The piece of about `size` bytes of a document. `number`: 64 bits that say where. None if there is no such piece."""
    share = _FIRST + (_LAST - _FIRST) * (number >> 11) / 2.0**53
    width = max(1, len(text.encode()) / len(text))
    for border in ("\n", " "):
        begin = text.find(border, int(share * len(text))) + 1
        end = text.find(border, begin + int(size / width)) + 1
        if (
            0 < begin < end
            and size / 2 <= len(text[begin:end].encode()) <= 2 * size
            and text[begin:end].strip()
        ):
            return Piece(row, begin, end)
    return None


def choose(
    rows: np.ndarray,
    hashes: np.ndarray,
    size: int,
    limit_bytes: int,
    texts: Callable[[np.ndarray], Iterable[str]],
    known: Callable[[list[tuple[Piece, str]]], list[bool]],
) -> tuple[list[Piece], int]:
    """The pieces of long documents, in order of their hashes, and how many were passed over.

    `rows`: long documents that may be cut (int64), with their `hashes` (uint64). At most 200 pieces and `limit_bytes` are
    taken. `texts`: of some rows. `known`: of some pieces with the text of their document, whether earlier slices train on
    them or the rest of the document repeats them.
    """
    order = np.argsort(hashes, kind="stable")[: min(MIN_DOCUMENTS, limit_bytes // size)]
    asked = rows[order]
    cuts = list(_cuts(asked, hashes[order], texts(np.sort(asked)), size))
    repeated = known(cuts)
    chosen = [piece for (piece, _), again in zip(cuts, repeated, strict=True) if not again]
    return chosen, len(asked) - len(chosen)


def _cuts(
    rows: np.ndarray, hashes: np.ndarray, texts: Iterable[str], size: int
) -> Iterator[tuple[Piece, str]]:
    numbers = dict(zip(rows.tolist(), hashes.tolist(), strict=True))
    for row, text in zip(sorted(numbers), texts, strict=True):
        if (piece := cut(row, text, size, numbers[row])) is not None:
            yield piece, text


def allowed_bytes(all_bytes: int, fraction: float) -> int:
    """Bytes that pieces may take of a slice: the fraction, or a twentieth, whichever is more."""
    return int(max(fraction, MAX_RAISED) * all_bytes)


def of_others(pairs: Pairs, cuts: Sequence[Piece], held: int) -> Pairs:
    """The pairs without those of a document and its own piece. The pieces are the last of the `held` texts."""
    places = {piece.row: held - len(cuts) + number for number, piece in enumerate(cuts)}
    both = zip(pairs.texts.tolist(), pairs.places.tolist(), strict=True)
    others = ~np.array([places.get(row) == place for row, place in both], bool)
    return Pairs(pairs.texts[others], pairs.places[others], pairs.shares[others])


def by_file(edges: np.ndarray, cuts: Sequence[Piece]) -> list[dict[int, tuple[int, int]]]:
    """For each file of documents (rows from one of `edges` to the next), what is cut out of which of its rows."""
    found: list[dict[int, tuple[int, int]]] = [{} for _ in edges[1:]]
    for piece in cuts:
        file = int(np.searchsorted(edges, piece.row, side="right")) - 1
        found[file][piece.row - int(edges[file])] = (piece.begin, piece.end)
    return found
