"""A text that a model continues, piece by piece as it is written: what `onward generate` shows. Nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tasks.corpus.tokens.begin import Begin, begin_id
from tasks.evaluation.model import TextModel, device_of, end_of_text, load_model, load_text_tokenizer
from tasks.evaluation.samples import draw, tokens_after


@dataclass(frozen=True)
class Way:
    """How a text is continued: at most `tokens` tokens, drawn from the fewest with `top_p` of the probability.

    With temperature 0 the most likely token is taken. All models use the same random number at the same place.
    """

    tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


def open_model(export: Path, begin: Begin) -> TextModel:
    """The model of an export, in float32, on a GPU if there is one. Raises ConfigError or BadInput if it is none."""
    device, eot = device_of("auto"), end_of_text(export)
    model = load_model(export, device, 2)
    return TextModel(
        model, device, load_text_tokenizer(export), eot, eot if begin == "eos" else begin_id(export)
    )


def pieces(read: TextModel, prompt: str, way: Way, warn: Callable[[str], None]) -> Iterator[str]:
    """The text after a prompt, in pieces of whole letters: one for each token, empty within a letter, and a last one.

    The prompt is the beginning of a document, as in training. Of a prompt that is too long the end is read, with a
    warning.
    """
    (ids,) = read.ids_of([prompt])
    positions = getattr(read.model.config, "max_position_embeddings", None)
    most = way.tokens if positions is None else min(way.tokens, positions - 1)
    if positions is not None and len(ids) > positions - most:
        warn(
            f"the model has {positions:,} positions: of the {len(ids):,} tokens of the text, the last "
            f"{positions - most:,} are read"
        )
        ids = ids[-(positions - most) :]
    drawn = np.random.default_rng([way.seed, 0]).random(most)

    def choose(logits: np.ndarray, place: int) -> int:
        if way.temperature == 0:
            return int(logits.argmax())
        return draw(logits, drawn[place], way.temperature, way.top_p)

    start = len(read.tokenizer.decode(ids))
    found, shown = list(ids), start
    for token in tokens_after(read.model, ids, most, read.eot, choose):
        found.append(token)
        text = read.tokenizer.decode(found)
        if text.endswith("\ufffd"):  # a part of a letter: the next token has the rest
            yield ""
            continue
        yield text[shown:]
        shown = len(text)
    yield read.tokenizer.decode(found)[shown:]
