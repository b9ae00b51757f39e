"""Stage `filter`: drop documents that published quality rules reject, with the rule and what it measured."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import field_validator

from storage.artifact import Input
from storage.draft import Draft
from storage.settings import Settings, identity
from tasks.corpus.documents import dropped_table, read_documents, write_dropped
from tasks.corpus.rules import gopher_quality, gopher_repetition
from tasks.corpus.rules.rule import Batch, Rule
from tasks.corpus.shards import Selection, count_by, document_shards, texts_of, write_selection
from tasks.corpus.words import batches

STAGE = "filter"
VERSION = 1

_GOPHER = gopher_quality.RULES + gopher_repetition.RULES


class FilterConfig(Settings):
    """Which families of rules are asked, each with its published thresholds."""

    gopher: bool = identity(
        True,
        description="Gopher's repetition and quality rules (Rae et al. 2021), as datatrove applies them.",
    )
    thresholds: dict[str, float | None] = identity(
        default_factory=dict,
        description="Other limits than the published ones, by rule as in dropped.parquet; null: the rule is not asked.",
    )

    @field_validator("thresholds")
    @classmethod
    def _known_rules(cls, value: dict[str, float | None]) -> dict[str, float | None]:
        names = [rule.name for rule in _GOPHER]
        for name in value:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                raise ValueError(f"no rule is called {name}" + (f"; did you mean {near[0]}?" if near else ""))
        return value

    def rules(self) -> tuple[Rule, ...]:
        """The rules in the order in which they are asked, which decides only what reason is given."""
        asked = []
        for rule in _GOPHER if self.gopher else ():
            limit = self.thresholds.get(rule.name, rule.limit)
            if limit is not None:
                asked.append(replace(rule, limit=limit))
        return tuple(asked)


@dataclass(frozen=True)
class FilterInputs:
    """Documents of a slice, from `dedup`."""

    documents: Input


@dataclass(frozen=True)
class FilterStats:
    """Counts of documents and of bytes of text; reasons are names of rules."""

    documents_in: int
    documents_out: int
    documents_dropped: int
    bytes_in: int
    bytes_out: int
    dropped_by_reason: dict[str, int]


def run(config: FilterConfig, inputs: FilterInputs, draft: Draft) -> FilterStats:
    """Parts: documents, dropped. Value of a dropped row: what the first rule that failed measured; detail: its limit."""
    rules = config.rules()
    shards = document_shards(inputs.documents)
    jobs = {name: FilterJob(path, config) for name, path in shards.items()}
    judged = draft.scratch("verdicts", jobs, judge_shard)
    verdicts = {name: pq.read_table(judged[name] / "verdicts.parquet", partitioning=None) for name in shards}
    failed = {name: table["failed"].to_numpy() for name, table in verdicts.items()}
    draft.shards(
        "documents",
        {name: Selection.of(path, failed[name] < 0) for name, path in shards.items()},
        write_selection,
    )
    reasons = [_write_row(shards[name], verdicts[name], rules) for name in shards]
    dropped = pa.concat_tables([dropped_table([], "", STAGE, ""), *reasons])
    write_dropped(draft.path / "dropped.parquet", dropped)
    draft.part("dropped", "dropped.parquet")
    sizes = np.concatenate(
        [np.zeros(0, np.int64), *(table["bytes"].to_numpy() for table in verdicts.values())]
    )
    kept = np.concatenate([np.zeros(0, bool), *(which < 0 for which in failed.values())])
    return FilterStats(
        documents_in=len(kept),
        documents_out=int(kept.sum()),
        documents_dropped=len(dropped),
        bytes_in=int(sizes.sum()),
        bytes_out=int(sizes[kept].sum()),
        dropped_by_reason=count_by(dropped["reason"].to_numpy(zero_copy_only=False)),
    )


@dataclass(frozen=True)
class FilterJob:
    """One file of documents to judge."""

    path: Path
    config: FilterConfig


def judge_shard(job: FilterJob, directory: Path) -> dict[str, Any]:
    """Shard function: `verdicts.parquet` with bytes, the number of the first rule that failed (−1: none), its value."""
    texts = texts_of(job.path)
    failed, values = first_failures(texts, job.config.rules())
    table = pa.table(
        {
            "bytes": pa.array(texts.str.len_bytes().to_numpy().astype(np.int64)),
            "failed": pa.array(failed),
            "value": pa.array(values),
        }
    )
    pq.write_table(table, directory / "verdicts.parquet")
    return {"rows": len(texts)}


def first_failures(texts: pl.Series, rules: Sequence[Rule]) -> tuple[np.ndarray, np.ndarray]:
    """The number of the first rule that each text fails (−1: none), and what that rule measured (NaN: none).

    int64 and float64, shape (texts,).
    """
    failed = np.full(len(texts), -1, np.int64)
    value = np.full(len(texts), np.nan)
    for offset, some in batches(texts):
        batch = Batch(some)
        here = slice(offset, offset + len(some))
        for number, rule in enumerate(rules):
            measured, keep = rule.measure(batch)
            now = ~keep & (failed[here] < 0)
            failed[here][now] = number
            value[here][now] = measured[now]
    return failed, value


def _write_row(path: Path, verdicts: pa.Table, rules: Sequence[Rule]) -> pa.Table:
    failed = verdicts["failed"].to_numpy()
    gone = np.flatnonzero(failed >= 0)
    documents = read_documents([path], ["id", "source"]).take(pa.array(gone))
    return dropped_table(
        documents["id"],
        documents["source"],
        STAGE,
        [rules[number].name for number in failed[gone]],
        verdicts["value"].to_numpy()[gone],
        [rules[number].threshold for number in failed[gone]],
    )
