"""Texts and edited copies of them, and the dedup stage run on a slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.artifact import Chain, Input
from storage.testing import draft_in
from tasks.corpus import dedup
from tasks.corpus.dedup import DedupConfig, DedupInputs


def prose(random: np.random.Generator, words: int) -> list[str]:
    """So many words, of 20,000."""
    return [letters(n) for n in random.integers(0, 20_000, words)]


def letters(number: int) -> str:
    """The word of a number."""
    return "w" + str(number).translate(str.maketrans("0123456789", "abcdefghij"))


def changed(random: np.random.Generator, words: list[str], share: float) -> list[str]:
    """The words with about this share of them replaced."""
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


def run_on(
    directory: Path, given: Input, config: DedupConfig | None = None, earlier: tuple[Input, ...] = ()
) -> tuple[Path, dedup.DedupStats]:
    """What the dedup stage leaves of a slice beside the signatures of earlier ones."""
    draft = draft_in(directory)
    stats = dedup.run(config or DedupConfig(), DedupInputs(given, Chain(earlier) if earlier else None), draft)
    return draft.path, stats
