"""Prose that the filter keeps, and the filter with Gopher's rules alone."""

from __future__ import annotations

import numpy as np

from tasks.corpus.filter import FilterConfig

GOPHER = FilterConfig(language="any", c4=False, fineweb=False, pii="off")


def sentences(count: int, seed: int = 0) -> str:
    """Prose without repeats: every sentence of new words, with the small words of English between them."""
    random = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    small = ["the", "of", "and", "to", "with", "that", "have", "be"]
    lines = []
    for _ in range(count):
        words = ["".join(random.choice(letters, int(random.integers(3, 9)))) for _ in range(9)]
        words[3], words[6] = random.choice(small), random.choice(small)
        lines.append(" ".join(words).capitalize() + ".")
    return "\n".join(lines)
