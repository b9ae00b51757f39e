"""Stage `contamination`: count the questions of one benchmark that occur in a finished corpus.

The stage serves benchmarks that are evaluated but are not in `corpus.decontaminate.benchmarks`. It only counts: no
document is dropped, and no corpus is made again. A question counts as found where `decontaminate` would have dropped
the document (see `overlap`); `hits.json` has the same form as in that stage. A benchmark without any question that can
be searched is not an error here: its scores are reported as unchecked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import StageFailed
from storage.settings import Settings, identity
from tasks.corpus.benchmarks.overlap import Index, build_index, save_index
from tasks.corpus.decontaminate import MatchJob, count_hits, match_shard, write_hits
from tasks.corpus.shards import document_shards

STAGE = "contamination"
VERSION = 4


class CountConfig(Settings):
    """How a question is found in a document."""

    ngram: int = identity(
        13,
        ge=1,
        le=100,
        description="Consecutive words that a document and a question share where it is found.",
    )


@dataclass(frozen=True)
class CountInputs:
    """`documents`: of every slice, from `decontaminate`. `benchmark`: {benchmark, file, sha256}, as
    `questions.benchmark_inputs` returns it."""

    documents: tuple[Input, ...]
    benchmark: Mapping[str, str]
    benchmark_path: Path | None = field(default=None, metadata={"in_key": False})


@dataclass(frozen=True)
class CountStats:
    """Counts of the documents searched and of the benchmark's questions.

    `unchecked`: questions that are too short to search for, or whose row has no known schema.
    """

    documents: int
    questions: int
    indexed: int
    unchecked: int
    questions_found: int
    documents_found: int


def run(config: CountConfig, inputs: CountInputs, draft: Draft) -> CountStats:
    """Parts: hits (hits.json) and found (found.parquet: the question's row, the document's id and source)."""
    if inputs.benchmark_path is None:
        raise StageFailed(f"contamination: no file of {inputs.benchmark['benchmark']!r} was given")
    name = inputs.benchmark["benchmark"]
    index = build_index(((name, inputs.benchmark_path),), config.ngram, partly=True)
    saved = save_index(index, draft.path / "scratch" / "index")
    jobs = {
        f"{number:05d}-{shard}": MatchJob(path, saved, None)
        for number, documents in enumerate(inputs.documents)
        for shard, path in document_shards(documents).items()
    }
    looked = draft.scratch("matches", jobs if index.checked.any() else {}, match_shard)
    hits = count_hits(index, list(looked.values()))
    write_hits(draft, hits)
    _write_found(draft, index, list(looked.values()))
    documents = sum(pq.read_metadata(job.path).num_rows for job in jobs.values())
    return CountStats(documents=documents, **hits[name])


def _write_found(draft: Draft, index: Index, looked: list[Path]) -> None:
    tables = [
        pa.table(
            {
                "row": pa.array([], pa.int64()),
                "id": pa.array([], pa.uint64()),
                "source": pa.array([], pa.string()),
            }
        )
    ]
    for path in looked:
        pairs = pq.read_table(path / "matches.parquet", partitioning=None)
        if len(pairs):
            texts = pq.read_table(path / "documents.parquet", columns=["id", "source"], partitioning=None)
            those = texts.take(pairs["text"])
            rows = index.row_of[pairs["question"].to_numpy()].astype(np.int64)
            tables.append(those.add_column(0, "row", pa.array(rows)).cast(tables[0].schema))
    pq.write_table(
        pa.concat_tables(tables).combine_chunks(), draft.path / "found.parquet", compression="zstd"
    )
    draft.part("found", "found.parquet")
