"""Stage `samples`: continue a fixed set of prompts, greedily and by seeded sampling, to be compared between models.

Each prompt is the beginning of a document, after the token that documents begin with in training. All models use the
same random number at the same place, so models with equal probabilities write the same text. On a CPU the same inputs
give the same text; on other devices rounding can decide a near tie.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.artifact import Input
from storage.draft import Draft
from storage.settings import Settings, execution, identity
from tasks.corpus.tokens.begin import EOS, Begin

STAGE = "samples"
VERSION = 1

PROMPTS = (
    "The most important thing to understand about",
    "Once upon a time, there was",
    "Plants need sunlight because",
    "The main difference between the two is that",
    "The capital of France is",
)
"""Continued in every run, before the user's own prompts. They say little about what should follow."""


class SamplesConfig(Settings):
    """The prompts, and how they are continued."""

    prompts: tuple[str, ...] = identity(PROMPTS, description="Beginnings that are continued.", min_length=1)
    tokens: int = identity(
        64, description="Tokens of a continuation at most; it ends at an end of text.", ge=1
    )
    temperature: float = identity(0.8, description="Logits are divided by it before drawing.", gt=0)
    top_p: float = identity(
        0.95, description="Drawn from the fewest tokens with this share of probability.", gt=0, le=1
    )
    seed: int = identity(0, description="Seed of what is drawn.", ge=0)
    max_length: int = identity(description="Tokens that the model is given at most.", ge=2)
    begin: Begin = identity(
        EOS,
        since="0.2",
        description="Token before a prompt: eos, or bos, the base's own begin-of-text token.",
    )
    device: str = execution("auto", description="auto, cpu or cuda.")


@dataclass(frozen=True)
class SamplesInputs:
    """A model (part `export`)."""

    model: Input


@dataclass(frozen=True)
class SamplesStats:
    """Number of prompts, of continuations (one per prompt and decoding) and of tokens written."""

    prompts: int
    samples: int
    tokens: int


def run(config: SamplesConfig, inputs: SamplesInputs, draft: Draft) -> SamplesStats:
    """Part `samples`: samples.json, rows {prompt, decoding (greedy, sampled), continuation, tokens, ended}.

    `ended`: the model ended the text itself. Raises ConfigError for a length that the model does not support.
    """
    from tasks.evaluation.model import execution_facts, load_text_model

    read = load_text_model(inputs.model, config.device, config.max_length, config.begin)
    written = min(config.tokens, config.max_length - 1)
    rows: list[dict[str, Any]] = []
    for number, whole in enumerate(read.ids_of(config.prompts)):
        ids = whole[-(config.max_length - written) :]
        for decoding, choose in _ways(config, number):
            found, ended = continued(read.model, ids, written, read.eot, choose)
            text = read.tokenizer.decode([*ids, *found])[len(read.tokenizer.decode(ids)) :]
            rows.append(
                {
                    "prompt": config.prompts[number],
                    "decoding": decoding,
                    "continuation": text,
                    "tokens": len(found),
                    "ended": ended,
                }
            )
            draft.progress(len(rows), 2 * len(config.prompts), "continuations")
    content = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    (draft.path / "samples.json").write_text(content, encoding="utf-8")
    draft.part("samples", "samples.json")
    draft.note(**execution_facts(read.device))
    return SamplesStats(len(config.prompts), len(rows), sum(row["tokens"] for row in rows))


Choose = Callable[[np.ndarray, int], int]
"""Chooses a token, from logits [vocabulary] and the place in the continuation."""


def _ways(config: SamplesConfig, prompt: int) -> list[tuple[str, Choose]]:
    drawn = np.random.default_rng([config.seed, prompt]).random(config.tokens)
    return [
        ("greedy", lambda logits, place: int(logits.argmax())),
        (
            "sampled",
            lambda logits, place: draw(logits, drawn[place], config.temperature, config.top_p),
        ),
    ]


def draw(logits: np.ndarray, number: float, temperature: float, top_p: float) -> int:
    """The token at which the cumulative probability, most likely tokens first, passes `number` (0 to 1).

    Only the fewest most likely tokens with at least `top_p` of the probability are used, renormalised (nucleus
    sampling, Holtzman et al. 2020, arXiv 1904.09751). Equal probabilities are ordered by token id.
    """
    scaled = logits.astype(np.float64) / temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")
    sums = shares[order].cumsum()
    kept = int(np.searchsorted(sums, top_p)) + 1
    sums = sums[:kept] / sums[min(kept, len(sums)) - 1]
    return int(order[min(int(np.searchsorted(sums, number, side="right")), len(sums) - 1)])


def continued(
    model: Any, ids: Sequence[int], most: int, close: int, choose: Choose
) -> tuple[list[int], bool]:
    """At most `most` tokens after `ids`, and whether the model ended the text. The closing token is not included."""
    found = list(tokens_after(model, ids, most, close, choose))
    return found, len(found) < most


def tokens_after(model: Any, ids: Sequence[int], most: int, close: int, choose: Choose) -> Iterator[int]:
    """At most `most` tokens after `ids`, each as it is chosen. If the model closes the text, there are fewer."""
    import torch

    reader, given = _Reader(model), list(ids)
    for place in range(most):
        with torch.inference_mode():
            token = choose(reader.logits_after(given), place)
        if token == close:
            return
        yield token
        given = [token]


class _Reader:
    """A model that reads a text that grows. Only what is new goes through it, if it keeps what it has read as most do.

    Others (Mamba, xLSTM) keep it in a way of their own, or cannot go on from it: they read the whole text each time.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._read: list[int] = []
        self._past: Any = None
        self._keeps = True

    def logits_after(self, more: Sequence[int]) -> np.ndarray:
        """The logits [vocabulary] after the text so far and `more`."""
        self._read += more
        if self._keeps:
            try:
                output = self._through(more, past_key_values=self._past, use_cache=True)
                self._past = output.past_key_values
                return self._last(output)
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                self._keeps = False
        return self._last(self._through(self._read, use_cache=False))

    def _through(self, ids: Sequence[int], **how: Any) -> Any:
        import torch

        return self._model(
            input_ids=torch.tensor([list(ids)], device=self._model.device), logits_to_keep=1, **how
        )

    def _last(self, output: Any) -> np.ndarray:
        found: np.ndarray = output.logits[0, -1].float().cpu().numpy()
        return found
