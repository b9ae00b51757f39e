"""What the slices so far know of their texts once the filter has edited them: part `known`, a link of a chain.

    documents.arrow       the documents that this slice trains on or holds out: id and source
    exact.arrow           hashes of their whole texts; only if copies are dropped
    held.arrow            the shingles of those held out (containment.py); only if there are some
    held-documents.arrow  their ids and sources, in the order of the table
    chain.json            the link's number, and the digest of the link before (signatures.py)

A later slice reads the links before it and never changes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import feather

from storage.artifact import Chain
from tasks.corpus.duplicates.comparison import exact_copies
from tasks.corpus.duplicates.containment import HeldTexts
from tasks.corpus.duplicates.signatures import KeptDocuments, NewLink, SignatureTable, write_tables

PART = "known"
_EXACT, _HELD, _HELD_DOCUMENTS = "exact.arrow", "held.arrow", "held-documents.arrow"


@dataclass(frozen=True)
class KnownTexts:
    """What earlier slices know. `earlier`: their parts `known`, oldest first."""

    earlier: Chain | None

    @cached_property
    def kept(self) -> KeptDocuments:
        """Their documents."""
        return KeptDocuments(self.earlier)

    def held(self, spill: Path) -> HeldTexts:
        """All texts that they hold out, as one set."""
        sets = []
        for link in self.kept.links:
            if link.facts["held_out"]:
                table = link.table(_HELD)
                assert table.places is not None
                sizes = np.bincount(table.places, minlength=link.facts["held_out"])
                sets.append(HeldTexts(SignatureTable(table.hashes, table.places), sizes))
        return HeldTexts.together(sets, spill)

    def held_names(self) -> list[str]:
        """`<id> of <source>` of each of them."""
        tables = [
            feather.read_table(link.path(_HELD_DOCUMENTS))
            for link in self.kept.links
            if link.facts["held_out"]
        ]
        return [name for table in tables for name in names_of(table)]

    def copies(
        self, hashes: np.ndarray, ids: pa.Table, gone: np.ndarray
    ) -> dict[int, tuple[int | None, str]]:
        """Of each row whose text a kept document has: that document's row, if it is of this slice, and its name.

        hashes: uint64, shape (documents, 2). gone: bool, rows that are dropped already; nothing is a copy of them.
        """
        base = len(self.kept)
        found = exact_copies(hashes, self.kept, np.flatnonzero(gone))
        names = self.kept.names(np.unique([one for one in found.values() if one < base]).astype(np.int64))
        own = names_of(ids.take(pa.array([max(one - base, 0) for one in found.values()], pa.int64())))
        return {
            row - base: (None, names[one]) if one < base else (one - base, name)
            for (row, one), name in zip(found.items(), own, strict=True)
        }

    def write(
        self, directory: Path, kept: pa.Table, hashes: np.ndarray | None, held: HeldTexts, held_out: pa.Table
    ) -> None:
        """Write the link of this slice. `kept` and `held_out`: id and source; `hashes`: of the `kept` ones."""
        directory.mkdir(exist_ok=True)
        link = NewLink(self.kept)
        if hashes is not None:
            places = np.arange(len(hashes)) + link.start
            table = SignatureTable.of(hashes[:, 0], places, link.start, hashes[:, 1])
            link.write(directory, _EXACT, [table])
        if len(held):
            write_tables(directory / _HELD, [held.table])
            feather.write_feather(held_out, directory / _HELD_DOCUMENTS, compression="uncompressed")
        documents = kept.set_column(1, "source", kept["source"].combine_chunks().dictionary_encode())
        link.close(directory, documents, {"copies": hashes is not None, "held_out": len(held)})


def names_of(documents: pa.Table) -> list[str]:
    """`<id> of <source>` of each document."""
    return [
        f"{own} of {source}"
        for own, source in zip(documents["id"].to_pylist(), documents["source"].to_pylist(), strict=True)
    ]
