"""Stage `decontaminate`: drop documents with benchmark questions, and hold documents out of training.

A document is matched against the question's own text (see `overlap`). A question that is too short to search for
counts as unchecked. A benchmark without any indexed question is an error. `hits.json` has, for each benchmark, the
numbers of questions, of indexed questions, of questions found, and of documents in which they were found.

The filter has edited the texts after `dedup` compared them, and this is the last stage that drops any. So it looks once
more, over all sources: texts that the edits made equal are dropped, and so is every text that contains a held-out one or
is contained in it (containment.py), in this slice and in later ones. It only looks back: a text that an earlier slice
trains on is not held out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Chain, Input
from storage.draft import Draft
from storage.errors import StageFailed
from storage.settings import Count, Settings, Whole, identity
from tasks.corpus.benchmarks.overlap import (
    Index,
    SavedIndex,
    build_index,
    find_matches,
    load_index,
    save_index,
)
from tasks.corpus.dedup import exact_hashes
from tasks.corpus.documents import DOCUMENTS, read_documents, read_kept, write_documents, write_dropped
from tasks.corpus.duplicates.containment import (
    AlikeJob,
    HeldTexts,
    Pairs,
    alike_shard,
    read_pairs,
    write_pairs,
)
from tasks.corpus.duplicates.known_texts import PART, KnownTexts, names_of
from tasks.corpus.fates import Fates
from tasks.corpus.holdout import text_hashes
from tasks.corpus.pieces import Piece, allowed_bytes, by_file, choose, is_long, of_others
from tasks.corpus.shards import Selection, count_by, document_shards, read_rows, texts_of, write_selection
from tasks.corpus.trained_on import TrainedOn

STAGE = "decontaminate"
VERSION = 5
COMPONENTS = {"questions": 3, "holdout": 1}
"""Versions of how benchmark questions are found, and of how documents are held out."""
_LOOKED_AT = pa.schema(
    [
        *(DOCUMENTS.field(name) for name in ("id", "source")),
        ("bytes", pa.int64()),
        ("matched", pa.int64()),
        ("detail", pa.string()),
        ("hash", pa.uint64()),
        ("exact", pa.binary(16)),
    ]
)
"""What is found of each document."""
_MANY_DOCUMENTS, _MANY_SHARE = 100, 0.01
"""So many documents, and so much of a slice, that one held-out text takes are worth a warning."""


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
    """The settings of the stage: the section, the corpus's holdout fraction, the run's seed, and dedup's `exact`."""

    holdout_fraction: float = identity(
        0.005, ge=0, le=0.5, description="Share of a source's first slice that is held out; 0 for none."
    )
    seed: int = identity(0, description="Of the choice of what is held out.")
    holdout_piece: Count | None = identity(
        None,
        since="0.2",
        ge=200,
        description="Bytes of a piece that is held out of each long document, as `corpus.holdout_piece`.",
    )
    copies: bool = identity(
        False,
        since="0.2",
        description="Drop exact copies that the filter's edits made, as `corpus.dedup.exact`.",
    )


@dataclass(frozen=True)
class DecontaminateInputs:
    """`benchmarks` and `benchmark_paths`: what `questions.benchmark_inputs` returns, one entry per benchmark.

    earlier: the parts `known` of the slices before this one, oldest first. trained: their documents, where this slice
    holds some out.
    """

    documents: Input
    benchmarks: tuple[dict[str, str], ...]
    first_of_source: bool
    benchmark_paths: tuple[Path, ...] = field(default=(), metadata={"in_key": False})
    earlier: Chain | None = field(default=None, metadata={"since": "0.2"})
    trained: tuple[Input, ...] = field(default=(), metadata={"since": "0.2"})


def components(config: DecontaminateConfig, inputs: DecontaminateInputs) -> Iterator[str]:
    """`questions` where there are benchmarks to look for, `holdout` where this slice gives one."""
    if config.benchmarks:
        yield "questions"
    if inputs.first_of_source and config.holdout_fraction > 0:
        yield "holdout"


@dataclass(frozen=True)
class DecontaminateStats:
    """Counts of documents and bytes of text.

    `pieces_held_out`: of documents that are trained on, but for the piece. `bytes_held_out` counts pieces too.
    `unchecked`, by benchmark: questions that are too short to search for, or whose row has no known schema.
    `holdout_passed_over`: documents that are not held out because an earlier slice trains on their text.
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
    holdout_passed_over: int
    pieces_held_out: int = 0


def run(config: DecontaminateConfig, inputs: DecontaminateInputs, draft: Draft) -> DecontaminateStats:
    """Parts: documents, dropped, hits, known; and holdout, if documents are held out.

    In a dropped row, `value` is the number of places with a question, or the share that the text has in common with the
    document that it copies or that is held out; `detail` is the question, or that document.
    """
    index = _index(config, inputs)
    scratch = draft.path / "scratch"
    saved = save_index(index, scratch / "index")
    holding = inputs.first_of_source and config.holdout_fraction > 0
    known = KnownTexts(inputs.earlier)
    shards = document_shards(inputs.documents)
    job = MatchJob(
        scratch,
        saved,
        seed=config.seed if holding else None,
        held=_saved(known.held(scratch), scratch / "held-before"),
        exact=config.copies,
    )
    found = draft.scratch(
        "matches", {name: replace(job, path=path) for name, path in shards.items()}, match_shard
    )
    fates = Fates.of(
        _looked_at(found.values()), [pq.read_metadata(path).num_rows for path in shards.values()]
    )
    fates.drop_overlaps(_pairs(fates, found), known.held_names)
    copies = known.copies(fates.hashes, fates.documents, fates.gone) if config.copies else {}
    fates.drop_copies(copies)
    held_out, passed_over, cuts = read_documents([]), 0, list[Piece]()
    if holding:
        trained = TrainedOn(draft, inputs.trained, shards, fates)
        size = config.holdout_piece
        long = is_long(fates.bytes, size) if size else np.zeros(len(fates.kinds), bool)
        passed_over = fates.hold_out(config.holdout_fraction, trained, long)
        if size:
            cuts, passed = _pieces(config, fates, long, trained)
            passed_over += passed
        held_out = _write_holdout(draft, list(shards.values()), fates, cuts)
        fates.call_held_out(copies)
    own = HeldTexts.of([_texts(held_out)], scratch)
    if directory := _saved(own, scratch / "held"):
        alike = {name: AlikeJob(path, directory) for name, path in shards.items()}
        pairs = _pairs(fates, draft.scratch("overlaps", alike, alike_shard))
        fates.drop_overlaps(of_others(pairs, cuts, len(held_out)), lambda: names_of(held_out))
    selected = zip(shards.items(), fates.files(fates.stays), by_file(fates.edges, cuts), strict=True)
    jobs = {name: Selection.of(path, stays, own) for (name, path), stays, own in selected}
    draft.shards("documents", jobs, write_selection)
    pieces = _texts(held_out).tail(len(cuts))
    cut_bytes = dict(zip((piece.row for piece in cuts), pieces.str.len_bytes().to_list(), strict=True))
    write_dropped(draft.path / "dropped.parquet", fates.dropped(STAGE))
    draft.part("dropped", "dropped.parquet")
    kept = fates.documents.select(["id", "source"]).filter(pa.array(~fates.gone))
    hashes = fates.hashes[~fates.gone] if config.copies else None
    known.write(draft.path / PART, kept, hashes, own, held_out.select(["id", "source"]))
    draft.part(PART, PART)
    hits = count_hits(index, [found[name] for name in shards])
    write_hits(draft, hits)
    _warn_of_many(draft, fates)
    return DecontaminateStats(
        documents_in=len(fates.kinds),
        documents_out=int(fates.stays.sum()),
        documents_dropped=int(fates.gone.sum()),
        documents_held_out=int(fates.held.sum()),
        bytes_in=int(fates.bytes.sum()),
        bytes_out=int(fates.bytes[fates.stays].sum())
        - sum(cut_bytes[piece.row] for piece in cuts if fates.stays[piece.row]),
        bytes_held_out=int(fates.bytes[fates.held].sum()) + sum(cut_bytes.values()),
        dropped_by_reason=count_by(fates.reasons()),
        questions_found={name: entry["questions_found"] for name, entry in hits.items()},
        unchecked={name: entry["unchecked"] for name, entry in hits.items()},
        holdout_passed_over=passed_over,
        pieces_held_out=len(cuts),
    )


def _looked_at(found: Iterable[Path]) -> pa.Table:
    tables = [pq.read_table(path / "documents.parquet", partitioning=None) for path in found]
    return pa.concat_tables(tables) if tables else _LOOKED_AT.empty_table()


def _texts(documents: pa.Table) -> pl.Series:
    texts = pl.from_arrow(documents["text"])
    assert isinstance(texts, pl.Series)
    return texts


def _saved(held: HeldTexts, directory: Path) -> Path | None:
    """Where a set of texts is saved for the workers; None if there is nothing to look for."""
    if not len(held):
        return None
    held.save(directory)
    return directory


def _pairs(fates: Fates, found: Mapping[str, Path]) -> Pairs:
    """What workers found alike in each file, with the rows of the slice as texts."""
    own = [read_pairs(path) for path in found.values()]
    return Pairs.together(
        [
            replace(pairs, texts=pairs.texts + begin)
            for begin, pairs in zip(fates.edges[:-1], own, strict=True)
        ]
    )


def _warn_of_many(draft: Draft, fates: Fates) -> None:
    name, many = fates.most_by_one()
    if many >= max(_MANY_DOCUMENTS, _MANY_SHARE * len(fates.kinds)):
        draft.warn(
            f"{many:,} documents are dropped for one held-out text, document {name}: they contain it, or it contains "
            f"them. `onward explain {name.split()[0]}` shows it"
        )


def _index(config: DecontaminateConfig, inputs: DecontaminateInputs) -> Index:
    names = tuple(entry["benchmark"] for entry in inputs.benchmarks)
    if names != config.benchmarks or len(inputs.benchmark_paths) != len(names):
        raise StageFailed(
            f"decontaminate: the questions given are of {list(names)} ({len(inputs.benchmark_paths)} files), "
            f"but the configuration lists {list(config.benchmarks)}"
        )
    files = tuple(zip(names, inputs.benchmark_paths, strict=True))
    return _built(_Asked(json.dumps([inputs.benchmarks, config.ngram], sort_keys=True), files, config.ngram))


@dataclass(frozen=True)
class _Asked:
    """Which index: `digests` says it; the files may be elsewhere another time."""

    digests: str
    files: tuple[tuple[str, Path], ...] = field(compare=False)
    ngram: int = field(compare=False)


@lru_cache(maxsize=1)
def _built(asked: _Asked) -> Index:
    """The index, which a run makes once for all its slices: it takes seconds, and a gigabyte for a moment."""
    return build_index(asked.files, asked.ngram)


@dataclass(frozen=True)
class MatchJob:
    """One file of documents to search.

    With a `seed`, its texts are also hashed for the holdout. `exact`: they are hashed to find copies. `held`: where the
    held-out texts of earlier slices are saved.
    """

    path: Path
    index: SavedIndex
    seed: int | None
    held: Path | None = None
    exact: bool = False


def match_shard(job: MatchJob, directory: Path) -> dict[str, Any]:
    """Shard function: writes `documents.parquet` (a row per document), `matches.parquet` (a row per document and
    question) and `pairs.arrow` (a row per document and held-out text that are alike)."""
    index = load_index(job.index)
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
    if job.exact:
        columns["exact"] = pa.array(exact_hashes(texts.str.to_lowercase()), pa.binary(16))
    pq.write_table(pa.table(columns), directory / "documents.parquet")
    write_pairs(HeldTexts.load(job.held).alike(texts) if job.held else Pairs.nothing(), directory)
    columns = {
        name: pa.array([pair[i] for pair in pairs], pa.int64()) for i, name in enumerate(("text", "question"))
    }
    pq.write_table(pa.table(columns), directory / "matches.parquet")
    return {}


def _pieces(
    config: DecontaminateConfig, fates: Fates, long: np.ndarray, trained: TrainedOn
) -> tuple[list[Piece], int]:
    """The pieces that are cut out of long documents, in the order of the documents, and how many were passed over."""
    assert config.holdout_piece is not None
    rows = np.flatnonzero(long & fates.stays)
    limit = allowed_bytes(int(fates.bytes.sum()), config.holdout_fraction) - int(
        fates.bytes[fates.held].sum()
    )
    hashes = fates.documents["hash"].to_numpy()[rows]
    return choose(rows, hashes, config.holdout_piece, max(0, limit), trained.texts, trained.of_pieces)


def _write_holdout(draft: Draft, paths: list[Path], fates: Fates, cuts: Sequence[Piece]) -> pa.Table:
    """Write part `holdout`; returns its documents: those held out whole, then the pieces."""
    tables = [read_documents([])]
    for path, mask in zip(paths, fates.files(fates.held), strict=True):
        if mask.any():
            tables.append(read_kept(path, mask))
    for path, own in zip(paths, by_file(fates.edges, cuts), strict=True):
        if own:
            mask = np.zeros(pq.read_metadata(path).num_rows, bool)
            mask[list(own)] = True
            rows = read_rows(path, np.flatnonzero(mask)).to_list()
            texts = [
                text[begin:end] for text, (_, (begin, end)) in zip(rows, sorted(own.items()), strict=True)
            ]
            tables.append(read_kept(path, mask, pa.array(texts, pa.large_string())))
    held_out = pa.concat_tables(tables)
    write_documents(draft.path / "holdout" / "part.parquet", held_out)
    draft.part("holdout", "holdout/part.parquet")
    return held_out


def count_hits(index: Index, found: Sequence[Path]) -> dict[str, dict[str, int]]:
    """Per benchmark: the numbers of all, indexed, unchecked and found questions, and of the documents found.

    `found`: directories that `match_shard` wrote with this index. Rows of a benchmark without a known schema count as
    unchecked questions.
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
    for number, (name, unread) in enumerate(zip(index.benchmarks, index.unread, strict=True)):
        own = index.benchmark_of == number
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
