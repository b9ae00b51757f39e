"""One spelling for texts that say the same. Benchmark questions and documents both go through it before comparison.

These differences disappear: case, accents and how they are encoded (NFC or NFD), compatibility forms (full width,
ligatures, mathematical letters), invisible characters (soft hyphen, zero width), HTML entities and tags, emphasis marks
inside a word, and every punctuation sign. Text is compared, never changed: documents keep their own spelling.

Most texts are plain ASCII without markup. They only pay for the search for what could be spelled otherwise.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import numpy as np
import polars as pl

from tasks.corpus.letters import bare_letters
from tasks.corpus.units import spaced

_PUNCTUATION = r"[^\p{L}\p{N}\p{M} ]+"
_BEYOND_ASCII = r"[\p{L}\p{N}\p{M}\p{Cf}&&[^\x00-\x7f]]"
_SOFT_HYPHEN_AT_END = r"\u{ad}[^\S\n]*\r?\n\s*"
_ENTITY = r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});"
_MARKUP = r"<[A-Za-z/!]"
_BLOCK = (
    "address|article|aside|blockquote|body|br|caption|center|dd|details|dialog|div|dl|dt|fieldset|figcaption|figure|footer"
    "|form|h[1-6r]|head|header|html|iframe|img|input|legend|li|link|main|meta|nav|ol|option|p|pre|script|section|select"
    "|style|summary|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul|video"
)
_BLOCK_TAG = rf"(?is)<!--.{{0,4000}}?-->|</?(?:{_BLOCK})\b[^<>]{{0,1000}}>"
_INLINE_TAG = r"(?i)</?[a-z][a-z0-9:-]{0,30}(?:\s[^<>]{0,1000})?/?>"
_EMPHASIS = r"(?P<a>[\p{L}\p{N}])(?:\*{1,3}|__)(?P<b>[\p{L}\p{N}])"
_HYPHENATED = r"(?P<a>\p{L})[-\u{2010}\u{2011}\u{ac}][^\S\n]*\r?\n\s*(?P<b>\p{Ll})"


def plain_words(texts: pl.Series) -> pl.Series:
    """The words of texts: lower case, without accents; one or several spaces for everything between words.

    In scripts without spaces each character is a unit of its own (units.py).
    """
    return _cleaned(texts).str.replace_all(_PUNCTUATION, " ")


def joined_words(texts: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Texts with words that are hyphenated at the end of a line: their places (int64), and their words, joined.

    A hyphen at the end of a line may also belong to the word. So these texts are searched in both spellings.
    """
    places = _where(texts, _HYPHENATED)
    chosen = texts.gather(pl.Series(places, dtype=pl.UInt32))
    return places, plain_words(chosen.str.replace_all(_HYPHENATED, "${a}${b}"))


def _cleaned(texts: pl.Series) -> pl.Series:
    """Lower case, without markup, accents and invisible characters. Punctuation is still there."""
    for pattern, clean in ((_ENTITY, _decoded), (_MARKUP, _untagged), (_EMPHASIS, _unemphasised)):
        texts = _changed(texts, _where(texts, pattern), clean)
    return _changed(texts.str.to_lowercase(), _where(texts, _BEYOND_ASCII), _bare)


def _where(texts: pl.Series, pattern: str) -> np.ndarray:
    return np.flatnonzero(texts.str.contains(pattern).to_numpy())


def _changed(texts: pl.Series, places: np.ndarray, clean: Callable[[pl.Series], pl.Series]) -> pl.Series:
    if not len(places):
        return texts
    index = pl.Series(places, dtype=pl.UInt32)
    return texts.clone().scatter(index, clean(texts.gather(index)))  # scatter changes the series itself


def _decoded(texts: pl.Series) -> pl.Series:
    """HTML entities replaced, also where they were escaped twice."""
    entity = re.compile(_ENTITY)

    def decode(text: str) -> str:
        return entity.sub(lambda match: html.unescape(match.group()), text)

    return pl.Series([decode(decode(text)) for text in texts], dtype=pl.String)


def _untagged(texts: pl.Series) -> pl.Series:
    """Tags that begin a new line or box part words; all others stand inside a line and vanish."""
    return texts.str.replace_all(_BLOCK_TAG, " ").str.replace_all(_INLINE_TAG, "")


def _unemphasised(texts: pl.Series) -> pl.Series:
    for _ in range(2):  # a sign of one letter lies between two marks
        texts = texts.str.replace_all(_EMPHASIS, "${a}${b}")
    return texts


def _bare(lowered: pl.Series) -> pl.Series:
    return spaced(bare_letters(lowered.str.replace_all(_SOFT_HYPHEN_AT_END, "")))
