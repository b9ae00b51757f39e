"""The same bytes by any number of worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.draft import Draft
from storage.testing import draft_in
from storage.workers import Workers
from tasks.corpus import dedup
from tasks.corpus.dedup import DedupConfig, DedupInputs
from tests.support.corpus.slices import bytes_in, slice_of


def prose(random: np.random.Generator, words: int) -> list[str]:
    return [letters(n) for n in random.integers(0, 20_000, words)]


def letters(number: int) -> str:
    return "w" + str(number).translate(str.maketrans("0123456789", "abcdefghij"))


def changed(random: np.random.Generator, words: list[str], share: float) -> list[str]:
    return [letters(random.integers(10**6, 10**9)) if random.random() < share else word for word in words]


def family_texts(seed: int, families: int = 60) -> list[str]:
    """Originals and edited copies of many degrees, in a random order."""
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(families):
        original = prose(random, int(random.integers(60, 300)))
        texts.append(" ".join(original))
        for share in random.choice([0.0, 0.004, 0.01, 0.02, 0.04, 0.1], 2):
            texts.append(" ".join(changed(random, original, share)))
    return [texts[i] for i in random.permutation(len(texts))]


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    given_ = slice_of(tmp_path / "in", family_texts(7, 20), shards=4)
    alone = draft_in(tmp_path)
    dedup.run(DedupConfig(), DedupInputs(given_), alone)
    with Workers(2) as workers:
        several = Draft(tmp_path / "several", workers=workers)
        dedup.run(DedupConfig(), DedupInputs(given_), several)
    assert bytes_in(alone.path) == bytes_in(several.path)
