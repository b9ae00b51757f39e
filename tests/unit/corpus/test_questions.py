"""Benchmark files: which one is scored, and what its rows ask."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import ConfigError
from tasks.corpus.benchmarks.questions import Question, benchmark_inputs, read_questions


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("row", "texts", "answered"),
    [
        ({"question": "Q", "choices": ["a", "b"], "answer": 1, "subject": "s"}, ("Q",), ("Q b",)),
        ({"question": "Q", "choices": ["a", "b"], "answer": "B"}, ("Q",), ("Q b",)),
        ({"question": "Q", "choices": ["a", "b"], "answer": "a"}, ("Q",), ("Q a",)),
        ({"question": "Q", "choices": ["√", "b"], "answer": 0}, ("Q",), ()),
        (
            {"question": "Q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
            ("Q",),
            ("Q b",),
        ),
        (
            {"question_stem": "Q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"},
            ("Q",),
            ("Q a",),
        ),
        ({"ctx": "C", "endings": ["x", "y"], "label": "1"}, ("C",), ("C y",)),
        ({"goal": "G", "sol1": "x", "sol2": "y", "label": 0}, ("G",), ("G x",)),
        (
            {"sentence": "so _ ran", "option1": "Al", "option2": "Bo", "answer": "2"},
            ("so Al ran", "so Bo ran", "so _ ran"),
            ("so Bo ran",),
        ),
        ({"question": "Q", "correct_answer": "a", "support": "S"}, ("Q",), ("Q a",)),
        ({"question": "Q", "passage": "P", "answer": False}, ("Q", "P"), ("Q no",)),
        (
            {"context": "C", "question": "Q", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
            ("C Q",),
            ("C Q c",),
        ),
        ({"text": "T"}, ("T",), ()),
    ],
)
def test_each_schema_gives_its_question_and_correct_answer(
    tmp_path: Path, row: dict, texts: tuple[str, ...], answered: tuple[str, ...]
) -> None:
    path = write(tmp_path / "q.jsonl", row)
    (question,), rows = read_questions("any", path)
    assert (replace(question, printed=()), rows) == (Question(0, texts, answered), 1)


def test_the_split_that_is_scored_is_taken(tmp_path: Path) -> None:
    for name, split in [
        ("mmlu", "test.jsonl"),
        ("mmlu", "validation.jsonl"),
        ("sciq", "validation.jsonl.gz"),
        ("piqa", "test.jsonl"),
        ("piqa", "validation.jsonl"),
    ]:
        write(tmp_path / name / split, {"text": name})
    mine = write(tmp_path / "elsewhere" / "mine.jsonl", {"question": "Q", "choices": ["a"], "answer": 0})
    entries, paths = benchmark_inputs(tmp_path, ("mmlu", "sciq", "piqa", "own"), {"own": mine})
    assert [entry["file"] for entry in entries] == [
        "test.jsonl",
        "validation.jsonl.gz",
        "validation.jsonl",
        "mine.jsonl",
    ]
    assert [entry["benchmark"] for entry in entries] == ["mmlu", "sciq", "piqa", "own"]
    assert all(
        len(entry["sha256"]) == 64 and set(entry) == {"benchmark", "file", "sha256"} for entry in entries
    )
    assert paths[3] == mine


def test_a_missing_file_is_an_error_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "mmlu" / "test.jsonl")):
        benchmark_inputs(tmp_path, ("mmlu",))
    with pytest.raises(ConfigError, match=r"gone\.jsonl"):
        benchmark_inputs(tmp_path, ("own",), {"own": tmp_path / "gone.jsonl"})
    with pytest.raises(ConfigError, match="benchmark_files is not set"):
        benchmark_inputs(None, ("mmlu",))


def test_a_row_that_is_no_json_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", {"text": "T"})
    path.write_text(path.read_text() + "{half\n")
    with pytest.raises(ConfigError, match=r"row 1 of .*q\.jsonl"):
        read_questions("mmlu", path)
