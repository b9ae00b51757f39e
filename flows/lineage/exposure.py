"""Which models saw a document, and how often: from token shards, packing manifests and the end of each training.

A piece of a sequence has the document's tokens as targets. Step s takes the sequences [(s − 1)·n, s·n) of its manifests.
The number of times that a model saw a document is the number of its tokens that were targets in weight-changing steps
of the model's segments, divided by the document's length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from storage.artifact import Artifact
from storage.errors import OnwardError
from storage.packing import PackingManifest
from storage.store import Store
from storage.tokens import TokenShard
from tasks import stages
from tasks.training.state.stopping import stopped_of


@dataclass(frozen=True)
class ShardSpan:
    """A document's tokens in a shard: the shard's sha256, and [begin, end) in its flat stream, closing token included."""

    shard: str
    begin: int
    end: int


@dataclass(frozen=True)
class Seen:
    """Of the document's `tokens`, `trained` were targets, in this number of `pieces`. `times` is trained / tokens."""

    model: Artifact
    tokens: int
    trained: int
    pieces: int

    @property
    def times(self) -> float:
        """1.0 means once and completely."""
        return self.trained / self.tokens


def seen_by(store: Store, document: int) -> list[Seen]:
    """Every model whose training had the document's token shards as input, sorted by tokens seen.

    Models that took none of its tokens are included with `trained` 0. Empty if the document was not tokenized or nothing
    was trained.
    """
    trainings = [one for stage in stages.TRAINING for one in store.artifacts(stage)]
    models = [one for one in trainings if one.has("export")]
    if not models:
        return []
    places = {place.shard: place for place in _places(store, document)}
    if not places:
        return []
    found = []
    for model in models:
        pieces = [_taken(segment, store, places) for segment in line_of(model, store)]
        lengths = {shard: place.end - place.begin for shard, place in places.items()}
        shards = {shard for _, _, of in pieces for shard in of}
        if shards:
            tokens = max(lengths[shard] for shard in shards)
            trained = sum(count for count, _, _ in pieces)
            found.append(Seen(model, tokens, trained, sum(number for _, number, _ in pieces)))
    return sorted(
        found, key=lambda one: (int(one.model.stats["tokens_seen"]), one.model.stage, one.model.key)
    )


def line_of(model: Artifact, store: Store) -> Iterator[Artifact]:
    """The segments whose steps made a model's weights, the last first, back to weights that no training made."""
    at: Artifact | None = model
    while at is not None and at.stage in stages.TRAINING:
        yield at
        start = at.manifest.inputs["start"]
        at = store.lookup(start["stage"], start["key"])


def _places(store: Store, document: int) -> Iterator[ShardSpan]:
    """The positions of the document's tokens. Reads only the columns of ids."""
    for artifact in store.artifacts("tokenize"):
        files = {artifact.path / file.path: file.sha256 for file in artifact.manifest.parts["tokens"].files}
        for path, digest in files.items():
            shard = TokenShard.open(path)
            for index in np.flatnonzero(shard.docs == np.uint64(document)):
                begin = int(shard.offsets[index])
                yield ShardSpan(digest, begin, begin + int(shard.lengths[index]))


def _taken(segment: Artifact, store: Store, places: dict[str, ShardSpan]) -> tuple[int, int, set[str]]:
    """For one segment: (targets from the document, pieces that hold them, shards of it that the manifests name)."""
    config = segment.manifest.config
    per_step = int(config["sequences_per_step"])
    stopped = stopped_of(segment.stats.get("result") or {})  # its trunk went back to a step before its last
    end = int(config["last_step"]) if stopped is None else int(stopped["step"])
    first, last = int(config["first_step"]) * per_step, end * per_step
    idle = _idle_steps(segment)
    targets, pieces, known = 0, 0, set[str]()
    for edge in segment.manifest.inputs["manifests"]:
        packed = store.lookup(edge["stage"], edge["key"])
        if packed is None:
            raise OnwardError(f"{edge['stage']}/{edge['key'][:16]} is gone from {store.root}")
        manifest = PackingManifest.open(packed.part(edge["part"]).only())
        begin, end = max(first, manifest.first_sequence), min(last, manifest.end_sequence)
        named = {
            number: entry.digest for number, entry in enumerate(manifest.shards) if entry.digest in places
        }
        known |= set(named.values())
        if begin >= end or not named:
            continue
        rows = manifest.rows(begin, end)
        for number, digest in named.items():
            place = places[digest]
            offset, length = rows.offset.astype(np.int64), rows.length.astype(np.int64)
            overlap = np.minimum(offset + length, place.end) - np.maximum(offset, place.begin)
            steps = rows.sequence.astype(np.int64) // per_step + 1
            held = (rows.shard == number) & (overlap > 0) & ~np.isin(steps, idle)
            targets, pieces = targets + int(overlap[held].sum()), pieces + int(held.sum())
    return targets, pieces, known


def _idle_steps(segment: Artifact) -> np.ndarray:
    """Steps that changed no weights: skipped steps, and steps that a rollback discarded."""
    table = pq.read_table(_journal(segment), columns=["step", "skipped"])
    steps = table["step"].to_numpy()[table["skipped"].fill_null(False).to_numpy(zero_copy_only=False)]
    gone_over = [np.arange(first, last + 1) for first, last in segment.stats["result"].get("rollbacks") or ()]
    return np.unique(np.concatenate([steps, *gone_over]).astype(np.int64))


def _journal(segment: Artifact) -> Path:
    return segment.part("journal").only()
