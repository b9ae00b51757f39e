"""Token shards: Arrow IPC files of token ids, uncompressed and memory-mapped.

A file holds `doc: uint64, tokens: list<uint16>` (uint32 if the vocabulary has more than 65,535 ids) in ONE record
batch, so that the tokens of a whole shard are one flat numpy view without a copy. The end-of-text id closes each
document's list. One more end-of-text id opens the shard: row 0, with doc `OPENING` and the tokens `[eot]`. So the
target at any flat index >= 1 has its input just before it. Packing manifests call the flat index `offset`.

The trainer reads these files, so this module may import only numpy, pyarrow, the standard library and
storage.errors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.errors import BadInput, DamagedArtifact
from storage.views import numpy_view

OPENING = 0xFFFF_FFFF_FFFF_FFFF
"""The `doc` of the row that opens a shard."""

_METADATA = b"onward"
_MOST_VALUES = 2**31 - 1  # offsets of an Arrow list are int32


def token_dtype(vocabulary: int) -> np.dtype:
    """The dtype that stores the ids of a vocabulary of this size: uint16 for up to 65,535 ids, else uint32."""
    return np.dtype(np.uint16 if vocabulary <= 0xFFFF else np.uint32)


def write_shard(
    path: Path,
    docs: np.ndarray,
    values: np.ndarray,
    lengths: np.ndarray,
    *,
    eot: int,
    vocabulary: int,
    tokenizer: str,
) -> None:
    """Write the documents of one shard. This function adds the opening row.

    `docs` [n] are document ids, `lengths` [n] the number of tokens of each document with its closing `eot`, and
    `values` [sum of lengths] all tokens in sequence. `tokenizer` is the tokenizer's digest.

    Raises BadInput if the arrays do not fit together, an id is outside the vocabulary, or a document is not closed.
    The bytes depend only on the arguments and the version of pyarrow.
    """
    docs = np.ascontiguousarray(docs, dtype=np.uint64)
    lengths = np.asarray(lengths, dtype=np.int64)
    values = np.asarray(values)
    _check(path, docs, values, lengths, eot, vocabulary)
    dtype = token_dtype(vocabulary)

    flat = np.empty(len(values) + 1, dtype=dtype)
    flat[0] = eot
    flat[1:] = values
    offsets = np.zeros(len(docs) + 2, dtype=np.int32)
    offsets[1] = 1
    offsets[2:] = 1 + np.cumsum(lengths)
    rows = np.empty(len(docs) + 1, dtype=np.uint64)
    rows[0] = OPENING
    rows[1:] = docs

    facts = {"format": 1, "tokenizer": tokenizer, "vocabulary": vocabulary, "dtype": dtype.name, "eot": eot}
    value_type = pa.from_numpy_dtype(dtype)
    schema = pa.schema(
        [
            pa.field("doc", pa.uint64(), nullable=False),
            pa.field("tokens", pa.list_(pa.field("item", value_type, nullable=False)), nullable=False),
        ],
        metadata={_METADATA: json.dumps(facts, sort_keys=True).encode()},
    )
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=schema.field("tokens").type)
    batch = pa.record_batch([pa.array(rows), lists], schema=schema)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def _check(
    path: Path, docs: np.ndarray, values: np.ndarray, lengths: np.ndarray, eot: int, vocabulary: int
) -> None:
    if not 0 <= eot < vocabulary:
        raise BadInput(f"{path.name}: the end-of-text id {eot} is outside the vocabulary of {vocabulary}.")
    if docs.ndim != 1 or docs.shape != lengths.shape or values.ndim != 1:
        raise BadInput(
            f"{path.name}: documents {docs.shape}, lengths {lengths.shape} and tokens {values.shape} "
            "do not match."
        )
    ends = np.cumsum(lengths)
    if int(lengths.sum()) != len(values) or (len(lengths) and int(lengths.min()) < 1):
        raise BadInput(
            f"{path.name}: lengths sum to {int(lengths.sum())}, but there are {len(values)} tokens."
        )
    if len(values) >= _MOST_VALUES:
        raise BadInput(
            f"{path.name}: {len(values)} tokens are too many for one shard (at most {_MOST_VALUES})."
        )
    if len(docs) and (docs == np.uint64(OPENING)).any():
        raise BadInput(f"{path.name}: the document id {OPENING} is reserved for the opening row.")
    if len(values) == 0:
        return
    if not (values[ends - 1] == eot).all():
        raise BadInput(f"{path.name}: a document does not end with the end-of-text id {eot}.")
    if int(values.max()) >= vocabulary or int(values.min()) < 0:
        raise BadInput(f"{path.name}: a token id is outside the vocabulary of {vocabulary}.")


@dataclass(frozen=True)
class TokenShard:
    """One open shard. Its arrays are read-only; `tokens` and `docs` are views of the memory-mapped file."""

    path: Path
    tokens: np.ndarray
    """[1 + tokens of all documents] uint16 or uint32: the flat stream; the first opens the shard."""
    docs: np.ndarray
    """[documents] uint64."""
    lengths: np.ndarray
    """[documents] int64, with the closing end-of-text."""
    offsets: np.ndarray
    """[documents] int64: where each document begins in `tokens`."""
    tokenizer: str
    vocabulary: int
    eot: int

    @classmethod
    def open(cls, path: Path | str) -> TokenShard:
        """Map a shard into memory. Raises DamagedArtifact if the file is not a complete token shard."""
        path = Path(path)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path), "r"))
            facts = json.loads((reader.schema.metadata or {})[_METADATA])
            if reader.num_record_batches != 1:
                raise DamagedArtifact(
                    f"{path}: a token shard has one record batch, not {reader.num_record_batches}."
                )
            batch = reader.get_batch(0)
            docs = numpy_view(batch.column("doc"))
            lists = batch.column("tokens")
            flat = numpy_view(lists.values)
            bounds = numpy_view(lists.offsets).astype(np.int64)
            eot = int(facts["eot"])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise DamagedArtifact(f"{path}: not a token shard ({error}). Make it again.") from error
        if len(docs) == 0 or int(docs[0]) != OPENING or bounds[-1] != len(flat) or int(flat[0]) != eot:
            raise DamagedArtifact(f"{path}: the opening end-of-text is missing. Make the shard again.")
        offsets, lengths = bounds[1:-1], np.diff(bounds)[1:]
        offsets.setflags(write=False)
        lengths.setflags(write=False)
        return cls(
            path=path,
            tokens=flat,
            docs=docs[1:],
            lengths=lengths,
            offsets=offsets,
            tokenizer=str(facts["tokenizer"]),
            vocabulary=int(facts["vocabulary"]),
            eot=eot,
        )

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.docs)

    def __getitem__(self, index: int) -> np.ndarray:
        """The tokens of one document with its closing end-of-text, as a view."""
        start = int(self.offsets[index])
        return self.tokens[start : start + int(self.lengths[index])]
