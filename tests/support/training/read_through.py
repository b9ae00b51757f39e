"""Reads a shard of 320 MB through the loader's rows, a step at a time, and prints what memory it took for it.

A process of its own, so that what it says of itself is of the loader.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from storage.packing import Pieces, ShardEntry, write_manifest
from storage.tokens import write_shard
from tasks.training.data import Corpus
from tasks.training.feed import Feed
from tasks.training.read_spec import parse_spec
from tests.support.training.world import TOKENIZER, World

TOKENS, LENGTH, PER_STEP = 160_000_000, 4096, 64


def make(root: Path) -> World:
    """One shard of documents as long as a sequence; written in a child, whose memory is its own."""
    count = TOKENS // LENGTH
    values = np.arange(count * LENGTH, dtype=np.uint64) % 60_000 + 1
    lengths = np.full(count, LENGTH)
    values[np.cumsum(lengths) - 1] = 0
    shard = root / "big.arrow"
    write_shard(shard, np.arange(count), values, lengths, eot=0, vocabulary=60_001, tokenizer=TOKENIZER)
    with shard.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    pieces = Pieces(np.arange(count), np.zeros(count, int), 1 + np.arange(count) * LENGTH, lengths)
    manifest = root / "manifest.arrow"
    write_manifest(
        manifest,
        pieces,
        sequence_length=LENGTH,
        first_sequence=0,
        sequences=count,
        shards=[ShardEntry(digest, "big")],
        eot=0,
        tokenizer=TOKENIZER,
        seed=0,
    )
    return World(root, root, root, manifest, {digest: shard}, count)


def resident(kind: str) -> int:
    """Bytes of RssAnon (this process's own) or RssFile (pages of files, which the kernel may drop)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) << 10


def main(root: Path) -> None:
    world = World(
        root, root, root, root / "manifest.arrow", json.loads((root / "shards.json").read_text()), 0
    )
    steps = TOKENS // LENGTH // PER_STEP
    spec = parse_spec(
        world.spec(
            root,
            identity__sequence_length=LENGTH,
            identity__sequences_per_step=PER_STEP,
            identity__last_step=steps,
        )
    )
    import torch

    corpus = Corpus.open(spec.identity, spec.paths, 60_001)
    feed = Feed(corpus, torch.device("cpu"), micro_batch=8, share=(0, PER_STEP), last_step=steps, fixed=None)
    tokens = before = file_before = 0
    for step in range(1, steps + 1):
        for row in feed.rows(step):
            tokens += len(row.targets)
            assert int(row.targets[-1]) == 0
        if step == 3:  # by then every buffer was needed once
            before, file_before = resident("RssAnon"), resident("RssFile")
    found = {
        "shard": next(iter(spec.paths.shards.values())).stat().st_size,
        "tokens": tokens,
        "anonymous": resident("RssAnon") - before,
        "file": resident("RssFile") - file_before,
    }
    feed.close()
    print(json.dumps(found))


if __name__ == "__main__":
    root = Path(sys.argv[1])
    if len(sys.argv) > 2:
        made = make(root)
        (root / "shards.json").write_text(
            json.dumps({digest: str(path) for digest, path in made.shards.items()})
        )
    else:
        import subprocess

        subprocess.run(
            [sys.executable, "-m", "tests.support.training.read_through", str(root), "make"], check=True
        )
        main(root)
