"""Packing manifests: which pieces of which token shards form each training sequence.

An Arrow IPC file with one row per piece, `sequence: uint32, shard: uint32, offset: uint64, length: uint32`,
in training order (sequences ascending, pieces in placed order). No token is copied. A piece at `offset` of
its shard's flat token stream has the inputs `tokens[offset - 1 : offset + length - 1]` and the targets
`tokens[offset : offset + length]`. `shard` is an index into the manifest's list of shards. That list names
each shard by the sha256 of its file and by its source. All pieces of a sequence come from one source.
Where the manifest names a token `begin`, it is the first input of each document, in place of the end of the
text before it.

The trainer reads these files, so this module may import only numpy, pyarrow, the standard library and
storage.errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.errors import BadInput, DamagedArtifact
from storage.views import numpy_view

_METADATA = b"onward"
_SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.uint32(), nullable=False),
        pa.field("shard", pa.uint32(), nullable=False),
        pa.field("offset", pa.uint64(), nullable=False),
        pa.field("length", pa.uint32(), nullable=False),
    ]
)


@dataclass(frozen=True)
class ShardEntry:
    """A token shard that a manifest refers to: the sha256 of its file, and its source."""

    digest: str
    source: str


@dataclass(frozen=True)
class Pieces:
    """Rows of a manifest, one per piece. Each array is a view of the memory-mapped file, shape [pieces]."""

    sequence: np.ndarray
    """uint32, ascending."""
    shard: np.ndarray
    """uint32: index into the manifest's `shards`."""
    offset: np.ndarray
    """uint64, at least 1: flat index of the first target in the shard."""
    length: np.ndarray
    """uint32, at least 1: targets."""

    def __len__(self) -> int:
        return len(self.sequence)


def write_manifest(
    path: Path,
    pieces: Pieces,
    *,
    sequence_length: int,
    first_sequence: int,
    sequences: int,
    shards: Sequence[ShardEntry],
    eot: int,
    tokenizer: str,
    seed: int,
    begin: int | None = None,
) -> None:
    """Write the manifest of sequences `first_sequence … first_sequence + sequences - 1`.

    Raises BadInput if the rows are out of order, a sequence is missing or too long, or a piece starts at 0 (the
    opening end-of-text is never a target). The bytes depend only on the arguments and the version of pyarrow.
    """
    columns = Pieces(
        np.ascontiguousarray(pieces.sequence, dtype=np.uint32),
        np.ascontiguousarray(pieces.shard, dtype=np.uint32),
        np.ascontiguousarray(pieces.offset, dtype=np.uint64),
        np.ascontiguousarray(pieces.length, dtype=np.uint32),
    )
    _check(path, columns, sequence_length, first_sequence, sequences, shards)
    facts = {
        "format": 1,
        "sequence_length": sequence_length,
        "first_sequence": first_sequence,
        "sequences": sequences,
        "shards": [{"digest": entry.digest, "source": entry.source} for entry in shards],
        "eot": eot,
        "tokenizer": tokenizer,
        "seed": seed,
        **({} if begin is None else {"begin": begin}),
    }
    schema = _SCHEMA.with_metadata({_METADATA: json.dumps(facts, sort_keys=True).encode()})
    arrays = [pa.array(c) for c in (columns.sequence, columns.shard, columns.offset, columns.length)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def _check(
    path: Path,
    pieces: Pieces,
    sequence_length: int,
    first_sequence: int,
    sequences: int,
    shards: Sequence[ShardEntry],
) -> None:
    if not len(pieces.sequence) == len(pieces.shard) == len(pieces.offset) == len(pieces.length):
        raise BadInput(f"{path.name}: the columns of the manifest differ in length.")
    if first_sequence < 0 or first_sequence + sequences > 2**32:
        raise BadInput(f"{path.name}: sequence numbers must lie in 0 … 2^32 - 1.")
    numbers = pieces.sequence.astype(np.int64) - first_sequence
    whole = sequences == 0
    if len(numbers):
        steps = np.diff(numbers)
        whole = numbers[0] == 0 and numbers[-1] == sequences - 1 and bool(((steps == 0) | (steps == 1)).all())
    if not whole:
        raise BadInput(
            f"{path.name}: rows must name every sequence from {first_sequence} to "
            f"{first_sequence + sequences - 1} in ascending order."
        )
    if len(numbers) == 0:
        return
    if int(pieces.shard.max()) >= len(shards):
        raise BadInput(f"{path.name}: a piece names shard {int(pieces.shard.max())} of {len(shards)}.")
    if int(pieces.offset.min()) < 1 or int(pieces.length.min()) < 1:
        raise BadInput(f"{path.name}: a piece starts at 0 or is empty.")
    targets = np.bincount(numbers, weights=pieces.length)
    if targets.max() > sequence_length:
        raise BadInput(
            f"{path.name}: a sequence holds {int(targets.max())} of at most {sequence_length} tokens."
        )


@dataclass(frozen=True)
class PackingManifest:
    """One open manifest; sequences are `first_sequence … first_sequence + sequences - 1`."""

    path: Path
    sequence_length: int
    first_sequence: int
    sequences: int
    shards: tuple[ShardEntry, ...]
    eot: int
    tokenizer: str
    seed: int
    pieces: Pieces
    """All rows, as views of the memory-mapped file."""
    begin: int | None = None
    """The token that each document begins with, as its first input; None: the end of the text before."""

    @classmethod
    def open(cls, path: Path | str) -> PackingManifest:
        """Map a manifest into memory. Raises DamagedArtifact if the file is not a complete manifest."""
        path = Path(path)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
            facts = json.loads((reader.schema.metadata or {})[_METADATA])
            if reader.num_record_batches != 1:
                raise DamagedArtifact(
                    f"{path}: a manifest has one record batch, not {reader.num_record_batches}."
                )
            batch = reader.get_batch(0)
            pieces = Pieces(*(numpy_view(batch.column(name)) for name in _SCHEMA.names))
            return cls(
                path=path,
                sequence_length=int(facts["sequence_length"]),
                first_sequence=int(facts["first_sequence"]),
                sequences=int(facts["sequences"]),
                shards=tuple(ShardEntry(entry["digest"], entry["source"]) for entry in facts["shards"]),
                eot=int(facts["eot"]),
                tokenizer=str(facts["tokenizer"]),
                seed=int(facts["seed"]),
                pieces=pieces,
                begin=None if facts.get("begin") is None else int(facts["begin"]),
            )
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise DamagedArtifact(f"{path}: not a packing manifest ({error}). Make it again.") from error

    @property
    def end_sequence(self) -> int:
        """The number of the first sequence after this manifest."""
        return self.first_sequence + self.sequences

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in order of first mention among the shards."""
        return tuple(dict.fromkeys(entry.source for entry in self.shards))

    def rows(self, sequence_from: int, sequence_to: int) -> Pieces:
        """The pieces of sequences `[sequence_from, sequence_to)`, as views without a copy.

        Sequence numbers are global. Raises BadInput outside the range of this manifest.
        """
        if not self.first_sequence <= sequence_from <= sequence_to <= self.end_sequence:
            raise BadInput(
                f"{self.path.name} holds sequences [{self.first_sequence}, {self.end_sequence}), "
                f"not [{sequence_from}, {sequence_to})."
            )
        column = self.pieces.sequence
        start = (
            0
            if sequence_from == self.first_sequence
            else int(np.searchsorted(column, np.uint32(sequence_from)))
        )
        end = len(column)
        if sequence_to < self.end_sequence:
            end = int(np.searchsorted(column, np.uint32(sequence_to)))
        whole = self.pieces
        return Pieces(
            whole.sequence[start:end],
            whole.shard[start:end],
            whole.offset[start:end],
            whole.length[start:end],
        )

    def source_of(self, sequence_from: int, sequence_to: int) -> np.ndarray:
        """[sequence_to - sequence_from] int64: index into `sources` for each sequence of the range."""
        rows = self.rows(sequence_from, sequence_to)
        names = {name: index for index, name in enumerate(self.sources)}
        of_shard = np.asarray([names[entry.source] for entry in self.shards], dtype=np.int64)
        first_rows = np.searchsorted(rows.sequence, np.arange(sequence_from, sequence_to, dtype=np.uint32))
        return of_shard[rows.shard[first_rows]] if len(first_rows) else np.zeros(0, dtype=np.int64)
