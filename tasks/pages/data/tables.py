"""Queries of the data page over the stages' tables, through DuckDB: memory stays flat, whatever their size.

Every slice's `dropped.parquet` is read whole (one short row per dropped document). Text is read only from sampled
files, by column, or from the few rows that are shown. Every draw is by the hash of a document's id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from storage.tokens import TokenShard
from tasks.pages.data.facts import BINS_PER_DECADE, CopyGroup, CopyGroups, FateLengths, GroupSize, LengthCount
from tasks.pages.data.inputs import SliceParts, StageParts
from tasks.stages import CORPUS

Json = dict[str, Any]
DROPPING = CORPUS[:-1]
"""Stages that drop documents: all but `tokenize`."""
COPIES = ("exact_duplicate", "near_duplicate")


@dataclass(frozen=True)
class DocumentPlace:
    """Where a document lies: a file of documents and the row in it."""

    path: Path
    row: int


@dataclass(frozen=True, kw_only=True)
class DroppedRow:
    """A row of `dropped.parquet` and its slice. `detail` depends on the reason, `value` is what was measured."""

    slice: int
    stage: str
    reason: str
    id: int | None
    source: str
    value: float | None
    detail: str | None


@dataclass(frozen=True)
class DrawnDocument:
    """A drawn document: where it lies, and whether the filter kept it."""

    path: Path
    row: int
    kept: bool


@dataclass(frozen=True)
class Shard:
    """One file of documents of a slice, as `ingest` wrote it; later stages keep its name."""

    slice: int
    name: str
    bytes: int


_NOTHING = StageParts(stats={})


class Tables:
    """Queries over the slices' tables. `spill`: a directory for data that does not fit into memory."""

    def __init__(self, slices: Sequence[SliceParts], seed: int, spill: Path) -> None:
        self._slices = {one.number: one for one in slices}
        self._seed = seed
        self._db = duckdb.connect()
        self._db.execute("set memory_limit = '2GB'")
        self._db.execute(f"set temp_directory = '{_quoted(spill)}'")
        self._db.execute("create table files (filename varchar, slice integer)")
        paths = [
            (str(dropped.only()), number)
            for number in self._slices
            for stage in DROPPING
            if (dropped := self._stage(number, stage).dropped) is not None
        ]
        self._db.executemany("insert into files values (?, ?)", paths) if paths else None
        read = (
            f"select * from read_parquet({_listed(path for path, _ in paths)}, filename = true)"
            if paths
            else "select 0::ubigint id, '' source, '' stage, '' reason, 0.0 value, '' detail, '' filename limit 0"
        )
        self._db.execute(
            f"create view dropped as select f.slice, d.* from ({read}) d join files f using (filename)"
        )

    def rows(self, query: str, *parameters: Any) -> list[Json]:
        """Rows of a query as dictionaries."""
        result = self._db.execute(query, list(parameters))
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    # ---- near-duplicates --------------------------------------------------------------------------------------

    def clusters(self, largest: int) -> CopyGroups:
        """Groups of copies: their sizes, and the largest."""
        grouped = (
            "select detail as kept, count(*) + 1 as size, count(*) filter (reason = 'near_duplicate') as near, "
            "count(*) filter (reason = 'exact_duplicate') as exact "
            f"from dropped where reason in {COPIES} group by detail"
        )
        sizes = f"select size, count(*) as clusters from ({grouped}) group by size order by size"
        top = f"select * from ({grouped}) order by size desc, kept limit ?"
        return CopyGroups(
            tuple(GroupSize(**row) for row in self.rows(sizes)),
            tuple(CopyGroup(**row) for row in self.rows(top, largest)),
        )

    def pairs(self, kept: Sequence[str], most: int) -> list[DroppedRow]:
        """Near-duplicates to show: first one from the cluster of each document in `kept`, then others by the hash
        of the id.
        """
        found = self.rows(
            f"""
            with near as (
                select slice, stage, reason, id, source, value, detail, {self._order("id")} as place,
                       row_number() over (partition by detail order by {self._order("id")}) as nth
                from dropped where stage = 'dedup' and reason = 'near_duplicate' and id is not null
            )
            select slice, stage, reason, id, source, value, detail from near where nth = 1
            order by (detail in (select unnest(?::varchar[]))) desc, place limit ?
            """,
            list(kept),
            most,
        )
        return [DroppedRow(**row) for row in found]

    # ---- examples ---------------------------------------------------------------------------------------------

    def examples(self, each: int) -> list[DroppedRow]:
        """A few dropped rows for each stage and reason, by the hash of the id; without duplicates, which `pairs`
        shows.
        """
        found = self.rows(
            f"""
            select slice, stage, reason, id, source, value, detail from dropped
            where reason not in {COPIES}
            qualify row_number() over (partition by stage, reason order by {self._order("id")}, detail) <= ?
            order by stage, reason, {self._order("id")}, detail
            """,
            each,
        )
        return [DroppedRow(**row) for row in found]

    def find(
        self, ids: Sequence[int], stage: str, slices: Sequence[int] | None = None
    ) -> dict[int, DocumentPlace]:
        """Where documents lie in the part `documents` of a stage (of these slices). Unknown ids are left out."""
        files = [
            str(path)
            for number in self._slices
            if slices is None or number in slices
            if (documents := self._stage(number, stage).documents) is not None
            for path in documents.paths
        ]
        if not files or not ids:
            return {}
        found = self.rows(
            f"select id, filename, file_row_number as row from read_parquet({_listed(files)}, filename = true, "
            "file_row_number = true) where id in (select unnest(?::ubigint[]))",
            list(ids),
        )
        return {int(row["id"]): DocumentPlace(Path(row["filename"]), int(row["row"])) for row in found}

    # ---- lengths ----------------------------------------------------------------------------------------------

    def sampled(self, budget: int) -> tuple[list[Shard], int]:
        """Document files spread evenly over all slices, and the number of all such files.

        The sample has at most `budget` bytes on disk, but at least one file.
        """
        shards = [
            Shard(number, Path(name).parent.name, (documents.root / name).stat().st_size)
            for number in self._slices
            if (documents := self._stage(number, "ingest").documents) is not None
            for name in documents.files
        ]
        total = sum(shard.bytes for shard in shards)
        if total <= budget:
            return shards, len(shards)
        count = max(len(shards) * budget // total, 1)
        places = np.unique(np.linspace(0, len(shards) - 1, count).round().astype(np.int64))
        return [shards[place] for place in places], len(shards)

    def lengths(self, shards: Sequence[Shard]) -> tuple[FateLengths, ...]:
        """Documents as they were read, by fate and length in characters."""
        files = self._files("ingest", shards)
        if not files:
            return ()
        numbers = sorted({shard.slice for shard in shards})
        held = [
            str(part.only())
            for number in numbers
            if (part := self._stage(number, "decontaminate").holdout) is not None
        ]
        held_out = (
            f"select id from read_parquet({_listed(held)})" if held else "select 0::ubigint as id limit 0"
        )
        kept = self._files("decontaminate", shards)
        if kept and any(
            self._stage(number, "decontaminate").stats.get("pieces_held_out") for number in numbers
        ):
            held_out += (
                f" except select id from read_parquet({_listed(kept)})"  # of those, only a piece is held out
            )
        found = self.rows(
            f"""
            with gone as (select id, 'dropped by ' || stage as fate from dropped
                          where stage != 'ingest' and slice in (select unnest(?::integer[]))),
                 held as ({held_out})
            select coalesce(gone.fate, case when held.id is null then 'trained on' else 'held out' end) as fate,
                   {_bin("length(d.text)")} as bin, count(*) as documents, sum(strlen(d.text))::bigint as text
            from read_parquet({_listed(files)}) d left join gone using (id) left join held using (id)
            group by all order by all
            """,
            numbers,
        )
        return tuple(FateLengths(**row) for row in found)

    def lengths_after(self, shards: Sequence[Shard]) -> tuple[LengthCount, ...]:
        """Documents as they are trained on, by length in characters."""
        files = self._files("decontaminate", shards)
        if not files:
            return ()
        found = self.rows(
            f"select {_bin('length(text)')} as bin, count(*) as documents from read_parquet({_listed(files)}) "
            "group by all order by all"
        )
        return tuple(LengthCount(**row) for row in found)

    def lengths_in_tokens(self, shards: Sequence[Shard]) -> tuple[LengthCount, ...]:
        """The same in tokens, end-of-text included."""
        counts: dict[int, int] = {}
        for shard in shards:
            tokens = self._stage(shard.slice, "tokenize").tokens
            for path in tokens.paths if tokens else ():
                if path.parent.name == shard.name:
                    lengths = TokenShard.open(path).lengths
                    bins = np.floor(np.log10(np.maximum(lengths, 1)) * BINS_PER_DECADE).astype(np.int64)
                    for one, count in zip(*np.unique(bins, return_counts=True), strict=True):
                        counts[int(one)] = counts.get(int(one), 0) + int(count)
        return tuple(LengthCount(one, counts[one]) for one in sorted(counts))

    # ---- scores -----------------------------------------------------------------------------------------------

    def drawn(self, shards: Sequence[Shard], budget: int, longest: int) -> list[DrawnDocument]:
        """Documents that `filter` read, in the order of the hash of the id, until they have `budget` bytes of text.

        Documents longer than `longest` bytes are left out.
        """
        files = self._files("dedup", shards)
        if not files:
            return []
        found = self.rows(
            f"""
            with documents as (
                select id, filename, file_row_number, strlen(text) as size, {self._order("id")} as place
                from read_parquet({_listed(files)}, filename = true, file_row_number = true)
                where strlen(text) <= ?
            ), chosen as (
                select *, sum(size) over (order by place, id) as total from documents
            )
            select filename as path, file_row_number as row, id not in
                   (select id from dropped where stage = 'filter') as kept
            from chosen where total <= ? order by filename, file_row_number
            """,
            longest,
            budget,
        )
        return [DrawnDocument(Path(row["path"]), int(row["row"]), bool(row["kept"])) for row in found]

    def longer(self, shards: Sequence[Shard], longest: int) -> int:
        """Number of documents read by `filter` that are longer than `longest` bytes, and so never drawn for the
        rules.
        """
        files = self._files("dedup", shards)
        if not files:
            return 0
        found = self.rows(
            f"select count(*) as documents from read_parquet({_listed(files)}) where strlen(text) > ?",
            longest,
        )
        return int(found[0]["documents"])

    def _files(self, stage: str, shards: Sequence[Shard]) -> list[str]:
        found = []
        for shard in shards:
            documents = self._stage(shard.slice, stage).documents
            found += (
                [str(path) for path in documents.paths if path.parent.name == shard.name] if documents else []
            )
        return found

    def _stage(self, number: int, stage: str) -> StageParts:
        return self._slices[number].stages.get(stage) or _NOTHING

    def _order(self, column: str) -> str:
        """A random order that no version of DuckDB changes."""
        return f"md5({column}::varchar || ':{int(self._seed)}')"


def _bin(length: str) -> str:
    return f"floor(log10(greatest({length}, 1)) * {BINS_PER_DECADE})::integer"


def _quoted(path: Any) -> str:
    return str(path).replace("'", "''")


def _listed(paths: Any) -> str:
    return "[" + ", ".join(f"'{_quoted(path)}'" for path in paths) + "]"
