"""Which rule of the filter takes a large share of a slice, with documents that it took.

A rule that takes a quarter of a slice measures something about the whole source more often than about its documents: line
ends, markup, another language, a table's layout. No published rule takes so much of the corpora that the docs measure.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.artifact import Input
from tasks.corpus.documents import read_documents
from tasks.corpus.filter import ANY_LANGUAGE, PUBLISHED
from tasks.corpus.rules import language, likeness, pii
from tasks.corpus.shards import read_rows

LARGE = 0.25
"""Share of a slice's documents from which one rule is named."""
FEW = 20
"""Fewer documents than this are not worth it."""
_EXAMPLES = 3
_CHARACTERS = 60
_READ = 2000


@dataclass(frozen=True)
class Taken:
    """What one rule took of the documents that the filter was given."""

    rule: str
    documents: int
    asked: int

    def __str__(self) -> str:
        share = 100 * self.documents / self.asked
        return f"{self.rule} drops {self.documents:,} of {self.asked:,} documents ({share:.0f} %)"


def large_shares(stats: Mapping[str, Any]) -> list[Taken]:
    """The rules that take a large share of a slice, from the statistics of `filter`; the largest first."""
    asked, reasons = int(stats.get("documents_in", 0)), stats.get("dropped_by_reason", {})
    found = [Taken(rule, int(count), asked) for rule, count in reasons.items()]
    large = [one for one in found if one.documents >= max(FEW, LARGE * asked)]
    return sorted(large, key=lambda one: (-one.documents, one.rule))


def warning_of(taken: Taken, dropped: Input, documents: Input, masked: bool) -> str:
    """A warning that names the rule and up to three documents. `dropped`: of `filter`; `documents`: what it was given.

    `masked`: whether personal data in the first words is masked. What cannot be read is left out.
    """
    try:
        shown = _examples(taken.rule, dropped, documents, masked)
    except (OSError, pa.ArrowException):
        shown = []
    such = f", such as {'; '.join(said for _, said in shown)}" if shown else ""
    explain = f"; `onward explain {shown[0][0]}` follows one of them" if shown else ""
    return f"{taken}{such}. To keep them: {key_of(taken.rule)}{explain}"


def key_of(rule: str) -> str:
    """The key of the configuration, and the value with which a rule drops nothing."""
    if rule == language.RULE:
        return f"corpus.filter.language: {ANY_LANGUAGE}"
    if rule == likeness.RULE:
        return "a lower like.least of the source"
    if rule in PUBLISHED:
        return f"corpus.filter.thresholds: {{{rule}: null}}, or another limit"
    return "a switch or limit in corpus.filter"


def _examples(rule: str, dropped: Input, documents: Input, masked: bool) -> list[tuple[int, str]]:
    table = pq.read_table(dropped.only(), columns=["id", "reason", "value", "detail"], partitioning=None)
    rows = table.filter(pc.equal(table["reason"], rule)).slice(0, _EXAMPLES).to_pylist()
    texts = _texts([row["id"] for row in rows], documents)
    return [
        (
            row["id"],
            f"{row['id']} “{_first_words(texts.get(row['id'], ''), masked)}” ({row['value']:.3g}, {row['detail']})",
        )
        for row in rows
    ]


def _texts(wanted: list[int], documents: Input) -> dict[int, str]:
    found: dict[int, str] = {}
    for path in documents.paths:
        found |= _texts_of(path, [one for one in wanted if one not in found])
        if len(found) == len(wanted):
            break
    return found


def _texts_of(path: Path, wanted: list[int]) -> dict[int, str]:
    ids = read_documents([path], ["id"])["id"].to_numpy()
    rows = np.flatnonzero(np.isin(ids, np.array(wanted, np.uint64)))
    return dict(zip(ids[rows].tolist(), read_rows(path, rows), strict=True))


def _first_words(text: str, masked: bool) -> str:
    start = text[:_READ]
    start = " ".join((pii.mask(start)[0] if masked else start).split())
    shown = "".join("·" if unicodedata.category(sign)[0] in "CZ" and sign != " " else sign for sign in start)
    return shown if len(shown) <= _CHARACTERS else shown[:_CHARACTERS].rsplit(" ", 1)[0] + " …"
