"""Tokenizer: train a byte-level BPE vocabulary for a new model, on the first slice of the replay sources.

Byte level: every text can be encoded without an unknown token. The only special token is `<|endoftext|>`; it is bos,
eos and the end of each document. The same documents give the same bytes for any number of cores: counting runs in one
thread, and ties between merges are broken by the ids of the pairs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import StageFailed
from storage.settings import Count, Settings, identity
from tasks.corpus.documents import read_documents
from tasks.corpus.tokens.vocabulary import load_vocabulary, one_thread

STAGE = "tokenizer"
VERSION = 1

END_OF_TEXT = "<|endoftext|>"
_SMALLEST = 257  # 256 bytes and end-of-text


class TokenizerConfig(Settings):
    """The vocabulary size of a new model."""

    vocabulary: Count = identity(
        4096,
        ge=_SMALLEST,
        le=1_000_000,
        description="Number of words of the vocabulary, with the 256 bytes and end-of-text",
    )


@dataclass(frozen=True)
class TokenizerInputs:
    """The `documents` parts to train on."""

    documents: tuple[Input, ...]


@dataclass(frozen=True)
class TokenizerStats:
    """Size of the training text, and the vocabulary size that was reached."""

    documents_in: int
    bytes_in: int
    vocabulary: int


def run(config: TokenizerConfig, inputs: TokenizerInputs, draft: Draft) -> TokenizerStats:
    """Train and write part `tokenizer` (tokenizer.json, tokenizer_config.json), which AutoTokenizer loads.

    Raises StageFailed if there is no text. A small corpus may give a smaller vocabulary than requested; this is a
    warning.
    """
    paths = [path for part in inputs.documents for path in part.paths]
    counted = {"documents": 0, "bytes": 0}
    with one_thread():
        tokenizer = train(_texts(paths, counted), config.vocabulary)
    if not counted["bytes"]:
        raise StageFailed(
            "There is no text to train a tokenizer on: the replay sources' first slice is empty."
        )
    directory = draft.path / "tokenizer"
    directory.mkdir(exist_ok=True)
    write_tokenizer(tokenizer, directory)
    draft.part("tokenizer", "tokenizer")
    size = load_vocabulary(directory).size
    if size < config.vocabulary:
        draft.warn(
            f"The tokenizer has {size:,} of {config.vocabulary:,} words: the text holds no more pairs."
        )
    return TokenizerStats(documents_in=counted["documents"], bytes_in=counted["bytes"], vocabulary=size)


def train(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE with at most `vocabulary` entries, trained on the texts (pre-tokenized as for GPT-2)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write the two tokenizer files. `<|endoftext|>` is bos and eos; there is no padding token."""
    tokenizer.save(str(directory / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def _texts(paths: list[Path], counted: dict[str, int]) -> Iterator[str]:
    for path in paths:
        for chunk in read_documents([path], columns=["text"])["text"].chunks:
            for text in chunk.to_pylist():
                counted["documents"] += 1
                counted["bytes"] += len(text.encode())
                yield text
