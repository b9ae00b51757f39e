"""The same bytes by any number of worker processes, and from any process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage.artifact import Input
from storage.workers import Workers
from tasks.corpus import tokenize
from tests.support.corpus.tokens import documents, tokens_of


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
