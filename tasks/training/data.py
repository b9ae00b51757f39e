"""From packing manifests to micro-batches.

1. Step s uses sequences [(s-1)*n, s*n) of the training line. The rows of a manifest name the pieces of a sequence.
2. A piece lies at `offset` in a memory-mapped shard. Its inputs are tokens[offset-1 : offset+length-1] and its targets
   tokens[offset : offset+length]: every token is a target once, padding never.
3. A micro-batch is the pieces of some sequences as ONE row [1, tokens]. No padding is computed. With document
   masking each piece is a document and its positions restart at 0; without, each sequence is. Where the manifest names
   a token to begin with, it is the input before a document's first token, in place of the end of the text before.

The training position is one integer, the next sequence. The rows of a step are a function of it, so what feed.py
makes ahead can be made again and nothing can be lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from storage.atomic import sha256_file, write_bytes
from storage.errors import BadInput, ConfigError, DamagedArtifact
from storage.packing import PackingManifest, Pieces
from storage.tokens import TokenShard
from tasks.training.spec import Identity, Paths


@dataclass(frozen=True)
class MicroBatch:
    """One row. Tensors are int64 on the host."""

    inputs: Tensor
    """[1, tokens]"""
    positions: Tensor
    """[1, tokens], restarting at each document."""
    targets: Tensor
    """[tokens]"""
    documents: tuple[int, ...]
    """Tokens of each document (a stretch that attends to itself alone)."""
    piece_starts: np.ndarray
    """[pieces] int64: where each piece begins in the row."""
    piece_sources: np.ndarray
    """[pieces] int64: index into Corpus.sources."""


class Corpus:
    """The sequences of one segment of training, over memory-mapped shards."""

    def __init__(
        self,
        identity: Identity,
        manifests: list[PackingManifest],
        shards: dict[str, TokenShard],
    ) -> None:
        self._per_step = identity.sequences_per_step
        self._masking = identity.document_masking
        self._manifests = sorted(manifests, key=lambda manifest: manifest.first_sequence)
        self._shards = shards
        self.sources = sorted({entry.source for manifest in manifests for entry in manifest.shards})
        self.eot = manifests[0].eot if manifests else None
        number = {name: index for index, name in enumerate(self.sources)}
        self._tokens = {
            id(manifest): [
                shards[entry.digest].tokens if entry.digest in shards else None for entry in manifest.shards
            ]
            for manifest in manifests
        }
        self._sources = {
            id(manifest): np.array([number[entry.source] for entry in manifest.shards], dtype=np.int64)
            for manifest in manifests
        }

    @classmethod
    def open(cls, identity: Identity, paths: Paths, vocabulary: int) -> Corpus:
        """Map manifests and shards. Check them against each other and against the model before the first step.

        `vocabulary` is the number of rows of the model's input embedding. Each shard is compared with its sha256
        once per work directory (remembered by inode, size and time). Raises ConfigError, BadInput or
        DamagedArtifact.
        """
        manifests = [PackingManifest.open(path) for path in paths.manifests]
        first = identity.first_step * identity.sequences_per_step
        end = identity.last_step * identity.sequences_per_step
        used: dict[str, list[tuple[PackingManifest, Pieces]]] = {}
        for manifest in manifests:
            _check_manifest(manifest, identity, vocabulary)
        for manifest, rows in _ranges(manifests, first, end):
            for index in np.unique(rows.shard):
                pick = rows.shard == index
                pieces = Pieces(rows.sequence[pick], rows.shard[pick], rows.offset[pick], rows.length[pick])
                used.setdefault(manifest.shards[int(index)].digest, []).append((manifest, pieces))
        missing = [
            digest for digest in used if digest not in paths.shards or not paths.shards[digest].is_file()
        ]
        if missing:
            where = paths.shards.get(missing[0])
            raise BadInput(
                f"Token shard {missing[0]} is missing{f' at {where}' if where else ' from paths.shards'}"
                f" ({len(missing)} of {len(used)} shards are). Nothing was trained; make it again, then start again."
            )
        _verify_bytes({digest: paths.shards[digest] for digest in used}, paths.work)
        shards = {digest: TokenShard.open(paths.shards[digest]) for digest in used}
        for digest, uses in used.items():
            _check_shard(shards[digest], uses, identity, vocabulary)
        return cls(identity, manifests, shards)

    def targets(self, step: int) -> int:
        """Target tokens of the global batch of `step`."""
        return sum(
            int(rows.length.sum())
            for _, rows in self._rows((step - 1) * self._per_step, step * self._per_step)
        )

    def micro_batches(
        self, step: int, sequences: int, share: tuple[int, int] | None = None
    ) -> Iterator[MicroBatch]:
        """The global batch of `step` in order, `sequences` sequences at a time; with `share`, only its sequences
        [share).
        """
        first, end = share or (0, self._per_step)
        first, end = first + (step - 1) * self._per_step, end + (step - 1) * self._per_step
        for start in range(first, end, sequences):
            yield self._micro_batch(start, min(start + sequences, end))

    def most_documents(self, first_step: int, last_step: int, sequences: int) -> int:
        """The largest number of documents in any `sequences` consecutive sequences of steps first_step < s <=
        last_step.
        """
        if not self._masking or first_step == last_step:
            return sequences
        first, end = first_step * self._per_step, last_step * self._per_step
        counts = np.zeros(end - first + 1, dtype=np.int64)
        for _, rows in self._rows(first, end):
            counts += np.bincount(rows.sequence.astype(np.int64) - first + 1, minlength=len(counts))
        until = np.cumsum(counts)
        sequences = min(sequences, end - first)
        return int((until[sequences:] - until[:-sequences]).max())

    def _rows(self, first: int, end: int) -> Iterator[tuple[PackingManifest, Pieces]]:
        return _ranges(self._manifests, first, end)

    def _micro_batch(self, first: int, end: int) -> MicroBatch:
        parts = list(self._rows(first, end))
        lengths = np.concatenate([rows.length for _, rows in parts]).astype(np.int64)
        sequences = np.concatenate([rows.sequence for _, rows in parts]).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        total = int(lengths.sum())
        inputs, targets = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64)
        at = piece = 0
        for manifest, rows in parts:
            streams = self._tokens[id(manifest)]
            # one slice per piece: the pieces lie in different files
            for shard, offset, length in zip(
                rows.shard.tolist(), rows.offset.tolist(), rows.length.tolist(), strict=True
            ):
                stream = streams[shard]
                assert stream is not None
                inputs[at : at + length] = stream[offset - 1 : offset + length - 1]
                targets[at : at + length] = stream[offset : offset + length]
                at += length
            own, piece = starts[piece : piece + len(rows)], piece + len(rows)
            if (
                manifest.begin is not None
            ):  # no text holds an end of text, so before such an input a document ended
                inputs[own[inputs[own] == manifest.eot]] = manifest.begin
        documents = lengths
        if not self._masking:
            documents = np.add.reduceat(lengths, np.flatnonzero(np.diff(sequences, prepend=-1)))
        before = np.cumsum(documents) - documents
        positions = np.arange(total, dtype=np.int64) - np.repeat(before, documents)
        sources = np.concatenate([self._sources[id(manifest)][rows.shard] for manifest, rows in parts])
        return MicroBatch(
            inputs=torch.from_numpy(inputs).unsqueeze(0),
            positions=torch.from_numpy(positions).unsqueeze(0),
            targets=torch.from_numpy(targets),
            documents=tuple(documents.tolist()),
            piece_starts=starts,
            piece_sources=sources,
        )


def _ranges(
    manifests: list[PackingManifest], first: int, end: int
) -> Iterator[tuple[PackingManifest, Pieces]]:
    """The rows of sequences [first, end), manifest by manifest. Raises BadInput if a sequence is in no manifest."""
    at = first
    for manifest in sorted(manifests, key=lambda manifest: manifest.first_sequence):
        stop = min(end, manifest.first_sequence + manifest.sequences)
        if manifest.first_sequence <= at < stop:
            yield manifest, manifest.rows(at, stop)
            at = stop
    if at < end:
        raise BadInput(
            f"The packing manifests do not hold sequence {at}; this segment needs [{first}, {end}). "
            "Pack the round again with as many sequences as its steps take."
        )


def _check_manifest(manifest: PackingManifest, identity: Identity, vocabulary: int) -> None:
    if manifest.begin is not None and not 0 <= manifest.begin < vocabulary:
        raise ConfigError(
            f"{manifest.path}: documents begin with token {manifest.begin}, but the model has {vocabulary} words."
        )
    if manifest.sequence_length != identity.sequence_length:
        raise ConfigError(
            f"{manifest.path}: packed at sequence length {manifest.sequence_length}, "
            f"but identity.sequence_length is {identity.sequence_length}."
        )
    if manifest.tokenizer != identity.tokenizer:
        raise ConfigError(
            f"{manifest.path}: packed with tokenizer {manifest.tokenizer}, but this model's is "
            f"{identity.tokenizer}. Tokenize the corpus again with the model's tokenizer."
        )


def _check_shard(
    shard: TokenShard, uses: list[tuple[PackingManifest, Pieces]], identity: Identity, vocabulary: int
) -> None:
    if shard.tokenizer != identity.tokenizer:
        raise ConfigError(
            f"{shard.path}: made with tokenizer {shard.tokenizer}, but this model's is {identity.tokenizer}. "
            "Tokenize the corpus again with the model's tokenizer."
        )
    if shard.vocabulary > vocabulary:
        raise ConfigError(
            f"{shard.path}: its vocabulary of {shard.vocabulary} ids is larger than the model's embedding "
            f"of {vocabulary} rows."
        )
    for manifest, pieces in uses:
        ends = pieces.offset.astype(np.int64) + pieces.length
        if int(pieces.offset.min()) < 1 or int(ends.max()) > len(shard.tokens):
            raise DamagedArtifact(
                f"{manifest.path} points past the {len(shard.tokens)} tokens of {shard.path}. "
                "One of the two was altered; make both again."
            )


def _verify_bytes(shards: dict[str, Path], work: Path) -> None:
    """Compare each shard with its sha256, once per work directory and file."""
    seen_path = work / "verified.json"
    try:
        seen = json.loads(seen_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        seen = {}
    marks = {digest: _mark(path) for digest, path in shards.items()}
    unseen = [digest for digest in shards if seen.get(digest) != marks[digest]]
    if not unseen:
        return
    with ThreadPoolExecutor() as pool:
        found = pool.map(sha256_file, [shards[digest] for digest in unseen])
        for digest, actual in zip(unseen, found, strict=True):
            if actual != digest:
                raise DamagedArtifact(
                    f"{shards[digest]} was altered: its sha256 is {actual}, the packing manifest names {digest}. "
                    "Nothing was trained; make the shard again."
                )
    write_bytes(seen_path, json.dumps({**seen, **marks}, sort_keys=True).encode())


def _mark(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
