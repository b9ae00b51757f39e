"""Stage `questions`: make a benchmark from held-out documents. This module also reads the rows of any own benchmark.

An item is 60 to 100 words of a held-out document, the true continuation of 15 to 25 words, and three continuations of
the same length from other held-out documents of the same source. Chance is 0.25. Items are scored by mutual
information, so a continuation that is likely after any context gains nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import BadInput
from storage.settings import Settings, identity
from tasks.corpus.documents import read_documents

STAGE = "questions"
VERSION = 1
_CHOICES = 4


class QuestionsConfig(Settings):
    """How questions are made of held-out documents."""

    questions: int = identity(
        200, description="How many questions; fewer where the documents hold fewer.", ge=1
    )
    seed: int = identity(0, description="Seed of what is drawn.", ge=0)
    context_words: tuple[int, int] = identity(
        (60, 100), description="Fewest and most words shown before the choices."
    )
    continuation_words: tuple[int, int] = identity((15, 25), description="Fewest and most words of a choice.")


@dataclass(frozen=True)
class QuestionsInputs:
    """The held-out documents of one source (part `holdout`)."""

    holdout: Input


@dataclass(frozen=True)
class QuestionsStats:
    """Counts of questions, of documents, and of documents used."""

    questions: int
    documents: int
    documents_used: int


def run(config: QuestionsConfig, inputs: QuestionsInputs, draft: Draft) -> QuestionsStats:
    """Part `questions`: questions.jsonl, rows {question, choices, answer, document}.

    Raises BadInput if too few documents are long enough.
    """
    documents = read_documents(inputs.holdout.paths, columns=["id", "text"])
    names, texts = documents["id"].to_pylist(), documents["text"].to_pylist()
    words = {int(name): text.split() for name, text in zip(names, texts, strict=True)}
    items = make_questions(words, config)
    with (draft.path / "questions.jsonl").open("w", encoding="utf-8") as lines:
        for item in items:
            lines.write(json.dumps(item, ensure_ascii=False) + "\n")
    draft.part("questions", "questions.jsonl")
    if len(items) < config.questions:
        draft.warn(f"the held-out documents give {len(items)} questions, not {config.questions}")
    return QuestionsStats(len(items), len(words), len({item["document"] for item in items}))


def make_questions(words: dict[int, list[str]], config: QuestionsConfig) -> list[dict[str, Any]]:
    """Make items from documents, given by id as lists of words.

    The same documents and seed give the same items, in any order of the documents. Documents take turns, each from a
    new place, so no passage is used twice. Raises BadInput if fewer than four documents are long enough.
    """
    most = config.context_words[1] + config.continuation_words[1]
    fit = {name: words[name] for name in sorted(words) if len(words[name]) >= most}
    if len(fit) < _CHOICES:
        raise BadInput(
            f"{len(fit)} held-out documents have {most} words or more, and questions need {_CHOICES}: "
            "raise corpus.holdout_fraction or leave this benchmark out"
        )
    rng = np.random.default_rng(config.seed)
    names = list(fit)
    starts = {name: list(rng.permutation(len(fit[name]) // most) * most) for name in names}
    turns = [
        name for turn in range(max(map(len, starts.values()))) for name in names if turn < len(starts[name])
    ]
    items = []
    for name in turns[: config.questions]:
        items.append(_item(rng, fit, names, name, int(starts[name].pop()), config))
    return items


def _item(
    rng: np.random.Generator,
    fit: dict[int, list[str]],
    names: list[int],
    name: int,
    start: int,
    config: QuestionsConfig,
) -> dict[str, Any]:
    context = int(rng.integers(config.context_words[0], config.context_words[1] + 1))
    length = int(rng.integers(config.continuation_words[0], config.continuation_words[1] + 1))
    others = [other for other in names if other != name]
    choices = [" ".join(fit[name][start + context : start + context + length])]
    for index in rng.permutation(len(others)):
        text = fit[others[index]]
        place = int(rng.integers(0, len(text) - length + 1))
        other = " ".join(text[place : place + length])
        if other not in choices:
            choices.append(other)
        if len(choices) == _CHOICES:
            break
    order = [int(place) for place in rng.permutation(len(choices))]
    return {
        "question": " ".join(fit[name][start : start + context]),
        "choices": [choices[place] for place in order],
        "answer": order.index(0),
        "document": name,
    }


def read_questions(path: Path) -> list[dict[str, Any]]:
    """The rows {question, choices, answer} of an own benchmark. The question is the whole prompt, unchanged.

    A row needs a question (text), choices (two or more texts) and an answer (the index of one of them). Raises
    BadInput with the number of the first row that does not have these.
    """
    from tasks.evaluation.harness import read_rows

    rows = []
    for number, row in enumerate(read_rows(path), 1):
        question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
        if not isinstance(question, str) or not question.strip():
            raise BadInput(f"{path.name}, row {number}: question is not a text")
        if (
            not isinstance(choices, list)
            or len(choices) < 2
            or not all(isinstance(c, str) and c.strip() for c in choices)
        ):
            raise BadInput(f"{path.name}, row {number}: choices are not two or more texts")
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise BadInput(
                f"{path.name}, row {number}: answer is not the index (from 0) of one of the choices"
            )
        rows.append({"question": question, "choices": choices, "answer": answer})
    return rows
