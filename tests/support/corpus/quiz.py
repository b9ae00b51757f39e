"""A benchmark of three questions, and documents in which they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.artifact import Input
from storage.testing import draft_in
from tasks.corpus import decontaminate
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.decontaminate import DecontaminateConfig, DecontaminateInputs
from tests.support.corpus.slices import slice_of

LONG = "Which of these rivers, if any, had carried the grain of the northern plains down to the sea?"
SHORT = "What colour is the flag of Utopia?"
QUESTIONS = [
    {"question": LONG, "choices": ["The Styx", "The Po"], "answer": 1},
    {"question": SHORT, "choices": ["pale green", "red"], "answer": 0},
    {"question": "Who?", "choices": ["he", "she"], "answer": 0},
]
FILLER = "Nothing in this sentence was ever asked of anyone."


def filler(number: int) -> str:
    """A sentence that has little in common with that of another number."""
    return " ".join(f"{word.strip('.')}{number}" for word in FILLER.split()) + "."


def quiz(root: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, str], Path]:
    """A benchmark `quiz` of these rows below `root`: its entry in a stage's inputs, and its file."""
    (root / "benchmarks" / "quiz").mkdir(parents=True, exist_ok=True)
    file = root / "benchmarks" / "quiz" / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (entry,), (path,) = benchmark_inputs(root / "benchmarks", ("quiz",))
    return entry, path


def two_slices(root: Path) -> tuple[Input, Input]:
    """Slices of two sources: both questions that are long enough to be looked for stand in the first."""
    first = slice_of(root / "one", [FILLER, f"{FILLER} {LONG}", f"{SHORT} Pale green."], source="tales")
    second = slice_of(root / "two", [LONG.upper(), FILLER + " Again.", f"{LONG} {LONG}"], source="letters")
    return first, second


def run_on(
    directory: Path, texts: list[str], rows: list[dict] | None = None, first: bool = False, **config: object
) -> tuple[Path, decontaminate.DecontaminateStats]:
    """What the decontaminate stage leaves of these texts beside a quiz of these rows (`QUESTIONS` if none)."""
    entry, path = quiz(directory, rows or QUESTIONS)
    settings_ = DecontaminateConfig(**{"benchmarks": ("quiz",), "holdout_fraction": 0.1, **config})
    draft = draft_in(directory)
    given_ = slice_of(directory / "in", texts)
    return draft.path, decontaminate.run(
        settings_, DecontaminateInputs(given_, (entry,), first, (path,)), draft
    )
