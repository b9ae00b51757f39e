"""The same bytes by any number of worker processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.artifact import Input
from storage.draft import Draft
from storage.testing import draft_in
from storage.workers import Workers
from tasks.corpus import contamination
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.contamination import CountConfig, CountInputs
from tests.support.corpus.slices import bytes_in, slice_of

LONG = "Which of these rivers, if any, had carried the grain of the northern plains down to the sea?"
SHORT = "What colour is the flag of Utopia?"
QUESTIONS = [
    {"question": LONG, "choices": ["The Styx", "The Po"], "answer": 1},
    {"question": SHORT, "choices": ["pale green", "red"], "answer": 0},
    {"question": "Who?", "choices": ["he", "she"], "answer": 0},
]
FILLER = "Nothing in this sentence was ever asked of anyone."


def quiz(root: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, str], Path]:
    (root / "benchmarks" / "quiz").mkdir(parents=True, exist_ok=True)
    file = root / "benchmarks" / "quiz" / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (entry,), (path,) = benchmark_inputs(root / "benchmarks", ("quiz",))
    return entry, path


def two_slices(root: Path) -> tuple[Input, Input]:
    first = slice_of(root / "one", [FILLER, f"{FILLER} {LONG}", f"{SHORT} Pale green."], source="tales")
    second = slice_of(root / "two", [LONG.upper(), FILLER + " Again.", f"{LONG} {LONG}"], source="letters")
    return first, second


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    entry, path = quiz(tmp_path, QUESTIONS)
    inputs = CountInputs(two_slices(tmp_path), entry, path)
    alone = draft_in(tmp_path)
    contamination.run(CountConfig(), inputs, alone)
    with Workers(2) as workers:
        several = Draft(tmp_path / "several", workers=workers)
        contamination.run(CountConfig(), inputs, several)
    assert bytes_in(alone.path) == bytes_in(several.path)
