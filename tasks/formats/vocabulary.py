"""A tokenizer.json as the fields of a GGUF file.

llama.cpp has the code of a tokenizer, the file only its words. A byte-level BPE is known by a name of how it splits a text
before merging: each known name is tried on texts, and that which splits them as tokenizer.json does is taken. A BPE made
from SentencePiece merges by the scores of its words, without a table of merges: it is taken where both say the same. All
else is refused, because the file would load and read texts as other tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from storage.errors import ConfigError
from tasks.models.source import chat_template

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHARED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: tuple[tuple[str, bool, tuple[str, ...]], ...] = (
    ("gpt-2", False, (_WORDS,)),
    ("smollm", False, (r"\p{N}", _WORDS)),
    ("dbrx", False, (_SHARED % "{1,3}",)),
    ("llama-bpe", True, (_SHARED % "{1,3}",)),
    ("qwen2", False, (_SHARED % "",)),
)
"""(llama.cpp's name, whether a word that is in the vocabulary is taken whole, expressions that split, in this order):
those of GPT-2, SmolLM and StarCoder, DBRX (GPT-4's), Llama 3 and Qwen2."""
_TEXTS = (
    "It's 1999: we'LL see — THEY'RE “unbelievably” re-entered 12,345.67 times (naïve)… e.g. cafe\u0301 and ﬁne",
    "def f(x):\n\treturn  x ** 2   # 漢字かな 한글 🙂👍🏽\r\n\r\n\n   indented\n \n",
    "  leading,\ttabs \u00a0no-break\u3000wide  trailing   ",
    "a1b22c333d4444e55555 ٣٤٥٦ ½²Ⅷ x_y-z #hash @at http://ex.org/?q=1&r='s'S'T 'tis\u200dit",
    "हिन्दी ไทย Ελληνικά עִבְרִית العَرَبِيَّة !!!\n???\n\n$$$ <|x|> [y] {z}",
)


def add_tokenizer(writer: GGUFWriter, directory: Path, config: Any) -> None:
    """Add words, merges, special tokens and the chat template. `config`: the model's, with the number of words.

    Raises ConfigError if llama.cpp would split or merge a text otherwise.
    """
    spec = json.loads((directory / "tokenizer.json").read_bytes())
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    model = spec["model"]
    if model.get("type") != "BPE":
        raise _refusal(f"a tokenizer of the kind {model.get('type')}")
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal("a BPE with dropout or marks around words")
    words = _words(spec, tokenizer, int(config.vocab_size))
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(model["vocab"], merges, words))
        writer.add_add_space_prefix(_space_before(tokenizer))
        types = [
            TokenType.BYTE if kind == TokenType.NORMAL and _is_byte(word) else kind for word, kind in words
        ]
        types = [
            TokenType.UNKNOWN if word == model.get("unk_token") else kind
            for (word, _), kind in zip(words, types, strict=True)
        ]
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(splitting(tokenizer, bool(model.get("ignore_merges"))))
        writer.add_token_merges([" ".join(pair) for pair in merges])
        types = [kind for _, kind in words]
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types(types)
    _special(writer, tokenizer, config, model)
    if (template := chat_template(directory)) is not None:
        writer.add_chat_template(template)


def _refusal(what: str) -> ConfigError:
    return ConfigError(
        f"--format gguf: llama.cpp does not read {what} as this model does; export it as safetensors"
    )


def splitting(tokenizer: Tokenizer, whole_words: bool) -> str:
    """llama.cpp's name for how a byte-level BPE splits a text. Raises ConfigError if it has none that we know.

    A normalizer to NFC is passed over: llama.cpp has none, and text is in NFC almost always.
    """
    own = tokenizer.pre_tokenizer
    if own is None or not isinstance(tokenizer.normalizer, normalizers.NFC | None):
        raise _refusal("a tokenizer with a normalizer, or without a splitting of words")
    for name, takes_whole, expressions in _SPLITS:
        split = pre_tokenizers.Sequence(
            [
                *(pre_tokenizers.Split(Regex(one), "isolated") for one in expressions),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if takes_whole == whole_words and all(_pieces(split, text) == _pieces(own, text) for text in _TEXTS):
            return name
    raise _refusal(
        "a tokenizer that splits words in another way than those of GPT-2, SmolLM, GPT-4, Llama 3 and Qwen2"
    )


def _pieces(split: Any, text: str) -> list[str]:
    return [piece for piece, _ in split.pre_tokenize_str(text)]


def _words(spec: Mapping[str, Any], tokenizer: Tokenizer, rows: int) -> list[tuple[str, TokenType]]:
    """Each word with its type, as many as the embedding has rows: what is between the two is unused."""
    added = {entry["id"]: entry for entry in spec["added_tokens"]}
    by_id = {number: word for word, number in spec["model"]["vocab"].items()}
    by_id |= {number: entry["content"] for number, entry in added.items()}
    if (most := max(by_id)) >= rows:
        raise ConfigError(
            f"--format gguf: the tokenizer has {most + 1:,} words, the embedding {rows:,} rows; export it as safetensors"
        )
    found = []
    for number in range(rows):
        if number in added:
            special = added[number]["special"]
            found.append((by_id[number], TokenType.CONTROL if special else TokenType.USER_DEFINED))
        elif number in by_id:
            found.append((by_id[number], TokenType.NORMAL))
        else:
            found.append((f"[PAD{number}]", TokenType.UNUSED))
    return found


def _is_byte(word: str) -> bool:
    return len(word) == 6 and word.startswith("<0x") and word.endswith(">")


def _scores(
    vocabulary: Mapping[str, int], merges: list[tuple[str, ...]], words: list[tuple[str, TokenType]]
) -> list[float]:
    """Scores by which merging the best pair first is merging by the table. Raises ConfigError if there are none."""
    table = set(merges)
    for word in vocabulary:
        for at in range(1, len(word)):
            pair = (word[:at], word[at:])
            if pair not in table and pair[0] in vocabulary and pair[1] in vocabulary and not _is_byte(word):
                raise _refusal("a byte-fallback BPE that does not merge every pair of words that is a word")
    rank: dict[str, int] = {}
    best = -1
    for number, (left, right) in enumerate(merges):
        word = left + right
        if word in rank and best != rank[word]:
            raise _refusal("a byte-fallback BPE that does not merge in the order of its words")
        if word not in rank:
            best = rank[word] = number
    return [-float(rank[word]) - 1.0 if word in rank else 0.0 for word, _ in words]


def _space_before(tokenizer: Tokenizer) -> bool:
    """Whether a blank is put before a text. Raises ConfigError if a text is changed in another way before merging."""
    empty = Tokenizer.from_str(tokenizer.to_str())
    found = set()
    for text in ("it is", "don't  stop", "Ünï\u0301 ﬁ \n x"):
        piece = empty.normalizer.normalize_str(text) if empty.normalizer is not None else text
        pieces = [piece] if empty.pre_tokenizer is None else _pieces(empty.pre_tokenizer, piece)
        marked = text.replace(" ", "▁")
        joined = "".join(pieces)
        if len(pieces) != 1 or joined not in (marked, f"▁{marked}"):
            raise _refusal("a byte-fallback BPE with this normalizer or splitting of words")
        found.add(joined != marked)
    if len(found) != 1:
        raise _refusal("a byte-fallback BPE that puts a blank before some texts")
    return found.pop()


def _special(writer: GGUFWriter, tokenizer: Tokenizer, config: Any, model: Mapping[str, Any]) -> None:
    ends = config.eos_token_id
    begin, end = config.bos_token_id, ends[0] if isinstance(ends, list) else ends
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    around = tokenizer.encode("a", add_special_tokens=True).ids
    before, after = around != plain and around[0] == begin, around != plain and around[-1] == end
    if around != [*([begin] if before else []), *plain, *([end] if after else [])]:
        raise _refusal(
            "a tokenizer that puts other tokens around a text than the model's begin and end of text"
        )
    if begin is not None:
        writer.add_bos_token_id(begin)
    if end is not None:
        writer.add_eos_token_id(end)
    if config.pad_token_id is not None and 0 <= config.pad_token_id < config.vocab_size:
        writer.add_pad_token_id(config.pad_token_id)
    if (unknown := model.get("unk_token")) is not None and (
        number := tokenizer.token_to_id(unknown)
    ) is not None:
        writer.add_unk_token_id(number)
    writer.add_add_bos_token(before)
    writer.add_add_eos_token(after)
