"""Read benchmark questions from files, in the schemas that lm-evaluation-harness reads from the hub.

A question is identified by its benchmark and its row (from 0) in the file. Documents are compared with the text that
is specific to it: the question, and BoolQ's passage, without which it cannot be asked. SciQ's support is left out: it
is the textbook paragraph from which the question was made, and an educational corpus consists of textbooks.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from storage.errors import ConfigError

SPLITS = ("test", "validation")
"""The split that is scored: the test split if there is one, else validation."""

_VALIDATION_SCORED = frozenset(
    {"hellaswag", "piqa", "winogrande", "boolq", "social_iqa", "commonsense_qa"}
)  # the harness scores their validation split: the test labels are not public
_SUFFIXES = (".jsonl", ".jsonl.gz")

_LETTERS = "abcdefghijkl"
_MARK = re.compile(r"\[.*?\]")
_WORD = re.compile(r"[^\W_]")

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One question.

    texts: what is searched for if it is long enough; the question itself comes first. answered: the question with its
    correct answer directly after (or in) it. printed: the question as tests print it, with its choices or a line that
    tells the answer. These are searched for instead, if the question itself is too short.
    """

    row: int
    texts: tuple[str, ...]
    answered: tuple[str, ...] = ()
    printed: tuple[str, ...] = ()


def benchmark_inputs(
    benchmark_files: Path | None, benchmarks: Sequence[str], own: Mapping[str, Path] | None = None
) -> tuple[tuple[dict[str, str], ...], tuple[Path, ...]]:
    """The stage's inputs: ({benchmark, file, sha256}, …), which are in the key, and the paths, which are not.

    `own`: the files of the user's own benchmarks (JSON lines of question, choices, answer). Raises ConfigError for a
    benchmark without a file; the error names the path.
    """
    paths = tuple(benchmark_file(benchmark_files, name, own or {}) for name in benchmarks)
    entries = tuple(
        {"benchmark": name, "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, path in zip(benchmarks, paths, strict=True)
    )
    return entries, paths


def benchmark_file(benchmark_files: Path | None, name: str, own: Mapping[str, Path]) -> Path:
    """The file whose questions a benchmark scores. Raises ConfigError if there is none."""
    if name in own:
        if own[name].is_file():
            return own[name]
        raise ConfigError(f"corpus.decontaminate.benchmarks: the file of {name!r} is not there: {own[name]}")
    if benchmark_files is None:
        raise ConfigError(
            f"corpus.decontaminate.benchmarks: {name!r} has no file in evaluation.own, and benchmark_files is not set"
        )
    splits = SPLITS[1:] if name in _VALIDATION_SCORED else SPLITS
    candidates = [benchmark_files / name / f"{split}{suffix}" for split in splits for suffix in _SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    raise ConfigError(
        f"corpus.decontaminate.benchmarks: {name!r} has no file; looked for "
        + ", ".join(str(path) for path in candidates)
    )


def read_questions(benchmark: str, path: Path) -> tuple[list[Question], int]:
    """All readable questions of a file, and its number of rows. Raises ConfigError if a line is not JSON."""
    found, rows = [], 0
    for row, fields in _rows(benchmark, path):
        rows += 1
        for needed, make in _SCHEMAS:
            if all(name in fields for name in needed):
                found.append(make(row, fields))
                break
    return found, rows


def _rows(benchmark: str, path: Path) -> Iterator[tuple[int, Row]]:
    row = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                fields = orjson.loads(line)
            except ValueError as error:
                raise ConfigError(
                    f"benchmark {benchmark!r}: row {row} of {path} is not JSON: {error}"
                ) from error
            if isinstance(fields, dict):
                yield row, fields
            row += 1


def _with_answer(row: int, question: str, answer: str, choices: Sequence[str] = ()) -> Question:
    known = bool(_WORD.search(answer))
    return Question(
        row,
        (question,),
        (f"{question} {answer}",) if known else (),
        _printed(question, answer, choices, known),
    )


def _printed(question: str, answer: str, choices: Sequence[str], known: bool) -> tuple[str, ...]:
    """The question before its choices (plain, numbered or lettered; the first two suffice where they are long enough) and
    before the line with its answer."""
    forms: list[str] = []
    for shown in (choices[:2], choices) if len(choices) > 1 else ():
        numbered = " ".join(f"{number} {choice}" for number, choice in enumerate(shown, 1))
        lettered = " ".join(f"{letter} {choice}" for letter, choice in zip(_LETTERS, shown, strict=False))
        listed = (" ".join(shown), numbered, lettered)
        forms += [f"{question} {word} {those}" for word in ("", "choices", "options") for those in listed]
    if known:
        forms += [
            f"{question} {words} {answer}" for words in ("answer", "a", "the answer is", "correct answer")
        ]
        if answer in choices and choices.index(answer) < len(_LETTERS):
            forms.append(f"{question} answer {_LETTERS[choices.index(answer)]} {answer}")
    return tuple(dict.fromkeys(forms))


def _hellaswag(row: int, fields: Row) -> Question:
    endings = [_without_marks(ending) for ending in fields["endings"]]
    return _with_answer(row, _without_marks(fields["ctx"]), _pick(endings, fields.get("label")), endings)


def _without_marks(text: str) -> str:
    """The text without WikiHow's [header], [title] and [step], as the harness shows it
    (lm_eval/tasks/hellaswag/utils.py)."""
    return _MARK.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _piqa(row: int, fields: Row) -> Question:
    solutions = [str(fields["sol1"]), str(fields["sol2"])]
    return _with_answer(row, fields["goal"], _pick(solutions, fields.get("label")), solutions)


def _winogrande(row: int, fields: Row) -> Question:
    options = [fields["option1"], fields["option2"]]
    filled = tuple(fields["sentence"].replace("_", option) for option in options)
    right = {"1": filled[:1], "2": filled[1:]}.get(str(fields.get("answer")), ())
    return Question(row, (*filled, fields["sentence"]), right)


def _social_iqa(row: int, fields: Row) -> Question:
    answers = [fields["answerA"], fields.get("answerB", ""), fields.get("answerC", "")]
    label = str(fields.get("label", ""))
    answer = answers[int(label) - 1] if label in ("1", "2", "3") else ""
    shown = [str(choice) for choice in answers if choice]
    return _with_answer(row, f"{fields['context']} {fields['question']}", answer, shown)


def _sciq(row: int, fields: Row) -> Question:
    return _with_answer(row, fields["question"], str(fields["correct_answer"]))


def _boolq(row: int, fields: Row) -> Question:
    answer = fields.get("answer", fields.get("label"))
    asked = _with_answer(row, fields["question"], "" if answer is None else "yes" if answer else "no")
    return Question(row, (fields["question"], fields["passage"]), asked.answered, asked.printed)


def _labelled(row: int, fields: Row) -> Question:
    question = str(fields.get("question_stem", fields.get("question", "")))
    choices = fields["choices"]
    shown = [str(choice) for choice in choices["text"]]
    right = dict(zip(choices["label"], shown, strict=False)).get(fields["answerKey"], "")
    return _with_answer(row, question, right, shown)


def _listed(row: int, fields: Row) -> Question:
    shown = [str(choice) for choice in fields["choices"]]
    return _with_answer(row, fields["question"], _pick(fields["choices"], fields["answer"]), shown)


def _pick(choices: Sequence[Any], label: Any) -> str:
    """The choice named by a label: a number from 0, a letter, or the choice itself. "" if the label names none."""
    texts = [str(choice) for choice in choices]
    if str(label) in texts and not isinstance(label, int):
        return str(label)
    text = str(label).strip()
    if len(text) == 1 and text.isascii() and text.isalpha():
        text = str(ord(text.upper()) - ord("A"))
    return texts[int(text)] if text.isdecimal() and int(text) < len(texts) else ""


_SCHEMAS: tuple[tuple[tuple[str, ...], Callable[[int, Row], Question]], ...] = (
    (("ctx", "endings"), _hellaswag),
    (("goal", "sol1", "sol2"), _piqa),
    (("sentence", "option1", "option2"), _winogrande),
    (("context", "question", "answerA"), _social_iqa),
    (("question", "correct_answer"), _sciq),
    (("question", "passage"), _boolq),
    (("question_stem", "choices", "answerKey"), _labelled),
    (("question", "choices", "answerKey"), _labelled),
    (("question", "choices", "answer"), _listed),
    (("text",), lambda row, fields: Question(row, (fields["text"],))),
)
"""The fields of each schema, and how its question is read. The first schema that fits is used."""
