"""MinHash signatures of texts: shingles of words, permutations, bands, and the true Jaccard similarity.

Parameters and normalisation are datatrove's (`pipeline/dedup/minhash.py`, `utils/text.py: simplify_text`), extended to
all Unicode punctuation, compatibility forms (ligatures, full width) and invisible characters. Two texts that share a
band are candidates; at similarity s the probability is 1 − (1 − s^rows)^bands (0.924 at 0.8 for 14 × 8). datatrove
replaces every number by 0. Here numbers are kept, for the signatures and for the similarity: two tables with different
numbers are not copies of each other, and otherwise thousands of tables would be each other's candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import rensa

from storage.errors import StageFailed
from storage.settings import Real, Settings, Whole, identity
from tasks.corpus.letters import bare_letters
from tasks.corpus.units import WORD, runs, spaced, weights_of
from tasks.corpus.words import PUNCTUATION, batches, split_words

SEED = 1
"""Seed of the permutations. Fixed, so that signatures of all slices, runs and configurations are comparable."""

_ALGORITHM = 2

_GAP = "[[" + PUNCTUATION + r"\p{P}\s]&&[^ １]]+"
"""datatrove's punctuation and all of Unicode's. Its list has the digit １ of full width, which is none."""


class MinHashConfig(Settings):
    """How near-duplicates are found and verified."""

    ngram: Whole = identity(5, ge=1, le=50, description="Length of a shingle, in words.")
    bands: Whole = identity(
        14, ge=1, le=64, description="Bands; two documents that agree in one are compared."
    )
    rows: Whole = identity(8, ge=1, le=32, description="Minimum hashes in a band.")
    jaccard: Real = identity(
        0.7,
        gt=0,
        le=1,
        description="A document is dropped at this true Jaccard similarity (0 to 1) of its shingles.",
    )


@dataclass(frozen=True)
class Shingles:
    """Hashes of all shingles of many texts: values uint64, shape (shingles,); first int64, shape (texts + 1,)."""

    values: np.ndarray
    first: np.ndarray

    def of(self, text: int) -> np.ndarray:
        """The set of one text's shingles: sorted, without repeats."""
        return np.unique(self.values[self.first[text] : self.first[text + 1]])


def simplify(texts: pl.Series) -> pl.Series:
    """The texts as they are compared: lower case, spaces for punctuation, no accents."""
    return bare_letters(plain(texts.str.to_lowercase())).str.replace_all(" +", " ")


def plain(lowered: pl.Series) -> pl.Series:
    """Replace each run of punctuation and of whitespace other than spaces by one space. Spaces themselves are kept."""
    return lowered.str.replace_all(_GAP, " ")


def shingles(texts: pl.Series, ngram: int) -> Shingles:
    """Hashes of all runs of `ngram` words, or as much text without spaces (units.py). A shorter text has none."""
    return shingles_of_lowered(texts.str.to_lowercase(), ngram)


def shingles_of_lowered(lowered: pl.Series, ngram: int) -> Shingles:
    """As `shingles`, for texts that are already lower case."""
    hashes, first, weights = compared_words(plain(lowered))
    values, fits, _ = runs(hashes, first, weights, ngram)
    until = np.concatenate([[0], np.cumsum(fits)])
    return Shingles(values[fits], until[np.minimum(first, len(fits))])


def compared_words(plain: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Hashes of the words without accents (uint64), each text's first word (int64, shape (texts + 1,)), and what each
    word counts where some count less than one (`units.weights_of`).

    Only words with non-ASCII characters are normalised, each on its own: no rule of NFKD crosses a space.
    """
    words = split_words(plain)
    signs = np.flatnonzero(words.buffer >= 0x80)
    beyond = np.unique(np.searchsorted(words.starts, signs, side="right") - 1)
    if not len(beyond):
        return words.hashes, words.first, None
    _, one, which = np.unique(words.hashes[beyond], return_index=True, return_inverse=True)
    spelled = [words.text(place, place + 1) for place in beyond[one].tolist()]  # few: each word once
    bare = split_words(spaced(bare_letters(pl.Series(spelled, dtype=pl.String))))
    counts = np.ones(len(words.hashes), np.int64)
    counts[beyond] = pieces = np.diff(bare.first)[which]  # a word may split into several words, or vanish
    edges = np.concatenate([[0], np.cumsum(counts)])
    within = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    from_, to = (
        np.repeat(bare.first[:-1][which], pieces) + within,
        np.repeat(edges[beyond], pieces) + within,
    )
    hashes = np.repeat(words.hashes, counts)
    hashes[to] = bare.hashes[from_]
    parts = weights_of(bare)
    if parts is None:
        return hashes, edges[words.first], None
    weights = np.full(len(hashes), WORD, np.int64)
    weights[to] = parts[from_]
    return hashes, edges[words.first], weights


def signatures(given: Shingles, permutations: int) -> np.ndarray:
    """Signatures of texts: two agree in a coordinate with a probability equal to the texts' similarity.

    uint32, shape (texts, permutations). A text without shingles has the largest value everywhere. The method is Fast
    Similarity Sketching (Dahlgaard, Knudsen and Thorup 2017, arXiv:1704.04370): three rounds of one bucket per
    shingle; then each coordinate that is still empty takes the minimum under its own permutation. The tests contain
    the same in numpy. Raises StageFailed if the library's algorithm differs from that of the stored signatures.
    """
    if rensa.RMinHash.ALGORITHM_VERSION != _ALGORITHM:
        raise StageFailed(
            f"the installed rensa computes other signatures (algorithm {rensa.RMinHash.ALGORITHM_VERSION}, "
            f"not {_ALGORITHM}) than those in the store; install the version that constraints.txt names"
        )
    if len(given.first) == 1:
        return np.zeros((0, permutations), np.uint32)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        np.ascontiguousarray(given.values), given.first.astype(np.uint64), permutations, SEED
    )
    return np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(given.first) - 1, permutations)


def band_hashes(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """One hash per band, over its rows: uint64, shape (texts, bands)."""
    grouped = signature.reshape(len(signature), bands, rows).astype(np.uint64)
    hashes = np.zeros((len(signature), bands), np.uint64)
    for row in range(rows):
        hashes = (hashes + grouped[:, :, row]) * np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def sketch(lowered: pl.Series, config: MinHashConfig) -> tuple[np.ndarray, np.ndarray]:
    """For lower-case texts: band hashes (uint64, shape (texts, bands)) and numbers of shingles (int64, shape
    (texts,))."""
    hashes, counts = [np.zeros((0, config.bands), np.uint64)], [np.zeros(0, np.int64)]
    for _, some in batches(lowered):
        found = shingles_of_lowered(some, config.ngram)
        signature = signatures(found, config.bands * config.rows)
        hashes.append(band_hashes(signature, config.bands, config.rows))
        counts.append(np.diff(found.first))
    return np.concatenate(hashes), np.concatenate(counts)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a ∩ b| / |a ∪ b| of two sets, given as sorted arrays without repeats. 0 if both are empty."""
    together = len(a) + len(b)
    if not together:
        return 0.0
    merged = np.concatenate([a, b])
    merged.sort()
    common = int(np.count_nonzero(merged[1:] == merged[:-1]))
    return common / (together - common)
