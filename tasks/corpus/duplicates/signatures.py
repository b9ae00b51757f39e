"""What dedup remembers of the documents that it kept: their places, and tables of hashes to find them.

A slice's part `signatures` is a link of a chain, oldest first:

    documents.arrow   the documents kept of this slice: id, source, and the file and row of the text
    exact.arrow       one table: hashes of whole normalised texts, 128 bits
    bands.arrow       one table for each band of the MinHash signatures
    paragraphs.arrow  one table: hashes of the lines seen first in this slice; only if paragraphs are compared
    chain.json        the link's number, the documents kept before it and in it, and the previous link's digest

A table is sorted by hash. It covers the last `span` links, this one included; span is the largest power of RADIX that
divides the link's number (a Fenwick tree with a larger radix; Fenwick 1994, doi 10.1002/spe.4380240306). So everything
before slice k is in at most (RADIX − 1) · log(k) tables, which are memory-mapped, and a document is written into about
log(k) of them: the time of a slice grows only logarithmically with the number of slices before it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage.artifact import Chain, Input
from storage.errors import OnwardError
from storage.views import numpy_view

RADIX = 4
FORMAT = 2
AT_ONCE = 1 << 20
"""Approximate number of table rows that are merged in memory at once."""

_MOST_PLACES = 1 << 32


def span_of(number: int) -> int:
    """Number of links that the tables of link `number` (from 1) cover."""
    span = 1
    while number % (span * RADIX) == 0:
        span *= RADIX
    return span


def covering(number: int, after: int = 0) -> list[int]:
    """Numbers of the links whose tables together cover the links `after` + 1 to `number`, oldest first."""
    found = []
    while number > after:
        found.append(number)
        number -= span_of(number)
    return found[::-1]


@dataclass(frozen=True)
class SignatureTable:
    """Hashes (uint64, shape (n,), ascending) and their data.

    places: uint32, the document's position minus `start`. rests: uint64, 64 further bits of the hash. Each is None in
    a table without it. Rows with equal hashes are in document order.
    """

    hashes: np.ndarray
    places: np.ndarray | None = None
    rests: np.ndarray | None = None
    start: int = 0

    @classmethod
    def of(
        cls, hashes: np.ndarray, positions: np.ndarray, start: int, rests: np.ndarray | None = None
    ) -> SignatureTable:
        """A table of documents in their order. Positions are int64, at least `start`."""
        if len(positions) and int(positions[-1]) - start >= _MOST_PLACES:
            raise OnwardError(f"one table of signatures cannot hold {_MOST_PLACES:,} documents")
        order = np.argsort(hashes, kind="stable")
        places = (positions - start).astype(np.uint32)[order]
        return cls(hashes[order], places, None if rests is None else rests[order], start)

    @property
    def positions(self) -> np.ndarray:
        """Positions of the documents among all that were kept: int64, shape (n,)."""
        assert self.places is not None
        return self.places.astype(np.int64) + self.start

    def find(self, distinct: np.ndarray, most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rows whose hash is in `distinct` (uint64, ascending, without repeats), and each one's index in `distinct`.

        `most`: the maximum number of rows per hash, the first ones.
        """
        low = np.searchsorted(self.hashes, distinct)
        hit = np.flatnonzero(low < len(self.hashes))
        hit = hit[self.hashes[low[hit]] == distinct[hit]]
        low = low[hit]
        counts = np.searchsorted(self.hashes, distinct[hit], side="right") - low
        counts = counts if most is None else np.minimum(counts, most)
        before = np.cumsum(counts) - counts
        return np.repeat(low - before, counts) + np.arange(int(counts.sum())), np.repeat(hit, counts)

    def ranges(self, count: int) -> list[int]:
        """The first row of each of `count` equal ranges of hashes, and the end."""
        begins = np.array([(number << 64) // count for number in range(count)], np.uint64)
        return [*np.searchsorted(self.hashes, begins).tolist(), len(self.hashes)]

    def at(self, rows: np.ndarray | slice) -> np.ndarray:
        """Positions of some rows."""
        assert self.places is not None
        return self.places[rows].astype(np.int64) + self.start


def merged(tables: Sequence[SignatureTable], spill: Path) -> SignatureTable:
    """Merge several tables, oldest first, into one.

    The result is built one range of hashes at a time in memory-mapped temporary files in `spill`, so it may exceed the
    memory.
    """
    if len(tables) == 1:
        return tables[0]
    total, start = sum(len(table.hashes) for table in tables), tables[0].start
    edges = [table.ranges(-(-total // AT_ONCE)) for table in tables]
    hashes = _mapped(total, np.uint64, spill)
    places = None if tables[0].places is None else _mapped(total, np.uint32, spill)
    rests = None if tables[0].rests is None else _mapped(total, np.uint64, spill)
    done = 0
    for cuts in zip(*map(pairwise, edges), strict=True):
        here = [(table, slice(*cut)) for table, cut in zip(tables, cuts, strict=True)]
        values = np.concatenate([table.hashes[cut] for table, cut in here])
        order = np.argsort(values, kind="stable")  # a stable sort merges runs that are already sorted
        to = slice(done, done := done + len(values))
        hashes[to] = values[order]
        if places is not None:
            positions = np.concatenate([table.at(cut) - start for table, cut in here])
            if len(positions) and int(positions.max()) >= _MOST_PLACES:
                raise OnwardError(f"one table of signatures cannot hold {_MOST_PLACES:,} documents")
            places[to] = positions[order]
        if rests is not None:
            rests[to] = np.concatenate([table.rests[cut] for table, cut in here if table.rests is not None])[
                order
            ]
    return SignatureTable(hashes, places, rests, start)


def _mapped(length: int, kind: type[np.generic], spill: Path) -> np.ndarray:
    if not length:
        return np.zeros(0, kind)
    with tempfile.TemporaryFile(dir=spill) as file:  # the mapping keeps it until the array is freed
        file.truncate(length * np.dtype(kind).itemsize)
        return np.memmap(file, kind, "r+", shape=(length,))


def write_tables(path: Path, tables: Iterable[SignatureTable]) -> None:
    """Write tables with the same columns as an uncompressed Arrow file, one record batch each."""
    writer = None
    with pa.OSFile(str(path), "wb") as sink:
        for table in tables:
            columns = {"hash": table.hashes, "place": table.places, "rest": table.rests}
            batch = pa.record_batch(
                {name: pa.array(column) for name, column in columns.items() if column is not None}
            )
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch)
        if writer is not None:
            writer.close()


class Link:
    """The part `signatures` of one earlier slice."""

    def __init__(self, given: Input) -> None:
        self.root = given.root
        self._paths = {path.name: path for path in given.paths}
        self.facts: dict[str, Any] = json.loads(self._paths["chain.json"].read_bytes())

    def table(self, name: str, number: int = 0) -> SignatureTable:
        """Table `number` of a file of tables, memory-mapped."""
        batch = self._files(name).get_batch(number)
        columns = {field: numpy_view(batch.column(field)) for field in batch.schema.names}
        return SignatureTable(
            columns["hash"], columns.get("place"), columns.get("rest"), self.facts["table_start"]
        )

    def path(self, name: str) -> Path:
        """One of the link's files."""
        return self._paths[name]

    def documents(self, rows: np.ndarray) -> pa.RecordBatch:
        """id, source, file and row of some documents kept of this slice (int64). Other rows are not read."""
        return self._files("documents.arrow").get_batch(0).take(pa.array(rows))

    def _files(self, name: str) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self._paths[name]), "r"))


class KeptDocuments:
    """All documents kept of earlier slices, by position: 0 is the first document ever kept."""

    def __init__(self, earlier: Chain | None) -> None:
        self.digest = earlier.digest if earlier else None
        self.links = [Link(link) for link in earlier.links] if earlier else []
        self.starts = np.array([0, *np.cumsum([link.facts["documents"] for link in self.links])], np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def number(self) -> int:
        """The number of the next link."""
        return len(self.links) + 1

    def tables(self, name: str, number: int = 0, after: int = 0) -> Iterator[SignatureTable]:
        """The tables that together cover all links but the first `after`, oldest first."""
        for link in covering(len(self.links), after):
            yield self.links[link - 1].table(name, number)

    def names(self, positions: np.ndarray) -> dict[int, str]:
        """`<id> of <source>` of the documents at these positions (int64, ascending)."""
        found: dict[int, str] = {}
        for link, here, rows in self._by_link(positions):
            table = link.documents(rows)
            for position, own, source in zip(
                here.tolist(), table["id"].to_pylist(), table["source"].to_pylist(), strict=True
            ):
                found[position] = f"{own} of {source}"
        return found

    def places(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, list[tuple[Path, np.ndarray]]]]:
        """Where the kept texts of the documents at these positions (int64, ascending) are.

        For each link with some of them: their positions, and files with the rows (int64, ascending) in them, in the
        same order.
        """
        for link, here, rows in self._by_link(positions):
            table = link.documents(rows)
            row = table["row"].to_numpy().astype(np.int64)
            index = table["file"].indices.to_numpy()
            names = table["file"].dictionary.to_pylist()
            yield here, [(link.root / names[n], row[index == n]) for n in np.unique(index).tolist()]

    def _by_link(self, positions: np.ndarray) -> Iterator[tuple[Link, np.ndarray, np.ndarray]]:
        edges = np.searchsorted(positions, self.starts)
        for number, link in enumerate(self.links):
            here = positions[edges[number] : edges[number + 1]]
            if len(here):
                yield link, here, here - self.starts[number]


@dataclass(frozen=True)
class NewLink:
    """The link that a slice adds: its number, the position of its first document, and the links that its tables cover."""

    kept: KeptDocuments

    @cached_property
    def number(self) -> int:
        """The link's number, from 1."""
        return self.kept.number

    @cached_property
    def start(self) -> int:
        """Position of this slice's first document."""
        return len(self.kept)

    @property
    def covered(self) -> int:
        """Number of the last link that this one's tables do not cover."""
        return self.number - span_of(self.number)

    def write(self, directory: Path, name: str, own: Iterable[SignatureTable]) -> None:
        """Write a file of tables: this slice's `own`, each merged with those of the links that it covers."""
        write_tables(
            directory / name,
            (
                merged([*self.kept.tables(name, number, self.covered), table], directory)
                for number, table in enumerate(own)
            ),
        )

    def close(self, directory: Path, documents: pa.Table, facts: dict[str, Any]) -> None:
        """Write `documents.arrow` (id, source, file, row; one batch) and `chain.json`."""
        with (
            pa.OSFile(str(directory / "documents.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, documents.schema) as writer,
        ):
            for batch in documents.unify_dictionaries().combine_chunks().to_batches():
                writer.write_batch(batch)
        chain = {
            "format": FORMAT,
            "before": self.kept.digest,
            "number": self.number,
            "span": span_of(self.number),
            "documents": documents.num_rows,
            "table_start": int(self.kept.starts[self.covered]),
            **facts,
        }
        (directory / "chain.json").write_text(
            json.dumps(chain, indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )
