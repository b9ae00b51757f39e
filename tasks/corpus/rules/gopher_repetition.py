"""Gopher's repetition rules (Rae et al. 2021, arXiv:2112.11446, table A1), as datatrove applies them
(`filters/gopher_repetition_filter.py`).

A repeated n-gram of words begins with a repeated (n − 1)-gram, so each n looks only at the places that the one before
left over: a few percent of the words from n = 4 on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from tasks.corpus.rules.rule import Batch, Rule, at_most
from tasks.corpus.words import flat_bytes, hash_ranges, inside, join_runs, ngram_hashes

MAX_DUPLICATE_PIECES = 0.30
MAX_DUPLICATE_CHARACTERS = 0.20
MAX_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
MAX_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_PLACE_BITS = 40
_LAST_PLACE = (1 << _PLACE_BITS) - 1
_SMALLEST, _LARGEST = min(MAX_TOP_NGRAM), max(MAX_DUPLICATE_NGRAMS)

Measure = Callable[[Batch], np.ndarray]


class Repeats:
    """What the rules measure of one batch; every array is float64, shape (texts,)."""

    def __init__(self, batch: Batch) -> None:
        self.top: dict[int, np.ndarray] = {}
        self.duplicate: dict[int, np.ndarray] = {}
        self.paragraphs = duplicate_pieces(batch.texts.str.strip_chars(), r"\n{2,}")
        self.lines = duplicate_pieces(batch.texts, r"\n+")
        tokens, characters = batch.tokens, batch.characters
        places = np.arange(len(tokens.hashes))
        hashes = tokens.hashes
        ends = np.concatenate([[0], np.cumsum(tokens.characters)])
        for n in range(_SMALLEST, _LARGEST + 1):
            hashes = join_runs(hashes, tokens.hashes[n - 1 :], 1)
            fits = inside(tokens.first, n)
            places = places[places < len(fits)]
            groups = repeated(places[fits[places]], hashes, tokens.text)
            places = groups.places
            if n in MAX_TOP_NGRAM:
                self.top[n] = _top(groups, tokens.text, tokens.first, ends, n) / characters
            if n in MAX_DUPLICATE_NGRAMS:
                bound = _covered(places, n, ends, tokens.text, len(batch)) / characters
                doubtful = np.flatnonzero(bound > MAX_DUPLICATE_NGRAMS[n])
                exact = _greedy(
                    places, groups.group, ends[places + n] - ends[places], tokens.text, doubtful, n
                )
                values = np.minimum(bound, MAX_DUPLICATE_NGRAMS[n])
                values[doubtful] = exact / characters[doubtful]
                self.duplicate[n] = values


def duplicate_pieces(texts: pl.Series, separator: str) -> tuple[np.ndarray, np.ndarray]:
    """Pieces between separators that occurred before in their text: their share of the pieces, and their characters.

    Two arrays of shape (texts,): float64, int64.
    """
    lists = (
        texts.str.replace_all(separator, "\n").str.split("\n") if separator == r"\n+" else _paragraphs(texts)
    )
    counts = lists.list.len().to_numpy().astype(np.int64)
    pieces = lists.explode()
    buffer, edges = flat_bytes(pieces)
    hashes = hash_ranges(buffer, edges[:-1], edges[1:])
    text = np.repeat(np.arange(len(texts)), counts)
    order = np.lexsort((hashes, text))
    again = np.zeros(len(order), bool)
    again[order[1:]] = (hashes[order[1:]] == hashes[order[:-1]]) & (text[order[1:]] == text[order[:-1]])
    characters = pieces.str.len_chars().to_numpy().astype(np.int64) * again
    share = np.bincount(text, again, minlength=len(texts)) / np.maximum(counts, 1)
    return share, np.bincount(text, characters, minlength=len(texts)).astype(np.int64)


def _paragraphs(texts: pl.Series) -> pl.Series:
    return texts.str.replace_all(r"\n{2,}", "\n\n").str.split("\n\n")


@dataclass(frozen=True)
class Repeated:
    """N-grams that occur again in their text. places: where, ascending, and group: which one it is there. leaders: the
    first place of each group, and sizes: how often it occurs. All int64."""

    places: np.ndarray
    group: np.ndarray
    leaders: np.ndarray
    sizes: np.ndarray


def repeated(places: np.ndarray, hashes: np.ndarray, text: np.ndarray) -> Repeated:
    """Of these places (ascending), those whose hash occurs at another one in the same text."""
    keys = ngram_hashes(np.stack([hashes[places], text[places].astype(np.uint64)], axis=1).ravel(), 2)[::2]
    order = np.argsort(keys)
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([np.ones(len(ordered[:1]), bool), ordered[1:] != ordered[:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(ordered)]]))
    several = sizes > 1
    group = np.empty(len(places), np.int64)
    group[order] = np.repeat(np.where(several, np.cumsum(several) - 1, -1), sizes)
    first = np.minimum.reduceat(order, starts) if len(starts) else order
    keep = group >= 0
    return Repeated(places[keep], group[keep], places[first[several]], sizes[several])


def _top(groups: Repeated, text: np.ndarray, first: np.ndarray, ends: np.ndarray, n: int) -> np.ndarray:
    """Characters (spaces between words too) of all occurrences of each text's most frequent n-gram, the first of
    equally frequent ones: int64, shape (texts,). Where none repeats, those of the text's first n-gram."""
    has_any = np.diff(first) >= n
    value = np.zeros(len(first) - 1, np.int64)
    start = first[:-1][has_any]
    value[has_any] = ends[start + n] - ends[start] + n - 1
    if len(groups.leaders):
        order = np.argsort(groups.leaders)
        owner = text[groups.leaders[order]]
        rank = (groups.sizes[order] << _PLACE_BITS) + (
            _LAST_PLACE - groups.leaders[order]
        )  # earlier is better
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        best = np.maximum.reduceat(rank, starts)
        leader = _LAST_PLACE - (best & _LAST_PLACE)
        value[owner[starts]] = (ends[leader + n] - ends[leader] + n - 1) * (best >> _PLACE_BITS)
    return value


def _covered(places: np.ndarray, n: int, ends: np.ndarray, text: np.ndarray, texts: int) -> np.ndarray:
    """Characters of the words that lie in some repeated n-gram: no less than what the exact count can find."""
    if not len(places):
        return np.zeros(texts, np.int64)
    until = np.minimum(places + n, np.concatenate([places[1:], [places[-1] + n]]))
    return np.bincount(text[places], ends[until] - ends[places], minlength=texts).astype(np.int64)


def _greedy(
    places: np.ndarray, group: np.ndarray, width: np.ndarray, text: np.ndarray, chosen: np.ndarray, n: int
) -> np.ndarray:
    """Characters of the duplicate n-grams of the chosen texts, counted as datatrove does: from left to right, going
    on after a duplicate, and one word further otherwise. A loop, over the few texts that may be over the threshold."""
    owner = text[places] if len(places) else places
    totals = np.zeros(len(chosen), np.int64)
    for i, (low, high) in enumerate(
        zip(np.searchsorted(owner, chosen), np.searchsorted(owner, chosen, side="right"), strict=True)
    ):
        seen: set[int] = set()
        free = 0
        for place, name, characters in zip(
            places[low:high].tolist(), group[low:high].tolist(), width[low:high].tolist(), strict=True
        ):
            if place < free:
                continue
            if name in seen:
                totals[i] += characters
                free = place + n
            else:
                seen.add(name)
    return totals


def _piece_share(batch: Batch, kind: str) -> np.ndarray:
    return getattr(batch.once(Repeats), kind)[0]


def _piece_characters(batch: Batch, kind: str) -> np.ndarray:
    return getattr(batch.once(Repeats), kind)[1] / batch.characters


def _top_share(batch: Batch, n: int) -> np.ndarray:
    return batch.once(Repeats).top[n]


def _duplicate_share(batch: Batch, n: int) -> np.ndarray:
    return batch.once(Repeats).duplicate[n]


RULES: tuple[Rule, ...] = (
    at_most("gopher_duplicate_paragraphs", MAX_DUPLICATE_PIECES, partial(_piece_share, kind="paragraphs")),
    at_most(
        "gopher_duplicate_paragraph_characters",
        MAX_DUPLICATE_CHARACTERS,
        partial(_piece_characters, kind="paragraphs"),
    ),
    at_most("gopher_duplicate_lines", MAX_DUPLICATE_PIECES, partial(_piece_share, kind="lines")),
    at_most(
        "gopher_duplicate_line_characters", MAX_DUPLICATE_CHARACTERS, partial(_piece_characters, kind="lines")
    ),
    *(at_most(f"gopher_top_{n}_gram", most, partial(_top_share, n=n)) for n, most in MAX_TOP_NGRAM.items()),
    *(
        at_most(f"gopher_duplicate_{n}_grams", most, partial(_duplicate_share, n=n))
        for n, most in MAX_DUPLICATE_NGRAMS.items()
    ),
)
"""In the order in which datatrove asks them."""
