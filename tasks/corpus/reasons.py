"""The commonest reasons for which documents were dropped, in words."""

from __future__ import annotations

from collections.abc import Mapping

_SHOWN = 3


def commonest(counts: Mapping[str, int]) -> str:
    """`gopher_too_few_words 20, language 8, c4_curly_brackets 1 and 2 more reasons`. Empty where nothing was dropped."""
    order = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    words = ", ".join(f"{reason} {count:,}" for reason, count in order[:_SHOWN])
    more = len(order) - _SHOWN
    return words + (f" and {more:,} more reason{'s' if more > 1 else ''}" if more > 0 else "")
