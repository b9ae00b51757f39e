"""Token ids from splintr, if they are proven equal to those of the model's own tokenizer.

splintr encodes about twenty times as fast as `tokenizers`, but is young. So it is checked every time: it must give the
reference's ids for a set of awkward texts, and for pieces of the documents at hand. If it does not, or cannot read the
tokenizer, the reference encodes. splintr never does three things: find special tokens in text (they are removed from
its definition), normalise (the reference does, to form C), or encode a document that spells an added token.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tokenizers.normalizers import NFC

from tasks.corpus.tokens.vocabulary import Vocabulary

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]

_SAMPLE_PIECES = 64
"""Number of evenly spaced documents of a batch from which one piece each is compared."""
_SAMPLE_CHARACTERS = 1500
_AWKWARD_TEXTS = 600
_AWKWARD = (
    *" \n\t\r\x00\x7f'.,!?-_=+<>|(){}\"\\/#@",
    *("a", "I", "the", "'s", "'S", "'re", "n't", "don", "7", "42", "1000", "x1", "  ", "    ", "\r\n"),
    *("é", "e\u0301", "\u0301", "ß", "ﬁ", "漢", "字", "🙂", "\u00a0", "\u2028", "\u0660", "\u1100\u1161"),
    *("\u0338", "http://a.b/c?d=1&e=2", "$x^2$", "İ", "ǆ", "\u200d", "\ufeff", "\U0001f469\u200d\U0001f4bb"),
)
_NORMAL = re.compile(
    "[^\x00-\u02ff\u0391-\u03ff\u0400-\u0482\u2010-\u2027\u2030-\u205e\u20a0-\u20bf\u2190-\u22ff"
    "\u2500-\u25ff\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3\U0001f300-\U0001f64f]"
)
"""Matches characters that may not be in form C: all except characters in form C with combining class 0 that never
combine with a character before them."""


def fast_encoder(vocabulary: Vocabulary) -> Encode | None:
    """An encoder with the results of `Vocabulary.encode`; None if splintr cannot read the tokenizer, or differs on the
    awkward texts."""
    import splintr

    if not isinstance(vocabulary.tokenizer.normalizer, NFC | None):
        return None
    try:
        rust = splintr.from_json_bytes(_definition(vocabulary))
    except Exception:  # the reference can read any tokenizer that splintr cannot
        return None
    encode = functools.partial(_encode, vocabulary, rust)
    return encode if same_ids(vocabulary, encode, awkward_texts(vocabulary)) else None


def encode_checked(
    vocabulary: Vocabulary, encode: Encode, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Encode with `encode`; with the reference, if `encode` differs from it on pieces of these texts."""
    if same_ids(vocabulary, encode, pieces_of(texts)):
        return encode(texts)
    return vocabulary.encode(texts)


def same_ids(vocabulary: Vocabulary, encode: Encode, texts: Sequence[str]) -> bool:
    """Whether both encoders give the same ids and lengths."""
    return all(np.array_equal(a, b) for a, b in zip(encode(texts), vocabulary.encode(texts), strict=True))


def pieces_of(texts: Sequence[str]) -> list[str]:
    """One piece from each of some evenly spaced texts (from all, if there are few), each at another place in its text."""
    step = max(1, len(texts) // _SAMPLE_PIECES)
    pieces = []
    for number, text in enumerate(texts[::step]):
        start = number * 7919 % max(1, len(text) - _SAMPLE_CHARACTERS)
        pieces.append(text[start : start + _SAMPLE_CHARACTERS])
    return pieces


def awkward_texts(vocabulary: Vocabulary) -> list[str]:
    """Random strings of signs, spaces, numbers, scripts and the tokenizer's own tokens, drawn with a fixed seed."""
    rng = random.Random(0)
    tokens = [token.content for token in vocabulary.tokenizer.get_added_tokens_decoder().values()]
    signs = [*_AWKWARD, *tokens[:40]]
    mixed = ["".join(rng.choices(signs, k=rng.randrange(25))) for _ in range(_AWKWARD_TEXTS)]
    planes = [(0x20, 0x7F), (0xA0, 0x2000), (0x2000, 0xD800), (0xE000, 0x1FAFF)]
    any_unicode = [
        "".join(chr(rng.randrange(*rng.choice(planes))) for _ in range(rng.randrange(40)))
        for _ in range(_AWKWARD_TEXTS)
    ]
    return mixed + any_unicode


def _definition(vocabulary: Vocabulary) -> bytes:
    """The tokenizer's definition without special tokens (text must not spell them), template and normaliser."""
    definition = json.loads(vocabulary.encoder.to_str())
    definition["added_tokens"] = [one for one in definition["added_tokens"] if not one["special"]]
    return json.dumps({**definition, "post_processor": None, "normalizer": None}).encode()


def _encode(vocabulary: Vocabulary, rust: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    spelling = [
        place
        for place, text in enumerate(texts)
        if any(token in text for token in vocabulary.added if token.strip(" "))
    ]
    ids, lengths = _plain(vocabulary, rust, texts)
    if not spelling:
        return ids, lengths
    slow_ids, slow_lengths = vocabulary.encode([texts[place] for place in spelling])
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    for place, part in zip(spelling, np.split(slow_ids, np.cumsum(slow_lengths)[:-1]), strict=True):
        parts[place] = part
        lengths[place] = len(part)
    return np.concatenate(parts), lengths


def _plain(vocabulary: Vocabulary, rust: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of each text, followed by end-of-text."""
    normalizer = vocabulary.tokenizer.normalizer
    if normalizer is not None:
        texts = [normalizer.normalize_str(text) if _NORMAL.search(text) else text for text in texts]
    encoded, offsets = rust.encode_batch_flat(list(texts))
    ids = np.frombuffer(encoded, np.uint32)
    lengths = np.diff(np.frombuffer(offsets, np.uint64).astype(np.int64)) + 1
    values = np.full(len(ids) + len(lengths), vocabulary.eot, np.uint32)
    text = np.ones(len(values), dtype=bool)
    text[np.cumsum(lengths) - 1] = False
    values[text] = ids
    return values, lengths
