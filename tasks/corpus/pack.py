"""Pack: turn the token shards of all sources into the training sequences of one round, as a manifest of pieces.

    1. The round needs the sequences `first_sequence … first_sequence + sequences - 1`. The source of each one
       follows from the weights and the sequence's number alone (interleave.py).
    2. Each source delivers its share: first the sequences left over from the round before, then window by window
       (windows.py).
    3. The manifest lists the pieces in training order. The part `state` holds the sequences left over and the
       position of each source; the next round continues from it.

Invariants: every token that was read is a target of exactly one sequence of this line of rounds, or is carried over;
no token is copied; nothing depends on later budgets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import DamagedArtifact, StageFailed
from storage.manifest import read_manifest
from storage.packing import Pieces, ShardEntry, write_manifest
from storage.settings import Count, Settings, identity
from storage.tokens import TokenShard
from tasks.corpus.packing import interleave
from tasks.corpus.packing.windows import Documents, Filled, Packing, Position, Sequences, fill, no_sequences
from tasks.corpus.tokens.begin import BOS, EOS, Begin, begin_id
from tasks.corpus.tokens.vocabulary import tokenizer_directory

STAGE = "pack"
VERSION = 1

_COLUMNS = ("sequence", "shard", "offset", "length")


class PackingConfig(Settings):
    """How documents become training sequences."""

    sequence_length: Count = identity(
        1024, ge=2, le=1_048_576, description="Length of a training sequence, in tokens"
    )
    window_tokens: Count = identity(
        64_000_000,
        ge=1,
        description="Window in which documents are fitted together, in tokens of all sources",
    )
    begin: Begin = identity(
        EOS,
        since="0.2",
        description="Token before the first of a document, in training, perplexity, samples and benchmarks; eos: the end "
        "of the one before, and in benchmarks what the tokenizer adds; bos: the base's own begin-of-text token",
    )


class SourceWeight(Settings):
    """A source's share of the sequences; weights are divided by their sum."""

    name: str = identity(description="Name of the source")
    weight: float = identity(ge=0, description="Its weight among the sources")


class PackConfig(Settings):
    """One round: its sequences, and the sources that they come from."""

    packing: PackingConfig = identity(PackingConfig(), description="Sequence length and window")
    seed: int = identity(0, description="Order of sequences in a window, and of documents in later epochs")
    sources: tuple[SourceWeight, ...] = identity(description="In the configuration's order")
    first_sequence: int = identity(0, ge=0, description="Sequences of the rounds before in this line")
    sequences: int = identity(ge=1, description="Sequences that this round adds")


@dataclass(frozen=True)
class PackInputs:
    """`shards`: for each source, the `tokens` parts of all slices read so far, in slice order.

    `state`: that of the round before. For round 1 it is the state of round 0, if there was one; the sequences of round
    0 are not counted. `tokenizer`: only where documents begin with a token of its own (`packing.begin: bos`).
    """

    shards: Mapping[str, tuple[Input, ...]]
    state: Input | None = None
    tokenizer: Input | None = field(default=None, metadata={"since": "0.2"})


@dataclass(frozen=True)
class PackStats:
    """`tokens` are training targets. `sources` holds the same counts by source, and the ledger (see `ledger`)."""

    first_sequence: int
    sequences: int
    tokens: int
    padding: int
    padding_fraction: float
    documents_whole: int
    documents_cut: int
    concatenation_cuts: int
    pieces: int
    sources: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """One source: its shards' digests, its documents, and the tokenizers (digest and size) named in the shard files."""

    digests: tuple[str, ...]
    documents: Documents
    tokenizers: frozenset[tuple[str, int]]


@dataclass(frozen=True)
class State:
    """What a round passes to the next: each source's position, carried sequences and known shards."""

    sequence_length: int
    seed: int
    positions: dict[str, Position] = field(default_factory=dict)
    carried: dict[str, Sequences] = field(default_factory=dict)
    shards: dict[str, tuple[str, ...]] = field(default_factory=dict)


def run(config: PackConfig, inputs: PackInputs, draft: Draft) -> PackStats:
    """Write the parts `manifest` (manifest.arrow) and `state` (state/state.json, state/carried.arrow).

    Raises StageFailed if a source that is needed has no text, or if the shards come from different tokenizers;
    ConfigError if documents are to begin with a token that the tokenizer does not have.
    """
    begin = _begin_of(config, inputs)
    names = [source.name for source in config.sources]
    weights = [source.weight for source in config.sources]
    sources = {name: read_source(name, inputs.shards.get(name, ())) for name in names}
    tokenizer, eot = _tokenizer_of(sources)
    state = read_state(inputs.state, config)
    chosen = interleave.choose(weights, config.sequences, config.first_sequence)
    shares = interleave.shares(weights)

    filled: dict[str, Filled] = {}
    numbers: dict[str, np.ndarray] = {}
    for index, name in enumerate(names):
        _check_prefix(name, state.shards.get(name, ()), sources[name].digests)
        numbers[name] = config.first_sequence + np.flatnonzero(chosen == index)
        need = len(numbers[name])
        if need and not len(sources[name].documents):
            raise StageFailed(f"Source {name!r} has no text: the filters left nothing of it.")
        window = max(int(config.packing.window_tokens * shares[index]), config.packing.sequence_length)
        how = Packing(name, config.seed, config.packing.sequence_length, window)
        position = state.positions.get(name, Position())
        carried = state.carried.get(name, no_sequences())
        filled[name] = fill(sources[name].documents, position, carried, need, how)
        length = config.packing.sequence_length
        draft.progress(sum(map(len, numbers.values())) * length, config.sequences * length, "tokens")

    pieces, shards = _merge(names, sources, filled, numbers)
    write_manifest(
        draft.path / "manifest.arrow",
        pieces,
        sequence_length=config.packing.sequence_length,
        first_sequence=config.first_sequence,
        sequences=config.sequences,
        shards=shards,
        eot=eot,
        tokenizer=tokenizer,
        seed=config.seed,
        begin=begin,
    )
    draft.part("manifest", "manifest.arrow")
    write_state(draft.path / "state", _next_state(config, state, sources, filled))
    draft.part("state", "state")
    stats = _stats(config, state, sources, filled, len(pieces))
    for name in names:
        _warn_of_repeats(draft, name, stats.sources[name])
    return stats


def read_source(name: str, parts: Sequence[Input]) -> Source:
    """All documents of a source from its `tokens` parts, with the sha256 of each shard file."""
    digests: list[str] = []
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    tokenizers: set[tuple[str, int]] = set()
    for part in parts:
        known = {entry.path: entry.sha256 for entry in read_manifest(part.root).parts[part.part].files}
        for file, path in zip(part.files, part.paths, strict=True):
            shard = TokenShard.open(path)
            tokenizers.add((shard.tokenizer, shard.eot))
            columns.append((np.full(len(shard), len(digests), np.int64), shard.offsets, shard.lengths))
            digests.append(known[file])
    empty = np.zeros(0, np.int64)
    of_shard, offsets, lengths = (
        np.concatenate([column[i] for column in columns]) if columns else empty for i in range(3)
    )
    return Source(tuple(digests), Documents(of_shard, offsets, lengths), frozenset(tokenizers))


def _begin_of(config: PackConfig, inputs: PackInputs) -> int | None:
    """Id of the token that documents begin with; None: the end of the text before."""
    if config.packing.begin != BOS:
        return None
    if inputs.tokenizer is None:
        raise StageFailed("packing.begin is bos, but pack was given no tokenizer.")
    return begin_id(tokenizer_directory(inputs.tokenizer.paths))


def _tokenizer_of(sources: Mapping[str, Source]) -> tuple[str, int]:
    found = sorted({facts for source in sources.values() for facts in source.tokenizers})
    if not found:
        raise StageFailed("No source has token shards: there is nothing to pack.")
    if len(found) > 1:
        raise StageFailed(
            f"Token shards come from different tokenizers: {[digest[:12] for digest, _ in found]}."
        )
    return found[0]


def _check_prefix(name: str, before: tuple[str, ...], now: tuple[str, ...]) -> None:
    if now[: len(before)] != before:
        raise StageFailed(
            f"The token shards of source {name!r} do not go on from those of the round before. "
            "Rounds read slices in order; pack that round again."
        )


def _merge(
    names: Sequence[str],
    sources: Mapping[str, Source],
    filled: Mapping[str, Filled],
    numbers: Mapping[str, np.ndarray],
) -> tuple[Pieces, list[ShardEntry]]:
    """The pieces of all sources in training order, and the shards to which they refer, in order of the sources."""
    entries: list[ShardEntry] = []
    columns: dict[str, list[np.ndarray]] = {column: [] for column in _COLUMNS}
    for name in names:
        own = filled[name].sequences
        used, index = np.unique(own.shard, return_inverse=True)
        columns["sequence"].append(numbers[name][own.sequence])
        columns["shard"].append(index + len(entries))
        columns["offset"].append(own.offset)
        columns["length"].append(own.length)
        entries += [ShardEntry(sources[name].digests[shard], name) for shard in used.tolist()]
    joined = {column: np.concatenate(arrays) for column, arrays in columns.items()}
    order = np.argsort(joined["sequence"], kind="stable")
    return Pieces(*(joined[column][order] for column in _COLUMNS)), entries


def _next_state(
    config: PackConfig, before: State, sources: Mapping[str, Source], filled: Mapping[str, Filled]
) -> State:
    """The state after this round. A source that this round does not use keeps its position."""
    return State(
        sequence_length=config.packing.sequence_length,
        seed=config.seed,
        positions={**before.positions, **{name: each.position for name, each in filled.items()}},
        carried={**before.carried, **{name: each.carried for name, each in filled.items()}},
        shards={**before.shards, **{name: sources[name].digests for name in filled}},
    )


def write_state(directory: Path, state: State) -> None:
    """Write a state as state.json and carried.arrow; the same state gives the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    names = sorted(state.positions)
    sources = {
        name: {
            "position": asdict(state.positions[name]),
            "carried": state.carried[name].count,
            "shards": list(state.shards[name]),
        }
        for name in names
    }
    facts = {
        "format": 1,
        "sequence_length": state.sequence_length,
        "seed": state.seed,
        "sources": sources,
    }
    (directory / "state.json").write_text(
        json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    columns: dict[str, Any] = {
        "source": np.concatenate(
            [np.full(len(state.carried[name].length), i, np.int64) for i, name in enumerate(names)]
        )
    }
    for column in _COLUMNS:
        columns[column] = np.concatenate([getattr(state.carried[name], column) for name in names])
    table = pa.table(columns)
    path = str(directory / "carried.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_state(part: Input | None, config: PackConfig) -> State:
    """The state of the round before, or an empty one.

    Raises StageFailed if its seed or sequence length differs.
    """
    length, seed = config.packing.sequence_length, config.seed
    if part is None:
        return State(sequence_length=length, seed=seed)
    files = {path.name: path for path in part.paths}
    try:
        facts = json.loads(files["state.json"].read_bytes())
        with pa.OSFile(str(files["carried.arrow"]), "rb") as file:
            table = pa.ipc.open_file(file).read_all()
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DamagedArtifact(f"{part.root}: the packing state cannot be read ({error}).") from error
    if (facts["sequence_length"], facts["seed"]) != (length, seed):
        raise StageFailed(
            f"The round before was packed with sequence_length {facts['sequence_length']} and seed {facts['seed']}, "
            f"this one with {length} and {seed}: rounds of one line must agree."
        )
    columns = {name: table[name].to_numpy() for name in ("source", *_COLUMNS)}
    carried = {}
    for index, (name, source) in enumerate(sorted(facts["sources"].items())):
        own = columns["source"] == index
        sequence, shard, offset, pieces = (columns[column][own] for column in _COLUMNS)
        carried[name] = Sequences(sequence, shard, offset, pieces, count=source["carried"])
    return State(
        sequence_length=length,
        seed=seed,
        positions={name: Position(**source["position"]) for name, source in facts["sources"].items()},
        carried=carried,
        shards={name: tuple(source["shards"]) for name, source in facts["sources"].items()},
    )


def _stats(
    config: PackConfig,
    before: State,
    sources: Mapping[str, Source],
    filled: Mapping[str, Filled],
    pieces: int,
) -> PackStats:
    places = config.sequences * config.packing.sequence_length
    tokens = sum(each.sequences.tokens for each in filled.values())
    return PackStats(
        first_sequence=config.first_sequence,
        sequences=config.sequences,
        tokens=tokens,
        padding=places - tokens,
        padding_fraction=round((places - tokens) / places, 9),
        documents_whole=sum(each.counts.whole for each in filled.values()),
        documents_cut=sum(each.counts.cut for each in filled.values()),
        concatenation_cuts=sum(each.counts.concatenation_cuts for each in filled.values()),
        pieces=pieces,
        sources={name: ledger(name, sources[name].documents, each) for name, each in filled.items()},
    )


def ledger(name: str, documents: Documents, filled: Filled) -> dict[str, Any]:
    """A source's tokens at the end of a round, over all rounds so far, and this round's share.

    `tokens_available + tokens_repeated = tokens_placed + tokens_carried + tokens_not_taken` always holds; otherwise
    StageFailed is raised. `epochs`: how often the available text was read.
    """
    at = filled.position
    available = int(documents.length.sum())
    not_taken = int(documents.length[at.documents :].sum())
    if available + at.repeated_tokens != at.placed_tokens + filled.carried.tokens + not_taken:
        raise StageFailed(
            f"Source {name!r}: {available} tokens are there and {at.repeated_tokens} were repeated, but "
            f"{at.placed_tokens} were placed, {filled.carried.tokens} carried and {not_taken} not taken. "
            "The state of the round before does not belong to these shards."
        )
    return {
        "sequences": filled.sequences.count,
        "tokens": filled.sequences.tokens,
        "documents_whole": filled.counts.whole,
        "documents_cut": filled.counts.cut,
        "concatenation_cuts": filled.counts.concatenation_cuts,
        "epochs": round((at.read_tokens + at.repeated_tokens) / available, 6) if available else 0.0,
        "tokens_available": available,
        "tokens_repeated": at.repeated_tokens,
        "tokens_placed": at.placed_tokens,
        "tokens_carried": filled.carried.tokens,
        "sequences_carried": filled.carried.count,
        "tokens_not_taken": not_taken,
    }


def _warn_of_repeats(draft: Draft, name: str, source: Mapping[str, Any]) -> None:
    if source["tokens_repeated"]:
        draft.warn(
            f"Source {name!r} ran out of text: its {source['tokens_available']:,} tokens are read "
            f"{source['epochs']:.2f} times by the end of this round. More text, a smaller weight or a smaller "
            "budget would avoid it."
        )
