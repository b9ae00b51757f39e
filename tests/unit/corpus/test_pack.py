from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.artifact import Artifact, Input
from storage.draft import Draft
from storage.errors import ConfigError, StageFailed
from storage.keys import stage_key
from storage.manifest import FileEntry, Manifest, part_of
from storage.packing import PackingManifest
from storage.testing import artifact_of, draft_in
from storage.tokens import TokenShard, write_shard
from tasks.corpus import pack
from tasks.corpus.packing.budgets import needed_tokens
from tasks.corpus.packing.interleave import shares
from tasks.corpus.packing.windows import Documents, Packing, Position, fill, no_sequences, seeded_order

VOCABULARY = 50


def tokens_part(root: Path, shards: list[list[int]], tokenizer: str = "t") -> Input:
    """A committed `tokens` part; each list holds the lengths of a shard's documents."""
    entries = []
    for number, lengths in enumerate(shards):
        path = root / "tokens" / f"{number:04d}" / "tokens.arrow"
        path.parent.mkdir(parents=True)
        values = np.arange(sum(lengths)) % (VOCABULARY - 1) + 1
        values[np.cumsum(lengths, dtype=np.int64) - 1] = 0
        first = int.from_bytes(root.name.encode()[-4:], "big") * 1000 + number  # no two shards are the same
        docs = np.arange(first, first + len(lengths), dtype=np.uint64)
        write_shard(
            path,
            docs,
            values,
            np.asarray(lengths, np.int64),
            eot=0,
            vocabulary=VOCABULARY,
            tokenizer=tokenizer,
        )
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append(FileEntry(f"tokens/{number:04d}/tokens.arrow", path.stat().st_size, sha256))
    part = part_of(entries)
    manifest = Manifest("tokenize", 1, stage_key("tokenize", 1, {}, {}), {}, {}, {"tokens": part})
    (root / "manifest.json").write_bytes(manifest.to_bytes())
    return Input("tokenize", "0" * 64, "tokens", part.digest, root, tuple(entry.path for entry in part.files))


def config(
    weights: dict[str, float], sequences: int, first: int = 0, length: int = 16, window: int = 200
) -> pack.PackConfig:
    return pack.PackConfig(
        packing=pack.PackingConfig(sequence_length=length, window_tokens=window),
        seed=5,
        sources=tuple(pack.SourceWeight(name=name, weight=weight) for name, weight in weights.items()),
        first_sequence=first,
        sequences=sequences,
    )


def pack_in(
    store: Path, settings: pack.PackConfig, shards: dict[str, tuple[Input, ...]], state: Input | None = None
) -> Artifact:
    return artifact_of(pack, settings, pack.PackInputs(shards, state), store)


def manifest_of(artifact: Artifact) -> PackingManifest:
    return PackingManifest.open(artifact.part("manifest").only())


def targets_of(manifest: PackingManifest, shards: dict[str, tuple[Input, ...]]) -> Counter[tuple[str, int]]:
    """How often each token (digest of its shard, flat index) is a target."""
    seen: Counter[tuple[str, int]] = Counter()
    rows = manifest.pieces
    for shard, offset, length in zip(rows.shard, rows.offset, rows.length, strict=True):
        digest = manifest.shards[shard].digest
        seen.update((digest, index) for index in range(int(offset), int(offset) + int(length)))
    return seen


def check_order(manifest: PackingManifest, opened: dict[str, TokenShard], weights: dict[str, float]) -> None:
    """Pieces stay inside documents, sequences within their length and source, stretches within the mixture."""
    rows = manifest.pieces
    for shard, offset, length in zip(rows.shard, rows.offset, rows.length, strict=True):
        tokens = opened[manifest.shards[shard].digest]
        document = int(np.searchsorted(tokens.offsets, int(offset), side="right")) - 1
        assert document >= 0
        end = int(tokens.offsets[document] + tokens.lengths[document])
        assert int(offset) + int(length) <= end
    for sequence in range(manifest.first_sequence, manifest.end_sequence):
        own = manifest.rows(sequence, sequence + 1)
        assert 1 <= int(own.length.sum()) <= manifest.sequence_length
        assert len({manifest.shards[shard].source for shard in own.shard}) == 1
    names = list(manifest.sources)
    parts = dict(zip(weights, shares(list(weights.values())), strict=True))
    order = manifest.source_of(manifest.first_sequence, manifest.end_sequence)
    for index, name in enumerate(names):
        seen = np.concatenate([[0], np.cumsum(order == index)])
        drift = seen - float(parts[name]) * np.arange(len(seen))
        assert drift.max() - drift.min() <= 2, "a stretch is more than one sequence off at either end"
        assert np.abs(drift).max() <= 1 or manifest.first_sequence > 0


LENGTHS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    first=LENGTHS,
    later=LENGTHS,
    other=LENGTHS,
    weight=st.sampled_from([0.5, 0.9, 0.75]),
    window=st.sampled_from([16, 100, 1000]),
    counts=st.tuples(st.integers(1, 25), st.integers(1, 25)),
)
def test_every_token_is_a_target_once_an_epoch_over_two_rounds(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[list[int]],
    later: list[list[int]],
    other: list[list[int]],
    weight: float,
    window: int,
    counts: tuple[int, int],
) -> None:
    root = tmp_path_factory.mktemp("pack")
    slices = {
        "edu": (tokens_part(root / "a", first), tokens_part(root / "b", later)),
        "general": (tokens_part(root / "c", other),),
    }
    weights = {"edu": weight, "general": 1 - weight}
    opened = {
        hashlib.sha256(path.read_bytes()).hexdigest(): TokenShard.open(path)
        for parts in slices.values()
        for part in parts
        for path in part.paths
    }
    before = {"edu": slices["edu"][:1], "general": slices["general"]}
    one = pack_in(root / "store", config(weights, counts[0], window=window), before)
    settings_two = config(weights, counts[1], first=counts[0], window=window)
    two = pack_in(root / "store", settings_two, slices, one.part("state"))
    for artifact in (one, two):
        check_order(manifest_of(artifact), opened, weights)
    seen = targets_of(manifest_of(one), slices) + targets_of(manifest_of(two), slices)
    assert sum(seen.values()) == one.stats["tokens"] + two.stats["tokens"]
    for name, parts in slices.items():
        ledger = two.stats["sources"][name]
        digests = {hashlib.sha256(p.read_bytes()).hexdigest() for part in parts for p in part.paths}
        placed = sum(count for (digest, _), count in seen.items() if digest in digests)
        assert placed == ledger["tokens_placed"]
        assert (
            ledger["tokens_available"] + ledger["tokens_repeated"]
            == ledger["tokens_placed"] + ledger["tokens_carried"] + ledger["tokens_not_taken"]
        )
        if ledger["tokens_repeated"] == 0:
            assert all(seen[key] <= 1 for key in seen if key[0] in digests)
    assert all(index > 0 for _, index in seen), "an opening end-of-text became a target"


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    needs=st.lists(st.integers(1, 15), min_size=1, max_size=5),
    capacity=st.integers(2, 20),
    window=st.integers(1, 300),
)
def test_each_epoch_reads_every_token_once_before_the_next_begins(
    lengths: list[int], needs: list[int], capacity: int, window: int
) -> None:
    sizes = np.asarray(lengths, np.int64)
    documents = Documents(np.zeros_like(sizes), np.cumsum(sizes) - sizes + 1, sizes)
    position, carried, stream = Position(), no_sequences(), []
    for need in needs:
        filled = fill(documents, position, carried, need, Packing("s", 1, capacity, max(window, capacity)))
        position, carried = filled.position, filled.carried
        rows = filled.sequences
        stream += [range(o, o + n) for o, n in zip(rows.offset.tolist(), rows.length.tolist(), strict=True)]
        assert rows.count == need
    stream += [range(o, o + n) for o, n in zip(carried.offset.tolist(), carried.length.tolist(), strict=True)]
    tokens = Counter(index for piece in stream for index in piece)
    total = int(sizes.sum())
    passes = [tokens[index] for index in range(1, total + 1)]
    assert max(passes) - min(passes) <= 1
    assert sum(passes) == position.read_tokens + position.repeated_tokens
    read = [index for piece in stream for index in piece]
    assert set(read[:total]) == set(range(1, total + 1)) or len(read) < total


def test_a_budget_extended_later_keeps_its_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    slices = [tokens_part(tmp_path / f"s{i}", [rng.integers(1, 40, 30).tolist()] * 2) for i in range(3)]
    weights = {"edu": 0.9, "general": 0.1}
    general = (tokens_part(tmp_path / "g", [[5, 6, 7] * 20]),)
    read_one = {"edu": tuple(slices[:1]), "general": general}
    read_two = {"edu": tuple(slices), "general": general}

    def rounds(store: str) -> tuple[Artifact, Artifact]:
        one = pack_in(tmp_path / store, config(weights, 40), read_one)
        two = pack_in(tmp_path / store, config(weights, 60, first=40), read_two, one.part("state"))
        return one, two

    alone = pack_in(tmp_path / "alone", config(weights, 40), read_one)
    first = rounds("both")
    again = rounds("again")
    assert alone.part("manifest").digest == first[0].part("manifest").digest
    assert alone.part("state").digest == first[0].part("state").digest
    assert [a.part("manifest").digest for a in first] == [a.part("manifest").digest for a in again]
    assert manifest_of(first[1]).first_sequence == 40


def test_round_one_reads_replay_on_behind_round_zero(tmp_path: Path) -> None:
    slices = {
        "edu": (tokens_part(tmp_path / "e", [[7] * 100]),),
        "general": (tokens_part(tmp_path / "g", [[9] * 100]),),
    }
    zero = pack_in(tmp_path / "store", config({"general": 0.1}, 20), {"general": slices["general"]})
    one = pack_in(tmp_path / "store", config({"edu": 0.9, "general": 0.1}, 30), slices, zero.part("state"))
    assert manifest_of(zero).first_sequence == manifest_of(one).first_sequence == 0
    seen = targets_of(manifest_of(zero), slices) + targets_of(manifest_of(one), slices)
    assert max(seen.values()) == 1
    assert one.stats["sources"]["general"]["sequences"] == 3
    placed = zero.stats["tokens"] + one.stats["sources"]["general"]["tokens"]
    assert one.stats["sources"]["general"]["tokens_placed"] == placed


def test_a_source_unused_in_a_round_keeps_its_place(tmp_path: Path) -> None:
    slices = {
        "edu": (tokens_part(tmp_path / "e", [[7] * 100]),),
        "general": (tokens_part(tmp_path / "g", [[9] * 100]),),
    }
    both = pack_in(tmp_path / "store", config({"edu": 0.5, "general": 0.5}, 20), slices)
    alone = pack_in(
        tmp_path / "store", config({"edu": 1}, 5, first=20), {"edu": slices["edu"]}, both.part("state")
    )
    general = config({"general": 1}, 5, first=25)
    after = pack_in(tmp_path / "store", general, {"general": slices["general"]}, alone.part("state"))
    seen = sum((targets_of(manifest_of(a), slices) for a in (both, alone, after)), Counter())
    assert max(seen.values()) == 1


def test_text_that_runs_out_is_repeated_in_another_order_with_a_warning(tmp_path: Path) -> None:
    part = tokens_part(tmp_path / "e", [list(range(1, 17))])
    draft = Draft(tmp_path / "draft")
    stats = pack.run(config({"edu": 1}, 60), pack.PackInputs({"edu": (part,)}), draft)
    assert len(draft.warnings) == 1
    assert "'edu' ran out of text" in draft.warnings[0]
    source = stats.sources["edu"]
    assert source["epochs"] == round((source["tokens_repeated"] + 136) / 136, 6) > 6
    rows = PackingManifest.open(tmp_path / "draft" / "manifest.arrow").pieces
    assert rows.offset[:20].tolist() != rows.offset[20:40].tolist()
    draft = Draft(tmp_path / "enough")
    pack.run(config({"edu": 1}, 8), pack.PackInputs({"edu": (part,)}), draft)
    assert draft.warnings == []


def test_needed_tokens_are_enough_without_repeating(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = {"edu": 0.9, "general": 0.1}
    slices = {}
    needs = needed_tokens(list(weights.values()), 100, 16)
    for name, need in zip(weights, needs, strict=True):
        lengths = rng.integers(1, 45, 500)
        lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), need)) + 1]
        slices[name] = (tokens_part(tmp_path / name, [lengths.tolist()]),)
    made = pack_in(tmp_path / "store", config(weights, 100, window=300), slices)
    assert all(source["tokens_repeated"] == 0 for source in made.stats["sources"].values())


def test_documents_that_fit_are_never_cut_and_little_is_padded(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    lengths = np.minimum(rng.geometric(0.06, 4000), 64).tolist()
    part = tokens_part(tmp_path / "e", [lengths])
    settings_ = config({"edu": 1}, sum(lengths) // 64, length=64, window=1_000_000)
    made = pack_in(tmp_path / "store", settings_, {"edu": (part,)})
    assert made.stats["documents_cut"] == 0
    assert made.stats["documents_whole"] <= 4000
    assert made.stats["concatenation_cuts"] > 500
    assert made.stats["padding_fraction"] < 0.002
    assert made.stats["pieces"] == len(manifest_of(made).pieces)


def test_shards_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    slices = {
        "edu": (tokens_part(tmp_path / "e", [[7] * 9], "one"),),
        "general": (tokens_part(tmp_path / "g", [[7] * 9], "other"),),
    }
    with pytest.raises(StageFailed, match="different tokenizers"):
        pack_in(tmp_path / "store", config({"edu": 1, "general": 1}, 4), slices)


def test_a_source_without_text_is_refused(tmp_path: Path) -> None:
    slices = {
        "edu": (tokens_part(tmp_path / "e", [[7] * 9]),),
        "general": (tokens_part(tmp_path / "g", [[]]),),
    }
    with pytest.raises(StageFailed, match="'general' has no text"):
        pack_in(tmp_path / "store", config({"edu": 1, "general": 1}, 4), slices)


def test_shards_that_do_not_go_on_from_the_round_before_are_refused(tmp_path: Path) -> None:
    first, other = tokens_part(tmp_path / "a", [[7] * 9]), tokens_part(tmp_path / "b", [[8] * 9])
    one = pack_in(tmp_path / "store", config({"edu": 1}, 2), {"edu": (first,)})
    with pytest.raises(StageFailed, match="do not go on"):
        pack_in(tmp_path / "store", config({"edu": 1}, 2, first=2), {"edu": (other,)}, one.part("state"))
    longer = config({"edu": 1}, 2, first=2, length=32)
    with pytest.raises(StageFailed, match="sequence_length 16"):
        pack_in(tmp_path / "store", longer, {"edu": (first,)}, one.part("state"))


def test_seeded_order_is_pinned() -> None:
    assert seeded_order(8, 0, "edu", "window", 0).tolist() == [4, 5, 3, 6, 2, 1, 7, 0]


def tokenizer_part(root: Path, **facts: str) -> Input:
    """The part `tokenizer` of a base, with a word before and one after a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    (root / "export").mkdir(parents=True)
    tokenizer = Tokenizer(WordLevel({"</s>": 0, "<s>": 1, "a": 2}, unk_token="a"))
    tokenizer.add_special_tokens(["</s>", "<s>"])
    tokenizer.save(str(root / "export/tokenizer.json"))
    (root / "export/tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **facts}))
    return Input(
        "base", "1" * 64, "tokenizer", "t", root, ("export/tokenizer.json", "export/tokenizer_config.json")
    )


def test_the_token_that_documents_begin_with_is_in_the_manifest_and_moves_no_piece(tmp_path: Path) -> None:
    part = tokens_part(tmp_path / "part", [[30, 7, 9, 16], [5, 50]])
    settings = config({"edu": 1}, 5)
    plain = pack_in(tmp_path / "store", settings, {"edu": (part,)})
    bos = settings.model_copy(update={"packing": settings.packing.model_copy(update={"begin": "bos"})})
    named = tokenizer_part(tmp_path / "base", bos_token="<s>")
    begun = artifact_of(pack, bos, pack.PackInputs({"edu": (part,)}, None, named), tmp_path / "store")
    before, after = manifest_of(plain), manifest_of(begun)
    assert (before.begin, after.begin) == (None, 1)
    for one, other in zip(vars(before.pieces).values(), vars(after.pieces).values(), strict=True):
        assert np.array_equal(one, other)
    assert plain.key != begun.key and "tokenizer" not in plain.manifest.inputs


def test_documents_cannot_begin_with_a_token_that_is_not_there(tmp_path: Path) -> None:
    part = tokens_part(tmp_path / "part", [[30, 7]])
    settings = config({"edu": 1}, 2)
    bos = settings.model_copy(update={"packing": settings.packing.model_copy(update={"begin": "bos"})})
    for number, facts in enumerate(({}, {"bos_token": "</s>"}, {"bos_token": "<begin>"})):
        named = tokenizer_part(tmp_path / f"base{number}", **facts)
        with pytest.raises(ConfigError, match=r"packing\.begin is bos, but .* leave it at eos"):
            pack.run(
                bos, pack.PackInputs({"edu": (part,)}, None, named), draft_in(tmp_path / f"draft{number}")
            )
