"""Lines as every rule sees them: ended by a newline alone, without blanks before it.

Who wrote a file decides whether its lines end in `\\n` or `\\r\\n`, and whether an empty line holds a blank. datatrove
counts every `\\r` or blank between two newlines as one more copy of the same line. So it drops a text in Windows' spelling
that it keeps in another. Here all rules measure the text with even lines. The text that is kept is not changed by this.
"""

from __future__ import annotations

import polars as pl

_BREAK = r"\r\n|[\r\x0b\x0c\x1c-\x1e\u{85}\u{2028}\u{2029}]"
_BLANKS = r"[[\s\p{Cc}\p{Cf}]&&[^\n]]+\n"
_UNEVEN = r"[\r\x0b\x0c\x1c-\x1e\u{85}\u{2028}\u{2029}]|[[\s\p{Cc}\p{Cf}]&&[^\n]]\n"


def even_lines(texts: pl.Series) -> pl.Series:
    """The texts with one newline for each line break of `str.splitlines`, and nothing invisible before it.

    The very series, if all its lines are even.
    """
    uneven = texts.str.contains(_UNEVEN)
    if not uneven.any():
        return texts
    places = uneven.arg_true()
    even = texts.gather(places).str.replace_all(_BREAK, "\n").str.replace_all(_BLANKS, "\n")
    return texts.clone().scatter(places, even)  # scatter changes the series itself
