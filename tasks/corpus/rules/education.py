"""Education score of documents: the source's own score (FineWeb-Edu's `score`), or that of a local classifier.

FineWeb-Edu (Penedo et al. 2024, arXiv:2406.17557, section 4) keeps documents of 3 and more. Its `int_score` is
rounded, so `int_score >= 3` admits 2.5. Here the raw score counts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from storage.errors import ConfigError
from tasks.corpus.rules.rule import Family, TextBatch, at_least

RULE = "education"
_TEXTS_AT_A_TIME = 16
_TOKENS = 512  # as in the training and use of FineWeb-Edu's classifier
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Classifier:
    """A directory with a transformers sequence classifier that returns one number, and the digest of its files."""

    directory: Path
    digest: str


def find_classifier(directory: Path) -> Classifier:
    """Raises ConfigError if a file is missing or the model does not return one number. Remote code is never run."""
    missing = [name for name in _FILES if not (directory / name).is_file()]
    if missing:
        raise ConfigError(f"corpus.filter.edu_classifier: {directory} has no {', '.join(missing)}")
    digest = hashlib.sha256()
    for path in sorted(
        path for path in directory.iterdir() if path.suffix in (".json", ".safetensors", ".txt")
    ):
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return Classifier(directory, digest.hexdigest())


def own_scores(meta: pl.Series) -> np.ndarray:
    """The number `score` in each document's metadata (JSON), or NaN: float64, shape (documents,)."""
    found = meta.str.json_path_match("$.score").cast(pl.Float64, strict=False)
    return found.fill_null(np.nan).to_numpy().astype(np.float64)


def scores(batch: TextBatch, classifier: Path | None) -> np.ndarray:
    """The source's own score, else the classifier's. Infinite (never dropped) if there is neither."""
    meta = pl.Series([None] * len(batch), dtype=pl.String) if batch.meta is None else batch.meta
    found = own_scores(meta)
    without = np.flatnonzero(np.isnan(found))
    if classifier is None or not len(without):
        found[without] = np.inf
    else:
        found[without] = classified(batch.texts.gather(pl.Series(without)).to_list(), classifier)
    return found


def classified(texts: list[str], directory: Path) -> np.ndarray:
    """The classifier's number for each text, from its first 512 tokens: float64, shape (texts,).

    One thread and a fixed batch size, so that the same texts get the same bits in every worker.
    """
    import torch

    tokenizer, model = _loaded(directory)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    try:
        with torch.inference_mode():
            for i in range(0, len(texts), _TEXTS_AT_A_TIME):
                some = texts[i : i + _TEXTS_AT_A_TIME]
                given = tokenizer(
                    some, padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt"
                )
                found.append(model(**given).logits.squeeze(-1).double().numpy())
    finally:
        torch.set_num_threads(threads)
    return np.concatenate(found) if found else np.zeros(0)


def family(least: float, classifier: Path | None) -> Family:
    """Keep texts whose score is `least` or more."""
    return Family((at_least(RULE, least, partial(scores, classifier=classifier)),))


@cache
def _loaded(directory: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(
        directory, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    if model.config.num_labels != 1:
        raise ConfigError(
            f"corpus.filter.edu_classifier: {directory} has {model.config.num_labels} labels, but a score is one number"
        )
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return tokenizer, model.eval().float()
