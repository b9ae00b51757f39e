"""Tokenize: turn documents into token shards, one shard of tokens per shard of documents.

The ids are those of the model's own tokenizer, whichever library computes them (fast_ids.py). Each document ends with
the end-of-text id, and no text can spell a special token (vocabulary.py). Nothing is dropped: documents in = documents
out.

A tokenizer without a pre-tokenizer treats a whole document as one word. The merge is O(n log n), so a document of 9
MB, or of 2 MB without a space, takes seconds and need not be cut.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import BadInput
from storage.settings import Settings
from storage.tokens import write_shard
from tasks.corpus.documents import read_documents
from tasks.corpus.tokens.fast_ids import Encode, encode_checked, fast_encoder
from tasks.corpus.tokens.vocabulary import (
    Vocabulary,
    can_spell_specials,
    kind_of,
    load_vocabulary,
    one_thread,
    tokenizer_directory,
)

STAGE = "tokenize"
VERSION = 1
COMPONENTS = {"bpe": 1, "unigram": 1, "wordpiece": 1, "wordlevel": 1, "special": 2}
"""Versions of how text becomes ids, by the kind of the tokenizer's model (tokenizer.json); `special`: of how a text is
kept from spelling a special token, where the model has them among its pieces."""

_BATCH_BYTES = 4_000_000
_BATCH_DOCUMENTS = 1024


class TokenizeConfig(Settings):
    """No options: the model's tokenizer decides everything."""


@dataclass(frozen=True)
class TokenizeInputs:
    """`documents` of one slice, and the `tokenizer` part of the base model (or of the stage `tokenizer`)."""

    documents: Input
    tokenizer: Input


@dataclass(frozen=True)
class TokenizeStats:
    """`tokens` include end-of-text; bytes are UTF-8 text."""

    documents_in: int
    documents_out: int
    documents_dropped: int
    bytes_in: int
    tokens: int
    bytes_per_token: float
    unknown_tokens: int


def components(config: TokenizeConfig, inputs: TokenizeInputs) -> Iterator[str]:
    """The kind of the tokenizer; `special` if its model could make a special token of text."""
    directory = tokenizer_directory(inputs.tokenizer.paths)
    yield kind_of(directory)
    if can_spell_specials(directory):
        yield "special"


def run(config: TokenizeConfig, inputs: TokenizeInputs, draft: Draft) -> TokenizeStats:
    """Write part `tokens`. Raises BadInput if the tokenizer cannot be used."""
    directory = tokenizer_directory(inputs.tokenizer.paths)
    loaded(directory, inputs.tokenizer.digest)
    jobs = {path.parent.name: (path, directory, inputs.tokenizer.digest) for path in inputs.documents.paths}
    if len(jobs) != len(inputs.documents.files):
        raise BadInput("Two document shards have the same name.")
    shards = draft.shards("tokens", jobs, tokenize_shard)
    total = {
        name: sum(shard[name] for shard in shards.values()) for name in ("rows", "tokens", "bytes", "unknown")
    }
    return TokenizeStats(
        documents_in=total["rows"],
        documents_out=total["rows"],
        documents_dropped=0,
        bytes_in=total["bytes"],
        tokens=total["tokens"],
        bytes_per_token=round(total["bytes"] / total["tokens"], 6) if total["tokens"] else 0.0,
        unknown_tokens=total["unknown"],
    )


def tokenize_shard(job: tuple[Path, Path, str], directory: Path) -> dict[str, Any]:
    """Tokenize one document file; write `tokens.arrow`. Job: (file, tokenizer's directory, tokenizer's digest).

    Returns the counts: rows, tokens, bytes, unknown.
    """
    documents, tokenizer, digest = job
    with one_thread():
        vocabulary, fast = tools(tokenizer, digest)
        table = read_documents([documents], columns=["id", "text"])
        values, lengths = encode_column(vocabulary, fast, table["text"])
    write_shard(
        directory / "tokens.arrow",
        table["id"].to_numpy(),
        values,
        lengths,
        eot=vocabulary.eot,
        vocabulary=vocabulary.size,
        tokenizer=digest,
    )
    unknown = 0 if vocabulary.unknown is None else int(np.count_nonzero(values == vocabulary.unknown))
    return {
        "rows": len(table),
        "tokens": len(values),
        "bytes": int(pc.sum(pc.binary_length(table["text"])).as_py() or 0),
        "unknown": unknown,
    }


@functools.lru_cache(maxsize=2)
def loaded(directory: Path, digest: str) -> Vocabulary:
    """The tokenizer in a directory, read once per process. `digest` distinguishes tokenizers in the cache."""
    return load_vocabulary(directory)


@functools.lru_cache(maxsize=2)
def tools(directory: Path, digest: str) -> tuple[Vocabulary, Encode | None]:
    """The tokenizer and, if one exists, the fast encoder with the same results. Made once per process."""
    vocabulary = loaded(directory, digest)
    return vocabulary, fast_encoder(vocabulary)


def encode_column(
    vocabulary: Vocabulary, fast: Encode | None, texts: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts (no nulls), each ended by end-of-text: uint32 [tokens]; and their lengths, int64 [texts]."""
    encoded = [
        encode_checked(vocabulary, fast, some) if fast else vocabulary.encode(some)
        for some in _batches(texts)
    ]
    values = np.concatenate([values for values, _ in encoded] or [np.zeros(0, np.uint32)])
    lengths = np.concatenate([lengths for _, lengths in encoded] or [np.zeros(0, np.int64)])
    return values, lengths


def _batches(texts: pa.ChunkedArray) -> Iterator[list[str]]:
    """The texts in batches of a few megabytes, so that memory never holds all encodings of a large shard."""
    if not len(texts):
        return
    ends = np.cumsum(pc.binary_length(texts).to_numpy())
    start = 0
    while start < len(texts):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + _BATCH_BYTES, side="right"))
        end = min(max(end, start + 1), start + _BATCH_DOCUMENTS)
        yield texts.slice(start, end - start).to_pylist()
        start = end
