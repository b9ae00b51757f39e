"""A tokenizer as the corpus uses it: text becomes ids of ordinary tokens only.

Special tokens are switched off while encoding, so the text `<|endoftext|>` in a document cannot end it. Nothing is
added before or after a text (no bos), and nothing is cut or padded.

Switching them off is not enough where the tokenizer's model has them among its pieces: Unigram finds the piece `</s>`
anywhere in a text, WordPiece and WordLevel take a word that is spelled so. SentencePiece never makes a control piece of
text (types CONTROL and UNKNOWN in its model); here such a piece keeps its id, but has a name that no text has.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from storage.errors import BadInput

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""The files of a tokenizer. A `tokenizer` part contains exactly these."""


_HIDE = "\U0010ffff"
"""Around the name of a hidden piece. Unicode reserves this code point: no text is exchanged with it."""


@dataclass(frozen=True)
class Vocabulary:
    """A loaded tokenizer. `size` is its largest id plus one. `encoder`: the same, but no text can spell a special token."""

    tokenizer: Tokenizer
    encoder: Tokenizer
    eot: int
    size: int
    unknown: int | None

    @functools.cached_property
    def added(self) -> list[str]:
        """The added tokens that plain text can spell: those that are not special."""
        known = self.tokenizer.get_added_tokens_decoder().values()
        return [token.content for token in known if not token.special]

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 [size]: bytes of text behind each id of a byte-level vocabulary (one character is one byte)."""
        sizes = np.zeros(self.size, np.int64)
        for token, index in self.tokenizer.get_vocab(with_added_tokens=False).items():
            sizes[index] = len(token)
        for index, added in self.tokenizer.get_added_tokens_decoder().items():
            sizes[index] = len(added.content.encode())
        return sizes

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the texts one after another, each ended by end-of-text, and the length of each including it.

        Returns uint32 [sum of lengths] and int64 [texts]. Raises BadInput if a text itself produced an end-of-text id.
        """
        if any(_HIDE in text for text in texts):
            texts = [text.replace(_HIDE, "\ufffd") for text in texts]
        encodings = self.encoder.encode_batch_fast(texts, add_special_tokens=False)
        lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings)) + 1
        values = np.full(int(lengths.sum()), self.eot, np.uint32)
        start = 0
        for encoding, length in zip(encodings, lengths.tolist(), strict=True):
            values[start : start + length - 1] = encoding.ids
            start += length
        if np.count_nonzero(values == self.eot) != len(texts):
            raise BadInput("The tokenizer makes its end-of-text token out of plain text; choose another.")
        return values, lengths


@functools.lru_cache(maxsize=8)  # each slice asks, and an artifact does not change
def kind_of(directory: Path) -> str:
    """The kind of the tokenizer's model: bpe, unigram, wordpiece or wordlevel."""
    definition = json.loads((directory / "tokenizer.json").read_bytes())
    return str(definition["model"].get("type", "BPE")).lower()  # old files of BPE name none


def load_vocabulary(directory: Path) -> Vocabulary:
    """Load the tokenizer in a directory with `TOKENIZER_FILES`.

    Raises BadInput if a file is missing, or if no known end-of-text (`eos_token`) is named.
    """
    try:
        facts = json.loads((directory / "tokenizer_config.json").read_bytes())
        definition = json.loads((directory / "tokenizer.json").read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{directory}: no usable tokenizer ({error}).") from error
    name = token_text(facts.get("eos_token"))
    for added in definition.get("added_tokens", []):
        if added["content"] == name:
            added["special"] = True  # otherwise plain text could spell it
    tokenizer = _for_text(definition)
    eot = None if name is None else tokenizer.token_to_id(name)
    if eot is None:
        raise BadInput(f"{directory}: the tokenizer has no end-of-text token (eos_token is {name!r}).")
    unknown = getattr(tokenizer.model, "unk_token", None)
    return Vocabulary(
        tokenizer=tokenizer,
        encoder=_for_text(without_special_pieces(definition)) if spelled_specials(definition) else tokenizer,
        eot=eot,
        size=1 + max(tokenizer.get_vocab(with_added_tokens=True).values()),
        unknown=None if unknown is None else tokenizer.token_to_id(unknown),
    )


def _for_text(definition: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def spelled_specials(definition: dict[str, Any]) -> set[str]:
    """The special tokens that the tokenizer's model can make of a text that spells them.

    These are all that are among its pieces; of BPE, which joins pairs, those that a merge gives, or all if the model looks
    up whole words first (`ignore_merges`).
    """
    model = definition["model"]
    special = {one["content"] for one in definition.get("added_tokens", []) if one["special"]}
    pieces = model.get("vocab", ())
    special &= {piece for piece, _ in pieces} if isinstance(pieces, list) else set(pieces)
    if str(model.get("type", "BPE")) == "BPE" and not model.get("ignore_merges"):
        special &= {"".join(_pair(merge)) for merge in model.get("merges", ())}
    return special


def without_special_pieces(definition: dict[str, Any]) -> dict[str, Any]:
    """The definition with other names for the special tokens that its model could spell. Every id stays."""
    hidden = spelled_specials(definition)

    def name(piece: str) -> str:
        return f"{_HIDE}{piece}{_HIDE}" if piece in hidden else piece

    model = dict(definition["model"])
    pieces = model["vocab"]
    if isinstance(pieces, list):
        model["vocab"] = [[name(piece), score] for piece, score in pieces]
    else:
        model["vocab"] = {name(piece): index for piece, index in pieces.items()}
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = name(model["unk_token"])
    if "merges" in model:
        model["merges"] = [
            merge for merge in model["merges"] if not hidden & {*_pair(merge), "".join(_pair(merge))}
        ]
    added = [{**one, "content": name(one["content"])} for one in definition.get("added_tokens", [])]
    return {**definition, "model": model, "added_tokens": added}


def _pair(merge: Any) -> list[str]:
    """The two pieces of a merge: a list, or, in older files, a text with a space between."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)


@functools.lru_cache(maxsize=8)
def can_spell_specials(directory: Path) -> bool:
    """Whether there are `spelled_specials` in the tokenizer of a directory."""
    return bool(spelled_specials(json.loads((directory / "tokenizer.json").read_bytes())))


def tokenizer_directory(paths: Iterable[Path]) -> Path:
    """The directory of a `tokenizer` part's files. Raises BadInput unless they are the two files in one directory."""
    found = {path.name: path.parent for path in paths if path.name in TOKENIZER_FILES}
    if sorted(found) != sorted(TOKENIZER_FILES) or len(set(found.values())) != 1:
        raise BadInput(
            f"A tokenizer is {' and '.join(TOKENIZER_FILES)} in one directory, not {sorted(found)}."
        )
    return found[TOKENIZER_FILES[0]]


def token_text(entry: Any) -> str | None:
    """The text of a token in tokenizer_config.json: a string, or an object with `content`. None for anything else."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Context in which `tokenizers` uses the calling thread only: shards already occupy the cores."""
    names = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
