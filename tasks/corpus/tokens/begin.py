"""The token after which a document begins: the end of the one before, or the base's own begin-of-text token.

Some bases were trained with a token of its own before each text (`<s>`), others with the end-of-text between texts.
`packing.begin` is the decision, and all parts of a run follow it: inputs in training, the first token in perplexity and
samples, and what benchmarks put before a question. With `eos`, the default, benchmarks begin as the tokenizer does it by
itself, which is what the harness does; so the two may differ, and then a run says it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from tokenizers import Tokenizer

from storage.errors import ConfigError
from tasks.corpus.tokens.vocabulary import token_text

EOS: Final = "eos"
BOS: Final = "bos"
Begin: TypeAlias = Literal["eos", "bos"]


@dataclass(frozen=True)
class Ends:
    """The tokens with which a tokenizer begins and ends a text. `bos` is None if it has none that is not `eos` too."""

    eos: str
    bos: str | None
    bos_id: int | None
    added: bool
    """Whether the tokenizer puts `bos` before a text by itself."""

    @property
    def facts(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"eos": self.eos, "bos": self.bos, "added": self.added}


def ends_of(directory: Path) -> Ends | None:
    """Of a model's directory, as it was published or as this project exports it. None if its files do not say it."""
    path = directory / "tokenizer.json"
    config, map_, facts = (
        _object(directory / name)
        for name in ("config.json", "special_tokens_map.json", "tokenizer_config.json")
    )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception:  # the library has no error class of its own
        return None
    added = {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()}

    def named(which: str) -> str | None:
        index = config.get(f"{which}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        said = token_text(facts.get(f"{which}_token")) or token_text(map_.get(f"{which}_token"))
        return said or (added.get(index) if isinstance(index, int) else None)

    eos, bos = named("eos"), named("bos")
    if eos is None:
        return None
    index = None if bos in (None, eos) else tokenizer.token_to_id(str(bos))
    if index is None:
        return Ends(eos, None, None, False)
    return Ends(eos, bos, index, tokenizer.encode("a").ids[:1] == [index])


def begin_id(directory: Path) -> int:
    """Id of the begin-of-text token of an export. Raises ConfigError if there is none beside the end-of-text."""
    found = ends_of(directory)
    if found is None or found.bos_id is None:
        raise ConfigError(refused(found))
    return found.bos_id


def refused(ends: Ends | None) -> str:
    """Why documents cannot begin with `bos`."""
    other = "" if ends is None else f" beside {_plain(ends.eos)}, which ends a text"
    return (
        f"packing.begin is bos, but the base's tokenizer has no begin-of-text token{other}; leave it at eos"
    )


def told(ends: Ends | None, begin: Begin) -> str | None:
    """What documents begin with, in training and in benchmarks, in one line. None where there is one token for both."""
    if ends is None or ends.bos is None:
        return None
    bos, eos = _plain(ends.bos), _plain(ends.eos)
    both = f"the base's tokenizer has {bos} to begin a text and {eos} to end it"
    if begin == BOS:
        return (
            f"{both}: documents begin with {bos} in training, perplexity and benchmarks (packing.begin: bos)"
        )
    asked = (
        f"with {bos}, which it adds by itself" if ends.added else "with neither, as it adds none by itself"
    )
    return (
        f"{both}: documents begin after {eos} in training and perplexity (packing.begin: eos), benchmarks {asked}; "
        f"packing.begin: bos begins all of them with {bos}"
    )


def _plain(token: str) -> str:
    """A token of somebody else's file, for a message: short, and of characters that have no effect in a terminal."""
    return "".join(letter if letter.isprintable() else "·" for letter in token[:40])


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
