"""The units of a text that are compared and counted: words, and characters in scripts that put no space between words.

A rule about n words asks for n words' worth of text. A character counts for a part of a word, so that a run of n words'
worth says about as much in every script. The parts are measured on the Universal Declaration of Human Rights: its 1,753
English words are 2,560 Chinese characters, 1,790 Chinese characters and 1,961 kana in Japanese, 7,113 Thai letters, 6,144
Khmer and 6,135 Burmese ones without the marks above and below, and 3,145 Tibetan syllables.

A text without such a script has the units, and so the hashes, that it had when words alone were known.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import polars as pl

from tasks.corpus.words import Words, flat_bytes, hashes_between, inside, ngram_hashes

WORD = 12
"""What one word counts. Parts of it are whole numbers, so that sums are exact."""

_IDEOGRAPHS, _LETTERS, _SYLLABLES = 8, 3, 6
_SCRIPTS = {
    _IDEOGRAPHS: ("Han", "Yi"),
    _LETTERS: (
        *("Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar"),
        *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"),
    ),
    _SYLLABLES: ("Tibetan",),  # its syllables are parted by a sign, as words are elsewhere
}
_FIRST_LEAD, _LATER_LEAD = np.uint8(0xE0), np.uint8(0xE3)
"""A character of these scripts begins with 0xE0, 0xE1, or 0xE3 and above in UTF-8. 0xE2 begins signs and the like."""


def _class(*parts: int) -> str:
    return "".join(rf"\p{{scx={script}}}" for part in parts for script in _SCRIPTS[part])


_UNIT = rf"[[{_class(_IDEOGRAPHS, _LETTERS)}]&&[\p{{L}}\p{{Nl}}]]"
_SCRIPT = rf"[[{_class(*_SCRIPTS)}]&&[\p{{L}}\p{{Nl}}]]"
_COUNTED = {
    _IDEOGRAPHS: rf"[[{_class(_IDEOGRAPHS)}]&&[\p{{L}}\p{{Nl}}]]",
    _LETTERS: rf"[[{_class(_LETTERS)}]&&[\p{{L}}]]",
    _SYLLABLES: rf"[[{_class(_SYLLABLES)}]&&[\p{{L}}\p{{M}}]]+",
}
_OTHER = rf"[\p{{L}}\p{{N}}--[{_class(*_SCRIPTS)}]]"


def spaced(texts: pl.Series) -> pl.Series:
    """The texts with a space before and after each character (and its marks) that is a unit of its own."""
    places = _suspects(texts)
    if not len(places):
        return texts
    changed = texts.gather(places).str.replace_all(_UNIT + r"\p{M}*", " ${0} ")
    return texts.clone().scatter(places, changed)  # scatter changes the series itself


def shown(units: str) -> str:
    """Units that single spaces part, as they are read: without the spaces between characters."""
    if units.isascii():
        return units
    parts, table = units.split(" "), _parts()
    alone = [table[min(ord(part[:1] or " "), len(table) - 1)] in (_IDEOGRAPHS, _LETTERS) for part in parts]
    gaps = ["" if before and after else " " for before, after in pairwise(alone)]
    return parts[0] + "".join(gap + part for gap, part in zip(gaps, parts[1:], strict=True))


def holds_units(texts: pl.Series) -> np.ndarray:
    """Which texts hold a letter of such a script: bool, shape (texts,)."""
    places = _suspects(texts)
    found = np.zeros(len(texts), bool)
    found[places.to_numpy()] = texts.gather(places).str.contains(_SCRIPT).to_numpy()
    return found


def _suspects(texts: pl.Series) -> pl.Series:
    """Places of the texts with a byte that may begin a character of these scripts: this is faster than a search."""
    data, edges = flat_bytes(texts)
    at = np.flatnonzero((data >= _LATER_LEAD) | (data - _FIRST_LEAD < 2))
    return pl.Series(np.unique(np.searchsorted(edges, at, side="right") - 1), dtype=pl.UInt32)


def worth(words: pl.Series) -> np.ndarray:
    """What each string without spaces counts, at least one word, in parts of `WORD`: int64, shape (strings,)."""
    counted = np.zeros(len(words), np.int64)
    for part, pattern in _COUNTED.items():
        counted += words.str.count_matches(pattern).to_numpy().astype(np.int64) * part
    counted += words.str.contains(_OTHER).to_numpy() * WORD
    return np.maximum(counted, WORD)


def weights_of(words: Words) -> np.ndarray | None:
    """What each unit counts, in parts of `WORD`: int64, shape (units,). None if each is a word.

    A unit is told by its first character, so the texts are `spaced`.
    """
    lead = words.buffer[words.starts]
    if not (lead >= _FIRST_LEAD).any():
        return None
    wide = np.flatnonzero(lead >= _FIRST_LEAD)
    starts, data = words.starts[wide], words.buffer
    last = len(data) - 1
    follow = [(data[np.minimum(starts + i, last)] & 0x3F).astype(np.int64) for i in (1, 2, 3)]
    three = ((lead[wide] & 0x0F).astype(np.int64) << 12) | (follow[0] << 6) | follow[1]
    four = ((lead[wide] & 0x07).astype(np.int64) << 18) | (follow[0] << 12) | (follow[1] << 6) | follow[2]
    table = _parts()
    found = table[np.minimum(np.where(lead[wide] >= 0xF0, four, three), len(table) - 1)]
    if not (found != WORD).any():
        return None
    weights = np.full(len(lead), WORD, np.int64)
    weights[wide] = found
    return weights


@cache
def _parts() -> np.ndarray:
    """What a unit counts by its first character's code point, up to the last plane of ideographs: uint8."""
    table = np.full(0x40000, WORD, np.uint8)
    codes = np.concatenate([np.arange(0x800, 0xD800), np.arange(0xE000, len(table) - 1)])
    signs = pl.Series([chr(code) for code in codes.tolist()])
    for part in _SCRIPTS:
        table[codes[signs.str.contains(rf"^[{_class(part)}]").to_numpy()]] = part
    return table


def words_in(first: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """What the units of each text count together, in parts of `WORD`: int64, shape (texts,)."""
    if weights is None:
        return np.asarray(np.diff(first) * WORD)
    total = np.concatenate([[0], np.cumsum(weights)])
    return np.asarray(np.diff(total[first]))


def runs(
    hashes: np.ndarray, first: np.ndarray, weights: np.ndarray | None, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From each place, the shortest run of units that counts n words: its hash, whether it lies in one text, and its
    number of units. uint64, bool and int64, one for each place where a run could begin.

    The hash is that of `ngram_hashes`. Where each unit is a word, a run has n of them.
    """
    if weights is None:
        found = ngram_hashes(hashes, n)
        return found, inside(first, n), np.broadcast_to(np.int64(n), len(found))
    texts = np.unique(np.searchsorted(first, np.flatnonzero(weights != WORD), side="right") - 1)
    sizes = first[texts + 1] - first[texts]
    if 2 * sizes.sum() > len(hashes):
        return _weighted_runs(hashes, first, weights, n)
    # few texts have such units: the others are as if none had, which takes a tenth of the time and memory
    edges = np.concatenate([[0], np.cumsum(sizes)])
    own = np.repeat(first[texts] - edges[:-1], sizes) + np.arange(edges[-1])
    found, fits = ngram_hashes(hashes, n), inside(first, n)
    left = len(hashes) - len(found)
    found, fits = (
        np.concatenate([found, np.zeros(left, np.uint64)]),
        np.concatenate([fits, np.zeros(left, bool)]),
    )
    units = np.full(len(hashes), n, np.int64)
    found[own], fits[own], units[own] = _weighted_runs(hashes[own], edges, weights[own], n)
    return found, fits, units


def _weighted_runs(
    hashes: np.ndarray, first: np.ndarray, weights: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    total = np.concatenate([[0], np.cumsum(weights)])
    ends = np.searchsorted(total, total[:-1] + n * WORD)
    fits = ends <= np.repeat(first[1:], np.diff(first))
    ends = np.minimum(ends, len(hashes))
    return hashes_between(hashes, np.arange(len(hashes)), ends), fits, ends - np.arange(len(hashes))
