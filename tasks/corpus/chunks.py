"""Fast encoding: the same ids as encoding each text whole, with every distinct chunk of text encoded once.

The pre-tokenizers of the GPT family look at a text as words, and none of their words goes on behind a
letter with anything but a letter, behind a digit with anything but a digit, or behind a visible character
with a space; nor do they look back. So a text may be cut there and each chunk encoded by itself: "of the
3rd." is "of", " the", " 3", "rd", ".". A shard has many times more chunks than distinct ones. Cutting,
finding the distinct and putting together go by column.

Cuts are made between ASCII characters only. Whether a tokenizer can be cut so is decided from its
definition (`divisible`), by a list of patterns known to have the property; every other tokenizer takes the
slow way, and so does a document that spells one of the tokenizer's added tokens.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from tasks.corpus.vocabulary import Vocabulary

_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_PATTERNS = frozenset(
    {
        _CONTRACTIONS + r"|\p{N}{1,3}" + _REST,  # cl100k: dolma2, Llama 3
        _CONTRACTIONS + r"|\p{N}" + _REST,  # Qwen 2
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    }
)
_LETTER, _DIGIT, _OTHER, _SPACE, _HIDDEN, _WIDE = range(6)
_TOGETHER_BYTES = 32_768
_ENCODED_AT_ONCE = 16_384
_GATHERED_AT_ONCE = 4_000_000


def divisible(tokenizer: Tokenizer) -> bool:
    """Whether texts that spell no added token may be cut as above without changing their ids."""
    definition = json.loads(tokenizer.to_str())
    model, normalizer = definition["model"], definition.get("normalizer")
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and (normalizer is None or normalizer["type"] == "NFC")
        and _splits_words(definition.get("pre_tokenizer"))
        and not any(
            entry["lstrip"] or entry["rstrip"] or entry["single_word"] for entry in _added(definition)
        )
    )


def _added(definition: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The added tokens that are found in plain text: those that are not special."""
    return [entry for entry in definition.get("added_tokens", []) if not entry["special"]]


def _splits_words(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether it cuts by a known pattern, and then turns bytes into characters, and no more."""
    if pre_tokenizer is None:
        return False
    kind = pre_tokenizer["type"]
    if kind == "ByteLevel":
        return bool(pre_tokenizer["use_regex"]) and not pre_tokenizer["add_prefix_space"]
    if kind != "Sequence" or len(pre_tokenizer["pretokenizers"]) != 2:
        return False
    split, level = pre_tokenizer["pretokenizers"]
    return (
        split["type"] == "Split"
        and (split["behavior"], split["invert"]) in (("Isolated", False), ("Removed", True))
        and split["pattern"].get("Regex") in _PATTERNS
        and level["type"] == "ByteLevel"
        and not level["use_regex"]
        and not level["add_prefix_space"]
    )


def encode_by_chunks(vocabulary: Vocabulary, texts: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """What `Vocabulary.encode` gives for the texts (no nulls), for a `divisible` tokenizer."""
    column = texts.cast(pa.large_string()).combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    slow = _spell_added_tokens(vocabulary, column)
    if slow.any():
        return _encode_mixed(vocabulary, column, slow)
    if not len(column):
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    index, distinct, documents = _cut(column)
    encoded, sizes = _encode_distinct(vocabulary, distinct)
    starts, per_chunk = np.cumsum(sizes) - sizes, sizes[index]
    ends = np.concatenate([[0], np.cumsum(per_chunk)])
    lengths = np.diff(ends[documents]) + 1
    values = np.full(int(lengths.sum()), vocabulary.eot, np.uint32)
    closing = np.cumsum(lengths) - 1
    text = np.ones(len(values), dtype=bool)
    text[closing] = False
    target = np.flatnonzero(text)
    for begin in range(0, len(index), _GATHERED_AT_ONCE):
        end = min(begin + _GATHERED_AT_ONCE, len(index))
        shift = np.repeat(starts[index[begin:end]] - ends[begin:end], per_chunk[begin:end])
        some = slice(int(ends[begin]), int(ends[end]))
        values[target[some]] = encoded[shift + np.arange(some.start, some.stop)]
    return values, lengths


def _spell_added_tokens(vocabulary: Vocabulary, column: pa.Array) -> np.ndarray:
    """[documents] bool. Runs of spaces are left out: no cut is made within one."""
    found = np.zeros(len(column), dtype=bool)
    for content in vocabulary.added:
        if content.strip(" "):
            found |= pc.match_substring(column, content).to_numpy(zero_copy_only=False)
    return found


def _encode_mixed(
    vocabulary: Vocabulary, column: pa.Array, slow: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    quick = pa.chunked_array([column.filter(pa.array(~slow))])
    quick_values, quick_lengths = encode_by_chunks(vocabulary, quick)
    slow_values, slow_lengths = vocabulary.encode(column.filter(pa.array(slow)).to_pylist())
    lengths = np.empty(len(column), np.int64)
    lengths[slow], lengths[~slow] = slow_lengths, quick_lengths
    of_slow = np.repeat(slow, lengths)
    values = np.empty(len(of_slow), np.uint32)
    values[of_slow], values[~of_slow] = slow_values, quick_values
    return values, lengths


@functools.cache
def _kinds() -> np.ndarray:
    """The kind of each byte."""
    kinds = np.full(256, _HIDDEN, np.uint8)
    kinds[0x21:0x7F] = _OTHER
    for first, last in ((b"a", b"z"), (b"A", b"Z")):
        kinds[first[0] : last[0] + 1] = _LETTER
    kinds[b"0"[0] : b"9"[0] + 1] = _DIGIT
    kinds[b" "[0]] = _SPACE
    kinds[0x80:] = _WIDE
    return kinds


def _cut(column: pa.Array) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """Each chunk's index among the distinct ones [chunks], those [distinct] as binary, and where each
    document begins and the last one ends among the chunks [documents + 1]."""
    _, offsets_buffer, data = column.buffers()
    bounds = np.frombuffer(offsets_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    raw = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    raw, bounds = raw[bounds[0] : bounds[-1]], bounds - bounds[0]
    kinds = _kinds()[raw]
    before, behind = kinds[:-1], kinds[1:]
    cut = np.zeros(len(raw) + 1, dtype=bool)
    if len(raw) > 1:
        cut[1:-1] = (before <= _DIGIT) & (before != behind) & (behind != _WIDE)
        cut[1:-1] |= (before == _OTHER) & (behind == _SPACE)
    cut[bounds] = True
    offsets = np.flatnonzero(cut)
    buffers = [None, pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(raw))]
    chunks = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)
    coded = chunks.dictionary_encode()
    return coded.indices.to_numpy(), coded.dictionary, np.searchsorted(offsets, bounds)


def _encode_distinct(vocabulary: Vocabulary, distinct: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Ids of the distinct chunks one after another, and how many each has."""
    together = _joinable(distinct)
    joined = _encode_joined(vocabulary, distinct.filter(pa.array(together)))
    if joined is None:
        together[:] = False
        joined = np.zeros(0, np.uint32), np.zeros(0, np.int64)
    alone = _encode_alone(vocabulary, distinct.filter(pa.array(~together)).cast(pa.large_string()))
    sizes = np.empty(len(distinct), np.int64)
    sizes[together], sizes[~together] = joined[1], alone[1]
    of_joined = np.repeat(together, sizes)
    values = np.empty(len(of_joined), np.uint32)
    values[of_joined], values[~of_joined] = joined[0], alone[0]
    return values, sizes


def _joinable(distinct: pa.Array) -> np.ndarray:
    """[distinct] bool: ASCII chunks that end with a letter and begin with none. A text of these alone is
    cut between all of them, so they can be encoded as one text: an encoding costs as much as some dozen
    words."""
    offsets = np.frombuffer(distinct.buffers()[1], np.int64)[: len(distinct) + 1]
    data = distinct.buffers()[2]
    if data is None or not offsets[-1]:
        return np.zeros(len(distinct), dtype=bool)
    kinds = _kinds()[np.frombuffer(data, np.uint8)[: offsets[-1]]]
    ascii_only = np.maximum.reduceat(kinds, offsets[:-1]) != _WIDE
    return ascii_only & (kinds[offsets[:-1]] != _LETTER) & (kinds[offsets[1:] - 1] == _LETTER)


def _encode_joined(vocabulary: Vocabulary, chunks: pa.Array) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids of the chunks encoded as long texts, and how many each has; None where a token reaches over a
    chunk's end, which the length of the tokens in bytes shows."""
    if not len(chunks):
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    offsets = np.frombuffer(chunks.buffers()[1], np.int64)[: len(chunks) + 1]
    text = memoryview(chunks.buffers()[2])
    marks = np.searchsorted(offsets, np.arange(0, int(offsets[-1]), _TOGETHER_BYTES))
    marks = np.unique(np.append(marks, len(chunks)))
    texts = [
        str(text[int(offsets[first]) : int(offsets[last])], "ascii")
        for first, last in itertools.pairwise(marks.tolist())
    ]
    values, lengths = vocabulary.encode(texts)
    kept = np.ones(len(values), dtype=bool)
    kept[np.cumsum(lengths) - 1] = False
    values = values[kept]
    reached = np.cumsum(vocabulary.token_bytes[values])
    last_tokens = np.searchsorted(reached, offsets[1:])
    if last_tokens[-1] >= len(values) or not np.array_equal(reached[last_tokens], offsets[1:]):
        return None
    return values, np.diff(last_tokens, prepend=-1)


def _encode_alone(vocabulary: Vocabulary, chunks: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    values: list[np.ndarray] = [np.zeros(0, np.uint32)]
    sizes: list[np.ndarray] = [np.zeros(0, np.int64)]
    for begin in range(0, len(chunks), _ENCODED_AT_ONCE):
        some, lengths = vocabulary.encode(chunks.slice(begin, _ENCODED_AT_ONCE).to_pylist())
        kept = np.ones(len(some), dtype=bool)
        kept[np.cumsum(lengths) - 1] = False
        values.append(some[kept])
        sizes.append(lengths - 1)
    return np.concatenate(values), np.concatenate(sizes)
