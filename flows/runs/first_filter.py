"""The filter of a first configuration: a sample of the text is put to its rules, and what takes much is switched off."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import polars as pl

from tasks.corpus.filter import ANY_LANGUAGE, FilterConfig, judge

_TOO_MANY = 0.1
"""A rule that takes a larger share of a sample was made for other text."""
_MOST_RULES = 3
_ENOUGH = 0.7
"""Share of a sample's bytes that the filter should keep: this text was chosen by a person."""


@dataclass(frozen=True)
class Chosen:
    """Values of `corpus.filter` that differ from the defaults, each with its reason."""

    values: dict[str, object]
    reasons: dict[str, str]


def filter_of(samples: list[list[str]]) -> Chosen:
    """Switch off what takes a large part of a sample: such rules were made for pages of the web.

    One rule after the other, the one that takes most first, as a document that one rule leaves may fail the next.
    """
    values: dict[str, object] = {}
    reasons: dict[str, str] = {}
    left: dict[str, float] = {}
    if _worst(samples, _ONLY | {"language": "en"})[1] > _TOO_MANY:
        values["language"] = ANY_LANGUAGE
        reasons["language"] = "much of a sample is not sure to be English"
    for family in ("gopher", "c4", "fineweb"):
        off: dict[str, float] = {}
        while True:
            rule, share = _worst(samples, _ONLY | {family: True, "thresholds": dict.fromkeys(off)})
            if share <= _TOO_MANY or len(off) > _MOST_RULES:
                break
            off[rule] = share
        if len(off) > _MOST_RULES:
            values[family] = False
            reasons[family] = f"more than {_MOST_RULES} of its rules take much of a sample: {_said(off)}"
        else:
            left |= off
    if left:
        values["thresholds"] = dict.fromkeys(left)
        reasons["thresholds"] = f"not asked, for the share of a sample that they take: {_said(left)}"
    for family in (
        "c4",
        "fineweb",
        "gopher",
    ):  # C4 edits texts, so that the other two judge what it leaves of them
        kept = min(share_kept(texts, values) for texts in samples)
        if kept < _ENOUGH and values.get(family) is not False:
            values[family] = False
            reasons[family] = f"with it, the filter keeps only {kept:.0%} of a sample"
    return Chosen(values, reasons)


_ONLY: dict[str, object] = {
    "language": ANY_LANGUAGE,
    "gopher": False,
    "c4": False,
    "fineweb": False,
    "pii": "off",
}


def _said(taken: dict[str, float]) -> str:
    return ", ".join(f"{rule} {share:.0%}" for rule, share in list(taken.items())[:_MOST_RULES])


def _worst(samples: list[list[str]], values: dict[str, object]) -> tuple[str, float]:
    """The rule that more documents of a sample fail first than any other, and their share."""
    config = FilterConfig.model_validate(values)
    found = [pair for texts in samples for pair in _taken(texts, config).items()]
    return max(found, key=lambda pair: pair[1], default=("", 0.0))


def _taken(texts: list[str], config: FilterConfig) -> dict[str, float]:
    """Share of the documents that fail each rule first."""
    rules = config.rules()
    failed = judge(pl.Series(texts, dtype=pl.String), None, config.families()).failed
    counts = Counter(rules[number].name for number in failed.tolist() if number >= 0)
    return {
        ("language" if rule.startswith("language") else rule): n / len(texts) for rule, n in counts.items()
    }


def share_kept(texts: list[str], values: dict[str, object]) -> float:
    """Share of a sample's bytes that the filter keeps."""
    series = pl.Series(texts, dtype=pl.String)
    kept = judge(series, None, FilterConfig.model_validate(values).families()).texts
    return int(kept.str.len_bytes().sum()) / max(1, int(series.str.len_bytes().sum()))
