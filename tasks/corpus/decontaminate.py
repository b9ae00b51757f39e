"""Stage `decontaminate`: drop documents with benchmark questions, and hold documents out of training.

A document is matched against the question's own text (see `overlap`). A question that is too short to search for
counts as unchecked. A benchmark without any indexed question is an error. `hits.json` has, for each benchmark, the
numbers of questions, of indexed questions, of questions found, and of documents in which they were found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import StageFailed
from storage.settings import Settings, Whole, identity
from tasks.corpus.benchmarks.overlap import Index, build_index, find_matches, load_index, save_index
from tasks.corpus.benchmarks.questions import read_questions
from tasks.corpus.documents import dropped_table, read_documents, write_documents, write_dropped
from tasks.corpus.holdout import held_out, text_hashes
from tasks.corpus.shards import Selection, document_shards, texts_of, write_selection

STAGE = "decontaminate"
VERSION = 3
COMPONENTS = {"questions": 2, "holdout": 1}
"""Versions of how benchmark questions are found, and of how documents are held out."""
REASON = "benchmark_overlap"


class ContaminationConfig(Settings):
    """The section `corpus.decontaminate`: the benchmarks whose questions are searched for."""

    ngram: Whole = identity(
        13,
        ge=1,
        le=100,
        description="A document that shares so many consecutive words with a question is dropped.",
    )
    benchmarks: tuple[str, ...] = identity(
        (),
        description="Benchmarks whose scored split is kept out of the corpus; a list of its own, with own ones too.",
    )


class DecontaminateConfig(ContaminationConfig):
    """The settings of the stage: the section, the corpus's holdout fraction and the run's seed."""

    holdout_fraction: float = identity(
        0.005, ge=0, le=0.5, description="Share of a source's first slice that is held out; 0 for none."
    )
    seed: int = identity(0, description="Of the choice of what is held out.")


@dataclass(frozen=True)
class DecontaminateInputs:
    """`benchmarks` and `benchmark_paths`: what `questions.benchmark_inputs` returns, one entry per benchmark."""

    documents: Input
    benchmarks: tuple[dict[str, str], ...]
    first_of_source: bool
    benchmark_paths: tuple[Path, ...] = field(default=(), metadata={"in_key": False})


def components(config: DecontaminateConfig, inputs: DecontaminateInputs) -> Iterator[str]:
    """`questions` where there are benchmarks to look for, `holdout` where this slice gives one."""
    if config.benchmarks:
        yield "questions"
    if inputs.first_of_source and config.holdout_fraction > 0:
        yield "holdout"


@dataclass(frozen=True)
class DecontaminateStats:
    """Counts of documents and bytes of text.

    `unchecked`, by benchmark: questions that are too short to search for, or whose row has no known schema.
    """

    documents_in: int
    documents_out: int
    documents_dropped: int
    documents_held_out: int
    bytes_in: int
    bytes_out: int
    bytes_held_out: int
    dropped_by_reason: dict[str, int]
    questions_found: dict[str, int]
    unchecked: dict[str, int]


def run(config: DecontaminateConfig, inputs: DecontaminateInputs, draft: Draft) -> DecontaminateStats:
    """Parts: documents, dropped, hits; and holdout, if documents are held out."""
    index = _index(config, inputs)
    directory = draft.path / "scratch" / "index"
    save_index(index, directory)
    holding = inputs.first_of_source and config.holdout_fraction > 0
    shards = document_shards(inputs.documents)
    jobs = {
        name: MatchJob(path, directory, index.benchmarks, config.seed if holding else None)
        for name, path in shards.items()
    }
    found = draft.scratch("matches", jobs, match_shard)
    documents = read_documents(
        [found[name] / "documents.parquet" for name in shards], None if shards else ["id", "source"]
    )
    dropped = documents["matched"].to_numpy() > 0 if shards else np.zeros(0, bool)
    text_bytes = documents["bytes"].to_numpy() if shards else np.zeros(0, np.int64)
    held = np.zeros(len(dropped), bool)
    if holding and shards:
        clean = np.flatnonzero(~dropped)
        hashes = documents["hash"].to_numpy()[clean]
        held[clean[held_out(hashes, text_bytes[clean], config.holdout_fraction)]] = True
    masks = _by_shard(shards, dropped, held)
    draft.shards(
        "documents",
        {
            name: Selection.of(path, ~gone & ~out)
            for (name, path), (gone, out) in zip(shards.items(), masks, strict=True)
        },
        write_selection,
    )
    if holding:
        _write_holdout(draft, list(shards.values()), [out for _, out in masks])
    _write_dropped(draft, documents, dropped)
    hits = count_hits(index, [found[name] for name in shards], inputs.benchmark_paths)
    write_hits(draft, hits)
    return DecontaminateStats(
        documents_in=len(dropped),
        documents_out=int((~dropped & ~held).sum()),
        documents_dropped=int(dropped.sum()),
        documents_held_out=int(held.sum()),
        bytes_in=int(text_bytes.sum()),
        bytes_out=int(text_bytes[~dropped & ~held].sum()),
        bytes_held_out=int(text_bytes[held].sum()),
        dropped_by_reason={REASON: int(dropped.sum())} if dropped.any() else {},
        questions_found={name: entry["questions_found"] for name, entry in hits.items()},
        unchecked={name: entry["unchecked"] for name, entry in hits.items()},
    )


def _index(config: DecontaminateConfig, inputs: DecontaminateInputs) -> Index:
    names = tuple(entry["benchmark"] for entry in inputs.benchmarks)
    if names != config.benchmarks or len(inputs.benchmark_paths) != len(names):
        raise StageFailed(
            f"decontaminate: the questions given are of {list(names)} ({len(inputs.benchmark_paths)} files), "
            f"but the configuration lists {list(config.benchmarks)}"
        )
    return build_index(tuple(zip(names, inputs.benchmark_paths, strict=True)), config.ngram)


@dataclass(frozen=True)
class MatchJob:
    """One file of documents to search. With a `seed`, its texts are also hashed for the holdout."""

    path: Path
    index: Path
    benchmarks: tuple[str, ...]
    seed: int | None


def match_shard(job: MatchJob, directory: Path) -> dict[str, Any]:
    """Shard function: writes `documents.parquet` (a row per document) and `matches.parquet` (a row per document and
    question)."""
    index = load_index(job.index, job.benchmarks)
    texts = texts_of(job.path)
    matched = np.zeros(len(texts), np.int64)
    details = [""] * len(texts)
    places: set[tuple[int, int]] = set()
    pairs: dict[tuple[int, int], None] = {}
    for match in find_matches(texts, index):
        details[match.text] = details[match.text] or f"{index.name(match.question)} {match.words}"
        matched[match.text] += (match.text, match.position) not in places
        places.add((match.text, match.position))
        pairs[(match.text, match.question)] = None
    names = read_documents([job.path], ["id", "source"])
    columns = {
        "id": names["id"],
        "source": names["source"],
        "bytes": pa.array(texts.str.len_bytes().to_numpy().astype(np.int64)),
        "matched": pa.array(matched),
        "detail": pa.array(details, pa.string()),
    }
    if job.seed is not None:
        columns["hash"] = pa.array(text_hashes(texts, job.seed))
    pq.write_table(pa.table(columns), directory / "documents.parquet")
    columns = {
        name: pa.array([pair[i] for pair in pairs], pa.int64()) for i, name in enumerate(("text", "question"))
    }
    pq.write_table(pa.table(columns), directory / "matches.parquet")
    return {}


def _by_shard(
    shards: dict[str, Path], dropped: np.ndarray, held: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    edges = np.cumsum([pq.read_metadata(path).num_rows for path in shards.values()])
    if not len(edges):
        return []
    return list(zip(np.split(dropped, edges[:-1]), np.split(held, edges[:-1]), strict=True))


def _write_holdout(draft: Draft, paths: list[Path], masks: list[np.ndarray]) -> None:
    tables = [read_documents([])]
    for path, mask in zip(paths, masks, strict=True):
        if mask.any():
            tables.append(read_documents([path]).filter(pa.array(mask)))
    write_documents(draft.path / "holdout" / "part.parquet", pa.concat_tables(tables))
    draft.part("holdout", "holdout/part.parquet")


def _write_dropped(draft: Draft, documents: pa.Table, dropped: np.ndarray) -> None:
    gone = documents.filter(pa.array(dropped))
    if len(gone):
        table = dropped_table(
            gone["id"],
            gone["source"],
            STAGE,
            REASON,
            gone["matched"].to_numpy().astype(float),
            gone["detail"],
        )
    else:
        table = dropped_table([], "", STAGE, REASON)
    write_dropped(draft.path / "dropped.parquet", table)
    draft.part("dropped", "dropped.parquet")


def count_hits(
    index: Index, found: Sequence[Path], benchmark_paths: Sequence[Path]
) -> dict[str, dict[str, int]]:
    """Per benchmark: the numbers of all, indexed, unchecked and found questions, and of the documents found.

    `found`: directories that `match_shard` wrote with this index. `benchmark_paths`: the files from which the index
    was made; their rows without a known schema count as unchecked questions.
    """
    pairs = [pq.read_table(path / "matches.parquet", partitioning=None) for path in found]
    questions = np.concatenate([np.zeros(0, np.int64), *(table["question"].to_numpy() for table in pairs)])
    in_documents = [
        np.unique(
            np.stack([table["text"].to_numpy(), index.benchmark_of[table["question"].to_numpy()]], axis=1),
            axis=0,
        )
        for table in pairs
    ]
    hits = {}
    for number, (name, path) in enumerate(zip(index.benchmarks, benchmark_paths, strict=True)):
        own = index.benchmark_of == number
        readable, rows = read_questions(name, path)
        unread = rows - len(readable)
        hits[name] = {
            "questions": int(own.sum()) + unread,
            "indexed": int(index.checked[own].sum()),
            "unchecked": int((~index.checked[own]).sum()) + unread,
            "questions_found": int(own[np.unique(questions)].sum()),
            "documents_found": int(sum((some[:, 1] == number).sum() for some in in_documents)),
        }
    return hits


def write_hits(draft: Draft, hits: dict[str, dict[str, int]]) -> None:
    """Part `hits`: hits.json."""
    (draft.path / "hits.json").write_text(json.dumps(hits, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    draft.part("hits", "hits.json")
