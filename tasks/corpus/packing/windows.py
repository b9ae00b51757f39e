"""Turn one source's documents into training sequences, window by window.

    1. Documents come in reading order (slice, shard, document). After the last one the next epoch begins: all of
       them again, in a seeded order. Documents that arrived in between are read first.
    2. A window takes whole documents until it holds its number of tokens, or as many as the round still needs. It
       never crosses the end of an epoch, so every epoch is packed separately.
    3. In a window, a document longer than a sequence is cut at the sequence length; best fit places all pieces.
    4. The sequences of a window are put in a seeded order. Those that the round does not need are carried over.

`Position` describes this state. Together with the carried sequences, it is all that the next round has to know.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

import numpy as np

from tasks.corpus.packing.bestfit import best_fit


@dataclass(frozen=True)
class Documents:
    """All documents of a source in reading order: int64 [documents] each."""

    shard: np.ndarray
    """Index into the source's list of token shards."""
    offset: np.ndarray
    """Where the document begins in the shard's flat token stream."""
    length: np.ndarray
    """Number of tokens with the closing end-of-text, at least 1."""

    def __len__(self) -> int:
        return len(self.length)


@dataclass(frozen=True)
class Sequences:
    """Packed sequences of one source: int64 [pieces] each, in training order."""

    sequence: np.ndarray
    """0 … count - 1, ascending, without gaps."""
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    count: int

    @property
    def tokens(self) -> int:
        """Tokens in all pieces."""
        return int(self.length.sum())

    def split(self, count: int) -> tuple[Sequences, Sequences]:
        """The first `count` sequences; and the rest, renumbered from 0."""
        at = int(np.searchsorted(self.sequence, count))
        head, tail = slice(None, at), slice(at, None)
        first = Sequences(
            self.sequence[head],
            self.shard[head],
            self.offset[head],
            self.length[head],
            min(count, self.count),
        )
        rest = Sequences(
            self.sequence[tail] - count,
            self.shard[tail],
            self.offset[tail],
            self.length[tail],
            max(self.count - count, 0),
        )
        return first, rest


def no_sequences() -> Sequences:
    """An empty set of sequences."""
    nothing = np.zeros(0, dtype=np.int64)
    return Sequences(nothing, nothing, nothing, nothing, 0)


def joined(parts: list[Sequences]) -> Sequences:
    """The sequences of all parts one after another, renumbered."""
    starts = np.cumsum([0, *(part.count for part in parts)])
    columns = [[part.sequence + start for part, start in zip(parts, starts.tolist(), strict=False)]]
    columns += [[getattr(part, name) for part in parts] for name in ("shard", "offset", "length")]
    sequence, shard, offset, length = (np.concatenate(column) for column in columns)
    return Sequences(sequence, shard, offset, length, int(starts[-1]))


@dataclass(frozen=True)
class Position:
    """Where a source stands. Plain integers, which a round passes to the next."""

    documents: int = 0
    """Documents read in the first epoch."""
    epoch: int = 0
    """Number of epochs begun after the first."""
    epoch_documents: int = 0
    """Documents in the current repetition."""
    epoch_read: int = 0
    """Documents read in the current repetition."""
    window: int = 0
    """Windows closed."""
    read_tokens: int = 0
    """Tokens read in the first epoch."""
    repeated_tokens: int = 0
    """Tokens read in later epochs."""
    placed_tokens: int = 0
    """Tokens in sequences that were handed out."""


@dataclass(frozen=True)
class Counts:
    """What happened to the documents that this round read."""

    whole: int = 0
    cut: int = 0
    """Documents longer than a sequence."""
    concatenation_cuts: int = 0
    """Documents kept whole here that concatenate-and-cut over the same windows would have cut."""


@dataclass(frozen=True)
class Filled:
    """A source's sequences for a round, the sequences carried over, its position afterwards, and the counts."""

    sequences: Sequences
    carried: Sequences
    position: Position
    counts: Counts


@dataclass(frozen=True)
class Packing:
    """How one source is packed. `window_tokens` is the source's own: the configured number times its share."""

    source: str
    seed: int
    sequence_length: int
    window_tokens: int


def fill(documents: Documents, position: Position, carried: Sequences, need: int, how: Packing) -> Filled:
    """The next `need` sequences of a source. The source must have at least one document."""
    parts, counts = [carried], Counts()
    ready = carried.count
    while ready < need:
        limit = min(how.window_tokens, (need - ready) * how.sequence_length)
        chosen, position = _read(documents, position, limit, how)
        window, counts = _pack(documents, chosen, position.window, counts, how)
        position = replace(position, window=position.window + 1)
        parts.append(window)
        ready += window.count
    delivered, rest = joined(parts).split(need)
    position = replace(position, placed_tokens=position.placed_tokens + delivered.tokens)
    return Filled(delivered, rest, position, counts)


def _read(documents: Documents, position: Position, limit: int, how: Packing) -> tuple[np.ndarray, Position]:
    """Indices of the next documents, until they hold `limit` tokens or the epoch ends."""
    if position.documents < len(documents):
        chosen = np.arange(position.documents, len(documents))
        taken, tokens = _until(documents.length[chosen], limit)
        moved = replace(
            position, documents=position.documents + taken, read_tokens=position.read_tokens + tokens
        )
        return chosen[:taken], moved
    if position.epoch_read == position.epoch_documents:
        position = replace(position, epoch=position.epoch + 1, epoch_documents=len(documents), epoch_read=0)
    order = seeded_order(position.epoch_documents, how.seed, how.source, "epoch", position.epoch)
    chosen = order[position.epoch_read :]
    taken, tokens = _until(documents.length[chosen], limit)
    moved = replace(
        position,
        epoch_read=position.epoch_read + taken,
        repeated_tokens=position.repeated_tokens + tokens,
    )
    return chosen[:taken], moved


def _until(lengths: np.ndarray, limit: int) -> tuple[int, int]:
    """How many of the first documents hold `limit` tokens (all, if they hold fewer), and their number of tokens."""
    ends = np.cumsum(lengths)
    taken = min(int(np.searchsorted(ends, limit)) + 1, len(lengths))
    return taken, int(ends[taken - 1])


def _pack(
    documents: Documents, chosen: np.ndarray, window: int, counts: Counts, how: Packing
) -> tuple[Sequences, Counts]:
    capacity = how.sequence_length
    lengths = documents.length[chosen]
    pieces = -(-lengths // capacity)
    first = np.cumsum(pieces) - pieces
    of_document = np.repeat(np.arange(len(chosen)), pieces)
    begin = (np.arange(len(of_document)) - first[of_document]) * capacity
    length = np.minimum(lengths[of_document] - begin, capacity)

    bins, order, count = best_fit(length, capacity)
    rank = np.empty(count, dtype=np.int64)
    rank[seeded_order(count, how.seed, how.source, "window", window)] = np.arange(count)
    sequence = rank[bins[order]]
    by_sequence = np.argsort(sequence, kind="stable")
    rows = order[by_sequence]
    document = chosen[of_document[rows]]
    packed = Sequences(
        sequence[by_sequence],
        documents.shard[document],
        documents.offset[document] + begin[rows],
        length[rows],
        count,
    )
    ends = np.cumsum(lengths)
    split = ((ends - lengths) // capacity != (ends - 1) // capacity) & (pieces == 1)
    cut = int(np.count_nonzero(pieces > 1))
    counted = Counts(
        whole=counts.whole + len(chosen) - cut,
        cut=counts.cut + cut,
        concatenation_cuts=counts.concatenation_cuts + int(np.count_nonzero(split)),
    )
    return packed, counted


def seeded_order(count: int, seed: int, *name: str | int) -> np.ndarray:
    """A permutation that depends only on count, seed and name: int64 [count].

    It sorts the raw output of Philox, which numpy keeps stable across versions (numpy does not promise this for its
    `permutation`).
    """
    digest = hashlib.blake2b(json.dumps([seed, *name]).encode(), digest_size=16).digest()
    keys = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)).random_raw(count)
    return np.argsort(keys, kind="stable")
