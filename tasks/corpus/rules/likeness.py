"""How much a text is like some texts and unlike others: naive Bayes over hashed pieces of five bytes.

The model is a table of weights, one for each of 2^20 buckets of hashed pieces of five bytes in small letters: the logarithm
of how much more frequent a piece is in the one set of texts than in the other, with one added to each count (Laplace). A
text's score is a logistic function of the mean weight of its pieces, so that 0.5 is where both sets are as likely, whatever
its length. Pieces of bytes need no words, so any script is measured alike. It reads 30 MB of text a second of a core.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from tasks.corpus.rules.rule import Family, TextBatch, at_least
from tasks.corpus.rules.spans import Flat

RULE = "likeness"
BUCKETS_LOG = 20
_PIECE = 5
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_STEPS = 50
_AT_A_TIME = 128
"""Texts whose pieces are in memory together."""


@dataclass(frozen=True)
class Model:
    """weights: float32, shape (2^20,). score = 1 / (1 + exp(−(slope · mean weight + offset)))."""

    weights: np.ndarray
    slope: float
    offset: float

    def scores(self, texts: pl.Series) -> np.ndarray:
        """Float64, shape (texts,), 0 to 1. A text of fewer than five bytes gets what the offset says."""
        return 1 / (1 + np.exp(-(self.slope * means(texts, self.weights) + self.offset)))

    @classmethod
    def read(cls, path: Path) -> Model:
        """From the file that `save` wrote."""
        table = np.fromfile(path, "<f4")
        return cls(table[2:], float(table[0]), float(table[1]))

    def save(self, path: Path) -> None:
        """Slope, offset and weights as little-endian float32."""
        np.concatenate([[self.slope, self.offset], self.weights]).astype("<f4").tofile(path)


def counts(texts: pl.Series) -> np.ndarray:
    """How often each bucket's pieces occur in the texts: int64, shape (2^20,)."""
    total = np.zeros(1 << BUCKETS_LOG, np.int64)
    for begin in range(0, len(texts), _AT_A_TIME):
        buckets, _ = _pieces(texts.slice(begin, _AT_A_TIME))
        total += np.bincount(buckets, minlength=len(total))
    return total


def weights_of(mine: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Logarithms of the ratio of frequencies, from counts: float32."""
    one = (mine + 1) / (mine.sum() + len(mine))
    two = (others + 1) / (others.sum() + len(others))
    return np.log(one / two).astype(np.float32)


def means(texts: pl.Series, weights: np.ndarray) -> np.ndarray:
    """The mean weight of each text's pieces; 0 where it has none."""
    found = [np.empty(0)]
    for begin in range(0, len(texts), _AT_A_TIME):
        some = texts.slice(begin, _AT_A_TIME)
        buckets, owner = _pieces(some)
        sums = np.bincount(owner, weights=weights[buckets].astype(np.float64), minlength=len(some))
        found.append(sums / np.maximum(np.bincount(owner, minlength=len(some)), 1))
    return np.concatenate(found)


def fitted(weights: np.ndarray, mine: np.ndarray, others: np.ndarray) -> Model:
    """The model, with slope and offset from mean weights of texts that were not counted, both sets as likely.

    Newton's method for logistic regression in one variable, with a small ridge so that sets which nothing confuses have a
    finite slope.
    """
    values = np.concatenate([mine, others])
    scale = float(values.std()) or 1.0
    design = np.stack([values / scale, np.ones(len(values))], 1)
    target = np.concatenate([np.ones(len(mine)), np.zeros(len(others))])
    each = np.concatenate([np.full(len(n), 0.5 / len(n)) for n in (mine, others)])
    beta = np.zeros(2)
    for _ in range(_STEPS):
        chance = 1 / (1 + np.exp(-design @ beta))
        gradient = design.T @ (each * (target - chance)) - 1e-3 * beta
        curvature = (design * (each * chance * (1 - chance))[:, None]).T @ design + 1e-3 * np.eye(2)
        beta = beta + np.linalg.solve(curvature, gradient)
    return Model(weights, float(beta[0] / scale), float(beta[1]))


def family(model: Path, least: float) -> Family:
    """The rule that keeps texts whose score is `least` or more."""
    return Family((at_least(RULE, least, partial(_values, Model.read(model))),))


def _values(model: Model, batch: TextBatch) -> np.ndarray:
    return model.scores(batch.texts)


def _pieces(texts: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each piece, and the text that it is in."""
    flat = Flat.of(texts.str.to_lowercase())
    data = flat.buffer
    count = max(0, len(data) - _PIECE + 1)
    value = np.zeros(count, np.uint64)
    for place in range(_PIECE):
        value = (value << np.uint64(8)) | data[place : place + count].astype(np.uint64)
    with np.errstate(over="ignore"):
        buckets = ((value * _MULTIPLIER) >> np.uint64(64 - BUCKETS_LOG)).astype(np.int64)
    owner = np.repeat(np.arange(len(texts)), np.diff(flat.edges))[:count]
    last = np.repeat(flat.edges[1:], np.diff(flat.edges))[:count]
    inside = np.arange(count) + _PIECE < last  # a text's own newline belongs to no piece
    return buckets[inside], owner[inside]
