"""Texts in scripts that put no space between words, of random letters: as long as a number of words would be."""

from __future__ import annotations

import numpy as np

SCRIPTS = {
    "chinese": ("".join(map(chr, range(0x4E00, 0x5600))), 1.5),
    "japanese": (
        "".join(map(chr, [*range(0x3042, 0x3092, 2), *range(0x30A2, 0x30E0, 3), *range(0x5800, 0x5818)])),
        2.5,
    ),
    "thai": ("กขคฆงจชซญณดตถทธนบปผพภมยรลวศสหอะาเแโ", 4.0),
    "lao": ("ກຂຄງຈສຊຍດຕຖທນບປຜຝພຟມຢຣລວຫອຮະາເແໂ", 4.0),
    "khmer": ("កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហឡអ", 4.0),
    "burmese": ("ကခဂဃငစဆဇညဋဌဍဎဏတထဒဓနပဖဗဘမယရလဝသဟဠအ", 4.0),
    "yi": ("".join(map(chr, range(0xA000, 0xA400))), 1.5),
}
"""The letters of each, and about how many stand for a word."""
MARKS = {
    "thai": "\u0e34\u0e48\u0e49",
    "lao": "\u0eb4\u0ec8",
    "khmer": "\u17b7\u17d2",
    "burmese": "\u102d\u1039",
}
STOPS = {"chinese": "，。！", "japanese": "、。", "khmer": "។", "burmese": "။"}


def letters(script: str, words: float, seed: int) -> list[str]:
    """Random letters, some with marks, for about so many words."""
    random = np.random.default_rng([seed, *script.encode()])
    alphabet, per_word = SCRIPTS[script]
    found = [alphabet[i] for i in random.integers(0, len(alphabet), int(words * per_word))]
    marks = MARKS.get(script, "")
    return [
        letter + (marks[random.integers(0, len(marks))] if marks and random.random() < 0.2 else "")
        for letter in found
    ]


def punctuated(script: str, units: list[str], seed: int = 0) -> str:
    """The letters as a text with signs, or spaces in their place, at random."""
    random = np.random.default_rng(seed)
    stops = STOPS.get(script, " ")
    return "".join(
        unit + (stops[random.integers(0, len(stops))] if random.random() < 0.06 else "") for unit in units
    )
