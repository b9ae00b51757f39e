"""Gopher's repetition rules (Rae et al. 2021, arXiv:2112.11446, table A1), as datatrove applies them.

See datatrove's `filters/gopher_repetition_filter.py`. Most texts repeat little, and bounds that need one pass over the
words prove it. The exact values are computed only for texts whose bound exceeds the limit. A repeated n-gram begins
with a repeated (n − 1)-gram, so each n only examines the places that remain from n − 1.

n-grams are of words. They are not asked of a text that is for more than half of a script without spaces, in which they
would be of whole clauses; its lines and paragraphs are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from tasks.corpus.rules.english import WordSequence
from tasks.corpus.rules.rule import Rule, TextBatch, at_most
from tasks.corpus.rules.spans import character_counts, seen_before
from tasks.corpus.words import inside, join_runs, ngram_hashes

MAX_DUPLICATE_PIECES = 0.30
MAX_DUPLICATE_CHARACTERS = 0.20
MAX_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
MAX_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_PLACE_BITS = 40
_LAST_PLACE = (1 << _PLACE_BITS) - 1
_SMALLEST, _LARGEST = min(MAX_DUPLICATE_NGRAMS), max(MAX_DUPLICATE_NGRAMS)
_CELLS = 1 << 19  # small enough for a core's cache; a merged count only asks for one more exact value
_SLOTS_PER_WORD = 4


@dataclass(frozen=True)
class RepeatedPieces:
    """Pieces that occurred before in the same text: their share of all pieces, and their characters.

    Two arrays of shape (texts,): float64, int64.
    """

    share: np.ndarray
    characters: np.ndarray


def duplicate_lines(batch: TextBatch) -> RepeatedPieces:
    """Pieces between runs of newlines. A text that begins or ends with a newline has an empty piece there."""
    spans = batch.lines.spans
    full = spans.ends > spans.starts
    starts, ends, text = spans.starts[full], spans.ends[full], spans.text()[full]
    at_start, at_end = ~full[spans.first[:-1]], ~full[spans.first[1:] - 1]
    single = np.diff(spans.first) == 1  # an empty text is one empty piece
    empty = at_start.astype(np.int64) + (at_end & ~single)
    return _shares(batch, starts, ends, text, empty)


def duplicate_paragraphs(batch: TextBatch) -> RepeatedPieces:
    """Pieces between empty lines, of the text without surrounding white space."""
    spans, pieces = batch.lines.spans, batch.spans
    text = spans.text()
    written = np.diff(pieces.first) > 0
    begin, end = np.zeros(len(batch), np.int64), np.zeros(len(batch), np.int64)
    begin[written] = pieces.starts[pieces.first[:-1][written]]
    end[written] = pieces.ends[pieces.first[1:][written] - 1]
    starts, ends = np.maximum(spans.starts, begin[text]), np.minimum(spans.ends, end[text])
    full = ends > starts
    opens = full.copy()
    opens[1:] &= ~full[:-1] | (text[1:] != text[:-1])
    closes = full.copy()
    closes[:-1] &= ~full[1:] | (text[1:] != text[:-1])
    return _shares(batch, starts[opens], ends[closes], text[opens], (~written).astype(np.int64))


def _shares(
    batch: TextBatch, starts: np.ndarray, ends: np.ndarray, text: np.ndarray, empty: np.ndarray
) -> RepeatedPieces:
    buffer = batch.flat.buffer
    again = np.flatnonzero(seen_before(buffer, starts, ends, text))
    twice = np.bincount(text[again], minlength=len(batch)) + np.maximum(empty - 1, 0)
    counts = np.bincount(text, minlength=len(batch)) + empty
    characters = character_counts(buffer, starts[again], ends[again])
    total = np.bincount(text[again], characters, minlength=len(batch)).astype(np.int64)
    return RepeatedPieces(twice / np.maximum(counts, 1), total)


class Repeats:
    """Repeated n-grams of the words of a batch."""

    def __init__(self, batch: TextBatch) -> None:
        self._batch = batch
        self._words = batch.pieces.words()

    @cached_property
    def _width(self) -> np.ndarray:
        """Characters of all words before each word: int64, shape (words + 1,)."""
        return np.concatenate([[0], np.cumsum(self._words.characters)])

    @cached_property
    def _grams(self) -> dict[int, RepeatedNgrams]:
        """The repeated n-grams of 5 and more words."""
        words, found = self._words, {}
        hashes = ngram_hashes(words.hashes, _SMALLEST)
        fits = inside(words.first, _SMALLEST)
        places = crowded(hashes, words)
        places = places[fits[places]]
        for n in range(_SMALLEST, _LARGEST + 1):
            if n > _SMALLEST:
                hashes = join_runs(hashes, words.hashes[n - 1 :], 1)
                fits = inside(words.first, n)
                places = places[places < len(fits)]
                places = places[fits[places]]
            found[n] = repeated(places, hashes, words.text)
            places = found[n].places
        return found

    def duplicate(self, n: int, limit: float) -> np.ndarray:
        """Share of the characters in n-grams that occurred before; `limit` if the share is certainly below it."""
        grams, text, characters = self._grams[n], self._words.text, self._batch.characters
        bound = _covered(grams.places, n, self._width, text, len(self._batch)) / characters
        doubtful = np.flatnonzero(bound > limit)
        width = self._width[grams.places + n] - self._width[grams.places]
        values = np.minimum(bound, limit)
        values[doubtful] = _greedy(grams.places, grams.group, width, text, doubtful, n) / characters[doubtful]
        return values

    @cached_property
    def _top_bound(self) -> np.ndarray:
        """Upper bound, per text, of the characters in all occurrences of the most frequent 2-, 3- or 4-gram.

        Two 2-grams cover an n-gram of up to four words. The one with more characters occurs at least as often as the
        n-gram. So twice its characters plus one, times its number of occurrences, is a bound. 2-grams are counted by
        some bits of their hash, which can only merge counts.
        """
        words, texts = self._words, len(self._batch)
        bits = max(int(_CELLS // max(texts, 1)).bit_length() - 1, 1)
        pairs = ngram_hashes(words.hashes, 2) >> np.uint64(64 - bits)
        cells = (words.text[: len(pairs)] << bits) | pairs.astype(np.int64)
        weights = 2 * (words.characters[:-1] + words.characters[1:]) + 3
        counted = np.bincount(cells, weights, minlength=texts << bits)
        return counted.reshape(texts, 1 << bits).max(axis=1)

    def top(self, n: int, limit: float) -> np.ndarray:
        """Share of the characters in the most frequent n-gram; `limit` if the share is certainly below it."""
        values = np.minimum(self._top_bound / self._batch.characters, limit)
        doubtful = np.flatnonzero(self._top_bound > limit * self._batch.characters)
        words = self._batch.pieces.words(doubtful)
        grams = repeated(np.flatnonzero(inside(words.first, n)), ngram_hashes(words.hashes, n), words.text)
        ends = np.concatenate([[0], np.cumsum(words.characters)])
        values[doubtful] = _top(grams, words.text, words.first, ends, n) / self._batch.characters[doubtful]
        return values


def crowded(hashes: np.ndarray, words: WordSequence) -> np.ndarray:
    """Places, ascending, whose hash may occur at another place of the same text. May include a few false ones.

    Every place writes its number into a slot of its text. If the slot holds another number at the end, it is shared. A
    second pass with other bits of the hash covers only the places that shared a slot in the first.
    """
    places = np.arange(len(hashes))
    sizes = np.diff(words.first) * _SLOTS_PER_WORD
    for bits in (np.uint64(32), np.uint64(11)):
        text = words.text[places]
        width = sizes[text].astype(np.uint64)
        inner = (((hashes[places] >> bits) & np.uint64(0xFFFFFFFF)) * width) >> np.uint64(32)
        slots = words.first[text] * _SLOTS_PER_WORD + inner.astype(np.int64)
        table = np.empty(int(words.first[-1]) * _SLOTS_PER_WORD, np.int32)
        table[slots] = np.arange(len(places), dtype=np.int32)
        last = table[slots]
        shared = last != np.arange(len(places), dtype=np.int32)
        shared[last[shared]] = True
        places = places[shared]
    return places


@dataclass(frozen=True)
class RepeatedNgrams:
    """N-grams that repeat in their text, all int64. places: where, ascending; group: the n-gram at each place.
    leaders: the first place of each group; sizes: its number of occurrences."""

    places: np.ndarray
    group: np.ndarray
    leaders: np.ndarray
    sizes: np.ndarray


def repeated(places: np.ndarray, hashes: np.ndarray, text: np.ndarray) -> RepeatedNgrams:
    """Those of the places (ascending) whose hash occurs at another place of the same text."""
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
    return RepeatedNgrams(places[keep], group[keep], places[first[several]], sizes[several])


def _top(groups: RepeatedNgrams, text: np.ndarray, first: np.ndarray, ends: np.ndarray, n: int) -> np.ndarray:
    """Characters of all occurrences of each text's most frequent n-gram: int64, shape (texts,).

    Spaces between words count. Among equally frequent n-grams the first one is taken; if none repeats, the text's
    first n-gram.
    """
    has_any = np.diff(first) >= n
    value = np.zeros(len(first) - 1, np.int64)
    start = first[:-1][has_any]
    value[has_any] = ends[start + n] - ends[start] + n - 1
    if len(groups.leaders):
        order = np.argsort(groups.leaders)
        owner = text[groups.leaders[order]]
        rank = (groups.sizes[order] << _PLACE_BITS) + (
            _LAST_PLACE - groups.leaders[order]
        )  # among equal counts the earlier place wins
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        best = np.maximum.reduceat(rank, starts)
        leader = _LAST_PLACE - (best & _LAST_PLACE)
        value[owner[starts]] = (ends[leader + n] - ends[leader] + n - 1) * (best >> _PLACE_BITS)
    return value


def _covered(places: np.ndarray, n: int, ends: np.ndarray, text: np.ndarray, texts: int) -> np.ndarray:
    """Characters of the words in repeated n-grams: an upper bound of the exact count."""
    if not len(places):
        return np.zeros(texts, np.int64)
    until = np.minimum(places + n, np.concatenate([places[1:], [places[-1] + n]]))
    return np.bincount(text[places], ends[until] - ends[places], minlength=texts).astype(np.int64)


def _greedy(
    places: np.ndarray, group: np.ndarray, width: np.ndarray, text: np.ndarray, chosen: np.ndarray, n: int
) -> np.ndarray:
    """Characters of the duplicate n-grams of the chosen texts, counted as datatrove does.

    Counting goes from left to right: after a duplicate it continues behind it, otherwise one word further. It is a
    loop over the few texts that may exceed the threshold.
    """
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


def _share(batch: TextBatch, kind: Callable[[TextBatch], RepeatedPieces]) -> np.ndarray:
    return batch.once(kind).share


def _characters(batch: TextBatch, kind: Callable[[TextBatch], RepeatedPieces]) -> np.ndarray:
    return batch.once(kind).characters / batch.characters


def _top_share(batch: TextBatch, limit: float, n: int) -> np.ndarray:
    return np.where(batch.pieces.mostly_unspaced, 0.0, batch.once(Repeats).top(n, limit))


def _duplicate_share(batch: TextBatch, limit: float, n: int) -> np.ndarray:
    return np.where(batch.pieces.mostly_unspaced, 0.0, batch.once(Repeats).duplicate(n, limit))


RULES: tuple[Rule, ...] = (
    at_most("gopher_duplicate_paragraphs", MAX_DUPLICATE_PIECES, partial(_share, kind=duplicate_paragraphs)),
    at_most(
        "gopher_duplicate_paragraph_characters",
        MAX_DUPLICATE_CHARACTERS,
        partial(_characters, kind=duplicate_paragraphs),
    ),
    at_most("gopher_duplicate_lines", MAX_DUPLICATE_PIECES, partial(_share, kind=duplicate_lines)),
    at_most(
        "gopher_duplicate_line_characters",
        MAX_DUPLICATE_CHARACTERS,
        partial(_characters, kind=duplicate_lines),
    ),
    *(
        Rule(f"gopher_top_{n}_gram", most, False, partial(_top_share, n=n))
        for n, most in MAX_TOP_NGRAM.items()
    ),
    *(
        Rule(f"gopher_duplicate_{n}_grams", most, False, partial(_duplicate_share, n=n))
        for n, most in MAX_DUPLICATE_NGRAMS.items()
    ),
)
"""In the order in which datatrove applies them."""
