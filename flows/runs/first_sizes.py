"""The sizes of a first configuration: what is held out, budgets, sequence length and steps, by the text and the machine."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from storage.counts import rounded_count
from storage.paths import home
from storage.workers import usable_cores
from tasks.corpus.pieces import LONG
from tasks.corpus.reading.sample import Folder

EPOCHS = 4
"""Reading a text so often is nearly as good as new text (Muennighoff et al. 2023, arXiv 2305.16264)."""
_LARGEST_SMALL = 800_000
"""Tokens at which the small model's run takes minutes on a laptop."""
_SLICE_BYTES = 12
"""Bytes read at a time for each token that the small model is pre-trained on: of Python's documentation, with its many
repetitions, about a tenth of a token is left of a byte."""
_LARGEST = 1_000_000_000
_LEAST_SLICE = 2_000_000
_STEPS = 62
"""Steps to the first budget, at least. Below 60, a warning is given (checks.py)."""
_MOST_STEPS = 200
"""Steps of the small model's pre-training, at most: with little text a step is small, and takes hardly less time."""
HELD_OUT = 40
"""Documents held out that are aimed at."""
_SURELY = 15
"""Documents held out that are aimed at where there are few: a draw gives some fewer."""
_PIECES = (4_000, 2_000, 1_000, 500)
"""Sizes of held-out pieces, in bytes. The largest is taken of which enough documents give one."""
_MOST_LONG = 0.7
"""Share of the documents from which on pieces of them are held out, and not whole ones."""
_MOST_HELD = 0.45
"""Share of a few documents that is held out, at most. The configuration allows less than a half."""
_WORDS_OF_A_QUESTION = 125
"""The most that a question of held-out text takes (tasks/evaluation/questions.py)."""
_HOURS = 2.0
_OPERATIONS = 60e9
"""Operations per second of one core in training, cautiously."""


@dataclass(frozen=True)
class Held:
    """What is held out of the domain's text."""

    fraction: float
    """Of the first slice's documents."""
    piece: int | None
    """Bytes that are held out of each long document; None: documents are held out whole."""
    texts: int
    """How many are held out, as expected."""
    questions: int
    """How many questions they give, as expected."""
    tokens: float
    """Share of the text that is left to train on."""

    @classmethod
    def of(cls, domain: Folder, slice_bytes: int | None) -> Held:
        """`slice_bytes`: None if the first slice is all of the text."""
        documents = domain.documents
        if slice_bytes is not None:
            documents = math.ceil(documents * min(1.0, slice_bytes / max(1, domain.size)))
        fraction = _holdout(documents)
        if documents * fraction < HELD_OUT:
            for piece in _PIECES:  # a fifth more than needed, as the filter edits texts
                long = sum(len(text.encode()) >= 1.2 * LONG * piece for text in domain.texts) / len(
                    domain.texts
                )
                held = round(documents * long)
                if long >= _MOST_LONG or held >= HELD_OUT:
                    left = 1 - held * piece / max(1, domain.size) - fraction * (1 - long)
                    return cls(fraction, piece, held, int(documents * _questions(domain, piece)), left)
            fraction = max(fraction, min(_MOST_HELD, math.ceil(100 * _SURELY / documents) / 100))
        held = round(documents * fraction)
        return cls(fraction, None, held, int(held * _questions(domain, None)), 1 - fraction)


def _questions(domain: Folder, piece: int | None) -> float:
    """How many questions a document, or a piece of so many bytes, gives: three at most, the mean of a sample."""
    found = 0
    for text in domain.texts:
        words, size = len(text.split()), max(1, len(text.encode()))
        seen = words if piece is None else words * piece / size if size >= LONG * piece else 0
        found += min(3, int(seen / _WORDS_OF_A_QUESTION))
    return found / len(domain.texts)


@dataclass(frozen=True)
class Sizes:
    """What follows from how much text there is."""

    weight: float
    held: Held
    budgets: list[int]
    why_most: str
    length: int
    why_length: str
    batch: int
    pretrain: int
    """Tokens that the small model is pre-trained on."""

    @property
    def slice_bytes(self) -> int:
        """Text that is read at a time for the small model."""
        return max(_LEAST_SLICE, _SLICE_BYTES * self.pretrain)

    @classmethod
    def of(cls, domain: Folder, tokens: int, base: str | None, replay: Folder | None) -> Sizes:
        """`tokens`: of the domain's text that the filter keeps."""
        weight = 0.9 if base is None or replay is not None else 1.0
        length, why_length = _length(base, tokens)
        first = cls._trained(Held.of(domain, None), tokens, weight, base, length)
        slice_bytes = None if base is not None else max(_LEAST_SLICE, first[-1] * _SLICE_BYTES)
        held = Held.of(domain, slice_bytes)
        budgets, why_most, batch, pretrain = cls._trained(held, tokens, weight, base, length)
        return cls(weight, held, budgets, why_most, length, why_length, batch, pretrain)

    @staticmethod
    def _trained(
        held: Held, tokens: int, weight: float, base: str | None, length: int
    ) -> tuple[list[int], str, int, int]:
        """Budgets and why, tokens of a step, and tokens of the small model's pre-training."""
        most, why_most = _largest(int(tokens * held.tokens), weight, base)
        budgets = [rounded(0.4 * most), rounded(most)] if most >= 200_000 else [rounded(most)]
        batch = _batch(budgets[0], length)
        pretrain = min(max(100_000, min(400_000, budgets[-1])), _MOST_STEPS * batch)
        return budgets, why_most, batch, rounded(pretrain)


def _holdout(documents: int) -> float:
    """Share of the first slice's documents."""
    return min(0.2, max(0.005, math.ceil(1000 * HELD_OUT / max(1, documents)) / 1000))


def _largest(tokens: int, weight: float, base: str | None) -> tuple[int, str]:
    """The last budget, and why it is so large."""
    read = int(EPOCHS * tokens / weight)
    often = f"the text, about {rounded_count(tokens)} tokens, is read {EPOCHS} times at most"
    if base is None:
        capped = min(read, _LARGEST_SMALL)
        return capped, often if capped == read else "what the small model takes in minutes"
    import torch

    if torch.cuda.is_available():
        capped = min(read, _LARGEST)
        return capped, often if capped == read else "the paper's second budget"
    rate = _OPERATIONS * usable_cores() / (6 * _parameters(home() / base))
    capped = min(read, int(_HOURS * 3600 * rate))
    hours = f"about {_HOURS:g} hours of training on these {usable_cores()} cores, without a GPU"
    return capped, often if capped == read else hours


def _parameters(directory: Path) -> int:
    """Parameters of a local model; 135 million for one that is not here."""
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        return 135_000_000
    from safetensors import safe_open

    total = 0
    for path in weights:
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _length(base: str | None, tokens: int) -> tuple[int, str]:
    if base is None:
        return (256, "documents of a page or two") if tokens >= 50_000 else (128, "there is little text")
    positions = 1024
    config = home() / base / "config.json"
    if config.is_file():
        found = json.loads(config.read_bytes())
        positions = int(found.get("max_position_embeddings") or found.get("n_positions") or positions)
    return min(
        1024, positions
    ), f"the model has {positions:,} positions" if positions < 1024 else "as in the paper"


def _batch(budget: int, length: int) -> int:
    """Tokens of a step: a power of two of sequences, so that the budget has about `_STEPS` steps."""
    sequences = max(1, min(524_288, budget // _STEPS) // length)
    return length * 2 ** int(math.log2(sequences))


def rounded(count: float) -> int:
    """Two figures."""
    size = 10 ** max(0, int(math.log10(count)) - 1)
    return int(count // size * size)
