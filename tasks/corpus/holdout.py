"""Choose the documents of a source's first slice that are held out of training, to measure perplexity on them.

The choice uses a hash of the text, so it depends neither on the order of the documents nor on the tokenizer. A larger
fraction holds out the same documents and more. A document whose text earlier slices train on is passed over, and the
next in order takes its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

MIN_DOCUMENTS = 200
MIN_BYTES = 800_000
"""About 200K tokens of English text at 4 bytes per token. Counted in bytes, so that no tokenizer is needed."""
MAX_RAISED = 0.05
"""To reach the two minima, the fraction is raised up to this share of the slice's documents and bytes."""
LOOKED_AT = (2, 8)
"""So many times the wanted documents are looked at, to find enough that are not trained on. Each look reads all earlier
slices."""


def texts_held_out(stats: Mapping[str, Any]) -> int:
    """The number of held-out texts, whole documents and pieces, by the statistics of `decontaminate`."""
    return int(stats["documents_held_out"]) + int(stats.get("pieces_held_out", 0))


def text_hashes(texts: pl.Series, seed: int) -> np.ndarray:
    """64-bit BLAKE2b of each text, keyed by the seed: uint64, shape (texts,)."""
    key = seed.to_bytes(16, "little", signed=True)
    # a loop over documents: nearly all its time is spent in hashing
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def held_out(hashes: np.ndarray, text_bytes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents to hold out: bool, shape (documents,).

    Documents whose hash is below the fraction are held out. Then, in order of their hashes, more are added until 200
    documents and 800 kB are held out, or 5 % of the slice is. A fraction of 0 holds out none.
    """
    if not fraction or not len(hashes):
        return np.zeros(len(hashes), bool)
    order = np.argsort(hashes, kind="stable")
    held_bytes = np.cumsum(text_bytes[order])
    configured = int(np.searchsorted(hashes[order].astype(np.float64), fraction * 2.0**64))
    enough = max(MIN_DOCUMENTS, int(np.searchsorted(held_bytes, MIN_BYTES)) + 1)
    allowed = min(
        int(MAX_RAISED * len(hashes)),
        int(np.searchsorted(held_bytes, MAX_RAISED * held_bytes[-1], side="right")),
    )
    chosen = np.zeros(len(hashes), bool)
    chosen[order[: max(configured, min(enough, allowed))]] = True
    return chosen


def not_trained_on(
    hashes: np.ndarray,
    text_bytes: np.ndarray,
    fraction: float,
    trained_on: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, int]:
    """Which documents to hold out (bool, shape (documents,)), and how many were passed over for them.

    `trained_on`: of some documents (int64), whether earlier slices train on their text. Where none is, the choice is that
    of `held_out`. Fewer are held out if there are not enough, but never more, in documents or in bytes (a twentieth of
    all counts as allowed).
    """
    wanted = held_out(hashes, text_bytes, fraction)
    count = int(wanted.sum())
    order = np.argsort(hashes, kind="stable")
    chosen, looked = np.zeros(0, np.int64), 0
    for times in LOOKED_AT if count else ():
        rows = order[looked : times * count]
        chosen = np.concatenate([chosen, rows[~trained_on(rows)]])
        looked += len(rows)
        if len(chosen) >= count or looked == len(order):
            break
    chosen = chosen[:count]
    most = max(int(text_bytes[wanted].sum()), int(MAX_RAISED * int(text_bytes.sum())))
    chosen = chosen[np.cumsum(text_bytes[chosen]) <= most]
    held = np.zeros(len(hashes), bool)
    held[chosen] = True
    return held, int((wanted & ~held).sum())
