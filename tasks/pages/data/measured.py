"""Values of the filter's own rules on a sample of its input, before and after filtering.

`dropped.parquet` records only the first rule that fails. So the same rules measure again here: on every document of
the sample, each family on the text as the family before left it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from tasks.corpus.filter import FilterConfig
from tasks.corpus.rules import education, language
from tasks.corpus.rules.lines import even_lines
from tasks.corpus.rules.rule import Rule, TextBatch
from tasks.pages.data.facts import RuleValues
from tasks.pages.data.tables import DrawnDocument

ALWAYS = (language.RULE, education.RULE)
_BINS = 32


def measure(
    config: FilterConfig, drawn: Sequence[DrawnDocument], reasons: Mapping[str, int], most: int
) -> tuple[RuleValues, ...]:
    """The values of at most `most` rules on the drawn documents.

    Rules that give a score (language, education) come first, then those that dropped most (`reasons`: counts by
    rule). If the filter does not use the education rule, the source's own education score comes last (limit: None).
    """
    if not drawn:
        return ()
    texts, meta = _read(drawn)
    kept = np.array([one.kept for one in drawn])
    shown = set(_chosen(config, reasons, most))
    found = {}
    batch = TextBatch(even_lines(texts), meta)
    for family in config.families():
        for rule in family.rules:
            if rule.name in shown:
                found[rule.name] = _row(rule.name, rule.limit, rule.least, values(rule, batch), kept)
        if family.edit is not None:
            edited = family.edit(batch, np.ones(len(batch), bool))
            batch = TextBatch(edited.texts, meta)
    if all(rule.name != education.RULE for rule in config.rules()):
        found[education.RULE] = _row(education.RULE, None, True, education.own_scores(meta), kept)
    order = dict.fromkeys([*_chosen(config, reasons, most), education.RULE])
    return tuple(row for name in order if (row := found.get(name)) is not None)


def values(rule: Rule, batch: TextBatch) -> np.ndarray:
    """A rule's exact value for each text. The limit passed is one of which no bound can say that a text meets it."""
    lowest = rule.limit if rule.least else -1.0
    return rule.value(batch, math.inf if rule.name == language.RULE else lowest).astype(np.float64)


def _chosen(config: FilterConfig, reasons: Mapping[str, int], most: int) -> list[str]:
    names = [rule.name for rule in config.rules()]
    scores = [name for name in ALWAYS if name in names]
    others = sorted(
        (name for name in names if reasons.get(name) and name not in scores),
        key=lambda name: (-reasons[name], name),
    )
    return (scores + others)[:most]


def _read(drawn: Sequence[DrawnDocument]) -> tuple[pl.Series, pl.Series]:
    """Texts and metadata of the rows, which are sorted by file and row. One row group is read at a time."""
    pieces: dict[str, list[Any]] = {"text": [], "meta": []}
    for path in dict.fromkeys(one.path for one in drawn):
        rows = np.array([one.row for one in drawn if one.path == path], np.int64)
        for table in groups(path, rows, ["text", "meta"]):
            for name, column in pieces.items():
                column += table[name].to_pylist()
    return pl.Series(pieces["text"], dtype=pl.String), pl.Series(pieces["meta"], dtype=pl.String)


def groups(path: Path, rows: np.ndarray, columns: Sequence[str]) -> Any:
    """Tables of the given rows (int64, ascending) of a Parquet file, one per row group that holds any."""
    reader = pq.ParquetFile(path)
    sizes = [reader.metadata.row_group(number).num_rows for number in range(reader.num_row_groups)]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    group_of = np.searchsorted(edges, rows, side="right") - 1
    for group in np.unique(group_of):
        table = reader.read_row_group(int(group), columns=list(columns))
        yield table.take(rows[group_of == group] - edges[group])


def _row(
    name: str, limit: float | None, least: bool, measured: np.ndarray, kept: np.ndarray
) -> RuleValues | None:
    there = np.isfinite(measured)
    before, after = measured[there], measured[there & kept]
    if not len(before):
        return None
    low, high = np.quantile(before, [0.005, 0.995])
    if limit is not None:
        low, high = min(low, limit), max(high, limit)
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    good = (
        (before >= limit if least else before <= limit) if limit is not None else np.ones(len(before), bool)
    )
    return RuleValues(
        rule=name,
        limit=None if limit is None else float(limit),
        least=least,
        documents=len(before),
        kept=len(after),
        edges=tuple(float(edge) for edge in edges),
        before=_histogram(before, edges),
        after=_histogram(after, edges),
        median=float(np.median(before)),
        median_after=float(np.median(after)) if len(after) else None,
        failing=int((~good).sum()),
    )


def _histogram(some: np.ndarray, edges: np.ndarray) -> tuple[int, ...]:
    return tuple(int(count) for count in np.histogram(np.clip(some, edges[0], edges[-1]), edges)[0])
