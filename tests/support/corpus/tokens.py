"""Documents, tokenizers and the tokens that the tokenize stage makes of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from storage.artifact import Artifact, Input
from storage.testing import artifact_of
from storage.workers import Workers
from tasks.corpus import tokenize, tokenizer
from tasks.corpus.documents import document_ids, write_documents


def documents(root: Path, shards: list[list[str]], name: str = "general") -> Input:
    """A `documents` part with these texts, a shard for each list."""
    digest, first = hashlib.sha256(), 0
    for number, texts in enumerate(shards):
        table = pa.table(
            {
                "id": document_ids(name, first, len(texts)),
                "source": [name] * len(texts),
                "text": pa.array(texts, pa.large_string()),
                "meta": pa.array(["{}"] * len(texts), pa.large_string()),
            }
        )
        path = root / "documents" / f"{number:04d}" / "part.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_documents(path, table)
        digest.update(path.read_bytes())
        first += len(texts)
    files = tuple(f"documents/{number:04d}/part.parquet" for number in range(len(shards)))
    return Input("decontaminate", "0" * 64, "documents", digest.hexdigest(), root, files)


def tokenizer_input(directory: Path, source: Path, eos: str) -> Input:
    """A `tokenizer` part of a tokenizer.json, closed by the token named."""
    (directory / "export").mkdir(parents=True)
    shutil.copy(source, directory / "export" / "tokenizer.json")
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    (directory / "export" / "tokenizer_config.json").write_text(json.dumps(facts))
    files = ("export/tokenizer.json", "export/tokenizer_config.json")
    return Input(
        "base", "1" * 64, "tokenizer", hashlib.sha256(source.read_bytes()).hexdigest(), directory, files
    )


def tokens_of(
    tmp_path: Path, docs: Input, vocabulary: Input, store: str = "store", workers: Workers | None = None
) -> Artifact:
    """What the tokenize stage makes of documents with a tokenizer, in a real store."""
    inputs = tokenize.TokenizeInputs(docs, vocabulary)
    return artifact_of(tokenize, tokenize.TokenizeConfig(), inputs, tmp_path / store, workers)


@pytest.fixture(scope="module")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Input:
    """A tokenizer trained by the tokenizer stage on a few sentences."""
    root = tmp_path_factory.mktemp("tokenizer")
    docs = documents(root, [["the cat sat on the mat and the dog sat on the cat"] * 20])
    inputs = tokenizer.TokenizerInputs((docs,))
    made = artifact_of(tokenizer, tokenizer.TokenizerConfig(vocabulary=280), inputs, root / "store")
    return made.part("tokenizer")
