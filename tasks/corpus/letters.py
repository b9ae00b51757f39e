"""Letters as they are compared, by dedup, for the holdout and for benchmarks: one spelling for all that says the same."""

from __future__ import annotations

import polars as pl

_FOLDED = {
    "ß": "ss",
    "æ": "ae",
    "œ": "oe",
    "ø": "o",
    "ł": "l",
    "đ": "d",
    "ð": "d",
    "ħ": "h",
    "ı": "i",
    "ŧ": "t",
    "þ": "th",
    "ς": "σ",
}
"""Letters whose stroke or join Unicode does not take apart, as they are written where the sign is missing."""
_UNSEEN = r"[\p{Mn}\p{Me}\p{Cf}\u{640}\u{115f}\u{1160}\u{3164}]+"
"""Marks, what is invisible, the stroke that lengthens an Arabic word, and the fillers of Hangul."""


def bare_letters(texts: pl.Series) -> pl.Series:
    """Lower case without accents, in compatible forms (full width, ligatures, mathematical letters) as plain ones."""
    bare = texts.str.normalize("NFKD").str.replace_all(_UNSEEN, "").str.to_lowercase()
    return bare.str.replace_many(list(_FOLDED), list(_FOLDED.values()))
