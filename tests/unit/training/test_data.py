"""Every token of the packed sequences is a target once; what is missing or altered is found before the first step."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.errors import BadInput, ConfigError, DamagedArtifact
from storage.packing import PackingManifest, write_manifest
from storage.tokens import TokenShard
from tasks.training.read_spec import parse_spec
from tests.support.training.world import (
    EOT,
    PER_STEP,
    SEQUENCE,
    TOKENIZER,
    VOCABULARY,
    World,
    open_corpus,
    write_shards,
)


def test_every_packed_token_is_a_target_once_after_its_own_input(world: World, tmp_path: Path) -> None:
    steps = world.sequences // PER_STEP
    corpus = open_corpus(world, tmp_path, identity__last_step=steps)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(1, steps + 1):
        batches = list(corpus.micro_batches(step, 3))
        assert sum(len(batch.targets) for batch in batches) == corpus.targets(step)
        for batch in batches:
            seen.update(zip(batch.inputs[0].tolist(), batch.targets.tolist(), strict=True))
    manifest = PackingManifest.open(world.manifest)
    rows = manifest.rows(0, steps * PER_STEP)
    wanted: Counter[tuple[int, int]] = Counter()
    for shard, offset, length in zip(rows.shard, rows.offset, rows.length, strict=True):
        stream = TokenShard.open(world.shards[manifest.shards[shard].digest]).tokens
        at = int(offset)
        pairs = zip(stream[at - 1 : at + length - 1].tolist(), stream[at : at + length].tolist(), strict=True)
        wanted.update(pairs)
    assert seen == wanted


@pytest.mark.parametrize("masking", [True, False])
def test_the_rows_are_the_same_whatever_the_micro_batch(world: World, tmp_path: Path, masking: bool) -> None:
    corpus = open_corpus(world, tmp_path, identity__document_masking=masking)
    for step in (1, 5):
        whole = next(corpus.micro_batches(step, PER_STEP))
        for size in (1, 2, 3):
            parts = list(corpus.micro_batches(step, size))
            assert torch.equal(torch.cat([part.inputs for part in parts], 1), whole.inputs)
            assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
            assert torch.equal(torch.cat([part.positions for part in parts], 1), whole.positions)
            assert sum((part.documents for part in parts), ()) == whole.documents


def test_positions_restart_at_each_document_or_sequence(world: World, tmp_path: Path) -> None:
    for masking in (True, False):
        batch = next(
            open_corpus(world, tmp_path, identity__document_masking=masking).micro_batches(1, PER_STEP)
        )
        expected = np.concatenate([np.arange(length) for length in batch.documents])
        assert batch.positions[0].tolist() == expected.tolist()
        assert (len(batch.documents) == PER_STEP) is not masking
        assert max(batch.documents) <= SEQUENCE


def test_a_missing_shard_is_named(world: World, tmp_path: Path) -> None:
    shards = {digest: str(path) for digest, path in world.shards.items()}
    lost = next(iter(shards))
    shards[lost] = str(tmp_path / "nowhere.arrow")
    with pytest.raises(BadInput, match=rf"{lost} is missing at .*nowhere"):
        open_corpus(world, tmp_path, paths__shards=shards)
    del shards[lost]
    with pytest.raises(BadInput, match=r"missing from paths\.shards"):
        open_corpus(world, tmp_path, paths__shards=shards)


def test_an_altered_shard_is_found_also_when_its_size_is_the_same(world: World, tmp_path: Path) -> None:
    shards = {}
    for digest, path in world.shards.items():
        shards[digest] = str(shutil.copy(path, tmp_path / path.name))
    open_corpus(world, tmp_path, paths__shards=shards)
    altered = Path(shards[digest])
    data = bytearray(altered.read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    with pytest.raises(DamagedArtifact, match="was altered"):
        open_corpus(world, tmp_path, paths__shards=shards)


def test_another_tokenizer_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer {TOKENIZER}, but this model's is other"):
        open_corpus(world, tmp_path, identity__tokenizer="other")


def test_another_sequence_length_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"identity\.sequence_length is 32"):
        open_corpus(world, tmp_path, identity__sequence_length=32)


def test_a_vocabulary_beyond_the_embedding_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than the model's embedding"):
        open_corpus(world, tmp_path, vocabulary=VOCABULARY - 1)


def test_sequences_in_no_manifest_are_named(world: World, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=f"do not hold sequence {world.sequences}"):
        open_corpus(world, tmp_path, identity__last_step=world.sequences)


def test_a_manifest_that_points_past_a_shard_is_refused(world: World, tmp_path: Path) -> None:
    _, short, _ = write_shards(tmp_path, 9, 2, "short.arrow")
    spec = parse_spec(world.spec(tmp_path))
    from tasks.training import data

    manifest = PackingManifest.open(world.manifest)
    uses = [(manifest, manifest.rows(0, 8))]
    with pytest.raises(DamagedArtifact, match="points past"):
        data._check_shard(TokenShard.open(short), uses, replace(spec.identity), VOCABULARY)


def begun_with(world: World, tmp_path: Path, begin: int) -> World:
    """The same packing, under a manifest that names a token to begin documents with."""
    manifest = PackingManifest.open(world.manifest)
    path = tmp_path / "begun.arrow"
    write_manifest(
        path,
        manifest.pieces,
        sequence_length=SEQUENCE,
        first_sequence=0,
        sequences=manifest.sequences,
        shards=manifest.shards,
        eot=manifest.eot,
        tokenizer=TOKENIZER,
        seed=0,
        begin=begin,
    )
    return replace(world, manifest=path)


@pytest.mark.parametrize("masking", [True, False])
def test_documents_begin_with_the_token_that_the_manifest_names(
    world: World, tmp_path: Path, masking: bool
) -> None:
    """In place of the end of text before them; what goes on in the middle of a document, and every target, stay."""
    changes = {"identity__document_masking": masking}
    plain = open_corpus(world, tmp_path / "plain", **changes)
    begun = open_corpus(begun_with(world, tmp_path, 9), tmp_path / "begun", **changes)
    replaced = 0
    for step in (1, 2, 3):
        for before, after in zip(plain.micro_batches(step, 2), begun.micro_batches(step, 2), strict=True):
            assert torch.equal(before.targets, after.targets) and torch.equal(
                before.positions, after.positions
            )
            assert torch.equal(after.inputs, torch.where(before.inputs == EOT, 9, before.inputs))
            firsts = np.zeros(len(before.targets), bool)
            firsts[before.piece_starts] = True
            assert not (before.inputs[0].numpy() == EOT)[~firsts].any()
            replaced += int((before.inputs != after.inputs).sum())
    assert replaced > 20


def test_a_token_to_begin_with_that_the_model_does_not_have_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"begin with token {VOCABULARY}, but the model has {VOCABULARY} words"
    ):
        open_corpus(begun_with(world, tmp_path, VOCABULARY), tmp_path / "w")
