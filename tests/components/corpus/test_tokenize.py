"""The same bytes by any number of worker processes, and from any process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
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


def tokens_of(
    tmp_path: Path, docs: Input, vocabulary: Input, store: str = "store", workers: Workers | None = None
) -> Artifact:
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


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(tmp_path: Path, small_tokenizer: Input) -> None:
    docs = documents(tmp_path, [["the cat sat on it"] * 50, ["a dog"] * 30])
    environment = dict(os.environ)
    alone = tokens_of(tmp_path, docs, small_tokenizer, "one")
    with Workers(2) as workers:
        together = tokens_of(tmp_path, docs, small_tokenizer, "two", workers)
    assert alone.part("tokens").digest == together.part("tokens").digest
    assert dict(os.environ) == environment


def test_training_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    script = (
        "import sys, hashlib; from tasks.corpus.tokenizer import train\n"
        "words = [f'w{i * i % 977} x{i % 31}' * 3 for i in range(4000)]\n"
        "print(hashlib.sha256(train(iter(words), 900).to_str().encode()).hexdigest())"
    )
    root = Path(tokenize.__file__).parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=root,
            env={**os.environ, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "2")
    }
    assert len(digests) == 1
