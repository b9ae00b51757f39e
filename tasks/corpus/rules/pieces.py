"""The pieces between white space of a batch of texts: each distinct one once, and which of them stands where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from tasks.corpus.rules.spans import Spans, strings
from tasks.corpus.words import hash_ranges


@dataclass(frozen=True)
class Pieces:
    """spans: where the pieces are. codes: int64 or int32, shape (pieces,), the distinct piece that stands there. distinct,
    hashes (uint64): the distinct pieces, in the order in which they first occur."""

    spans: Spans
    codes: np.ndarray
    distinct: pl.Series
    hashes: np.ndarray

    @classmethod
    def of(cls, plain: np.ndarray, spans: Spans) -> Pieces:
        """The pieces at `spans` of a buffer; the spans contain no white space."""
        encoded = pa.array(hash_ranges(plain, spans.starts, spans.ends)).dictionary_encode()
        codes = encoded.indices.to_numpy()
        example = np.empty(len(encoded.dictionary), np.int64)
        example[codes[::-1]] = np.arange(len(codes))[::-1]
        distinct = strings(plain, spans.starts[example], spans.ends[example])
        return cls(spans, codes, distinct, encoded.dictionary.to_numpy())
