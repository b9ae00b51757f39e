"""Which documents of a source's first slice are held out of training, to measure perplexity on.

By hash of the text, so that the choice depends neither on the order of the documents nor on the tokenizer, and a larger
fraction holds out the same documents and more.
"""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl

MIN_DOCUMENTS = 200
MIN_BYTES = 800_000
"""About 200K tokens of English text at 4 bytes a token; in bytes, so that no tokenizer is needed."""
MAX_RAISED = 0.05
"""The fraction is raised to reach the two minima up to this share of the slice's documents and bytes."""


def text_hashes(texts: pl.Series, seed: int) -> np.ndarray:
    """64 bits of BLAKE2b of each text, keyed by the seed: uint64, shape (texts,)."""
    key = seed.to_bytes(16, "little", signed=True)
    # a loop over documents, but hashing is the whole of its time
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8, key=key).digest() for text in texts)
    return np.frombuffer(digests, "<u8")


def held_out(hashes: np.ndarray, text_bytes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents to hold out: bool, shape (documents,).

    Those whose hash is below the fraction; and, in order of hashes, more until 200 documents and 800 kB are held out
    or 5 % of the slice is. None for a fraction of 0.
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
