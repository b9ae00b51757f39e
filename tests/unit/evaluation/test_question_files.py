"""Files of benchmarks are read whole before any work: damage is refused with file, line and field."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.errors import ConfigError
from tasks.evaluation import question_files
from tasks.evaluation.catalog import BENCHMARKS, EvaluationConfig, OwnBenchmark
from tasks.evaluation.question_files import check_data, check_file, check_question_files

LETTERS = {"text": ["one", "two"], "label": ["A", "B"]}
RIGHT: dict[str, dict[str, Any]] = {
    "arc_challenge": {"question": "Which?", "choices": LETTERS, "answerKey": "B"},
    "arc_easy": {"question": "Which?", "choices": LETTERS, "answerKey": "A"},
    "boolq": {"question": "is it", "passage": "It is.", "answer": True},
    "commonsense_qa": {"question": "Where?", "choices": LETTERS, "answerKey": "A"},
    "hellaswag": {"activity_label": "Food", "ctx_a": "A cook", "ctx_b": "", "endings": ["a", "b", "c"], "label": "2"},
    "lambada_openai": {"text": "one two three"},
    "mmlu": {"question": "What?", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 3},
    "openbookqa": {"question_stem": "Which", "choices": LETTERS, "answerKey": "A"},
    "piqa": {"goal": "open", "sol1": "push", "sol2": "pull", "label": 1},
    "sciq": {
        "question": "?", "correct_answer": "a", "distractor1": "b", "distractor2": "c", "distractor3": "d", "support": ""
    },
    "social_iqa": {"context": "He.", "question": "Why?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
    "winogrande": {"sentence": "The _ fell.", "option1": "a", "option2": "b", "answer": "2"},
}  # fmt: skip
OWN = {"question": "Which?", "choices": ["one", "two"], "answer": 1}
LABELS = {"answerKey": "Z", "answer": 9, "label": 9}


def written(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_benchmark_has_its_columns_checked():
    assert set(RIGHT) == {one.files for one in BENCHMARKS.values()} == set(question_files._CHECKS)


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_row_is_taken_and_each_missing_or_wrong_column_is_named(tmp_path, name):
    right = RIGHT[name]
    check_file(written(tmp_path / "right.jsonl", right, right), name)  # real files hold a few questions twice
    for number, field in enumerate(right):
        without = {key: value for key, value in right.items() if key != field}
        for wrong in (without, {**right, field: None}, {**right, field: {}}, {**right, field: [1]}):
            with pytest.raises(ConfigError) as caught:
                check_file(written(tmp_path / f"{number}-{len(str(wrong))}.jsonl", right, wrong), name)
            assert "line 2: " in str(caught.value) and field in str(caught.value)
    for field in set(right) & set(LABELS):
        if isinstance(right[field], str) and field != "answerKey":
            wrong = {**right, field: str(LABELS[field])}
        else:
            wrong = {**right, field: LABELS[field]}
        with pytest.raises(ConfigError, match=rf"line 2: {field}"):
            check_file(written(tmp_path / f"label-{field}.jsonl", right, wrong), name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": " "}, "question is empty"),
        ({"question": 3}, "question must be a text, not a number"),
        ({"choices": ["one"]}, "choices must be a list of 2 or more texts"),
        ({"choices": "one"}, "choices must be a list"),
        ({"choices": ["one", 2]}, "choices must be a list"),
        ({"choices": ["one", ""]}, "choices: one of them is empty"),
        ({"choices": ["one", "one"]}, "choices: two of them are the same"),
        ({"answer": 2}, "answer must be one of 0 to 1, not 2"),
        ({"answer": -1}, "answer must be one of 0 to 1"),
        ({"answer": True}, "answer must be one of 0 to 1, not True"),
        ({"answer": "1"}, "answer must be one of 0 to 1, not '1'"),
        ({"answer": 0.5}, "answer must be one of 0 to 1"),
        ({}, "question: stands in line 1 too"),
    ],
)
def test_an_own_question_that_cannot_be_asked_is_refused(tmp_path, change, words):
    path = written(tmp_path / "own.jsonl", OWN, {**OWN, **change})
    with pytest.raises(ConfigError) as caught:
        check_file(path, None)
    assert str(caught.value).startswith(f"{path}, line 2: {words}")


LINE = json.dumps(OWN).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (LINE + b"\n" + LINE[:20], "line 2: is no JSON"),
        (LINE[:20], "the file may be cut short"),
        (b"[1]\n", "line 1: holds a list"),
        (b"null\n", "line 1: holds null"),
        (b'{"question": NaN}\n', "line 1: is no JSON"),
        (LINE.decode().encode("utf-16"), "another encoding"),
        (b"\xef\xbb\xbf" + LINE, "another encoding"),
        (LINE + b'\n{"question": "\xfc"}\n', "line 2: is no UTF-8"),
        (b"\x00" * 100, "line 1: is no JSON"),
        (b"PK\x03\x04" + bytes(range(200)), "line 1: is no "),
        (b"question,choices,answer\n", "line 1: is no JSON"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content, words):
    path = tmp_path / "own.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        check_file(path, None)
    assert str(caught.value).startswith(str(path)) and words in str(caught.value)


def test_a_packed_file_is_read_to_its_end_and_no_further_than_a_limit(tmp_path, monkeypatch):
    rows = b"".join(json.dumps({**OWN, "question": str(number)}).encode() + b"\n" for number in range(500))
    packed = gzip.compress(rows)
    (tmp_path / "right.jsonl.gz").write_bytes(packed)
    check_file(tmp_path / "right.jsonl.gz", None)
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    for name, content in {
        "short": packed[:-30],
        "plain": rows,
        "damaged": bytes(damaged),
        "cut": packed[:8],
    }.items():
        (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{name}\.jsonl\.gz"):
            check_file(tmp_path / f"{name}.jsonl.gz", None)
    monkeypatch.setattr(question_files, "LONGEST_LINE", 1000)
    pusher = zlib.compressobj(wbits=31)
    (tmp_path / "bomb.jsonl.gz").write_bytes(pusher.compress(b"[" * 100_000_000) + pusher.flush())
    with pytest.raises(ConfigError, match="line 1: a line has more than"):
        check_file(tmp_path / "bomb.jsonl.gz", None)


def test_columns_that_change_their_type_are_refused(tmp_path):
    rows = [{**RIGHT["mmlu"], "id": 1}, {**RIGHT["mmlu"], "id": None}, {**RIGHT["mmlu"], "id": "x"}]
    with pytest.raises(ConfigError, match="line 3: id is a text, but a number in line 1"):
        check_file(written(tmp_path / "test.jsonl", *rows), "mmlu")


def test_a_changed_file_is_read_again(tmp_path):
    path = written(tmp_path / "own.jsonl", OWN)
    check_file(path, None)
    written(path, OWN, OWN)
    with pytest.raises(ConfigError, match="line 2"):
        check_file(path, None)


def test_all_files_that_a_configuration_asks_for_are_read(tmp_path):
    own = written(tmp_path / "own.jsonl", OWN)
    for name in ("mmlu", "piqa"):
        written(tmp_path / name / f"{BENCHMARKS[name].split}.jsonl", RIGHT[name])
    written(tmp_path / "searched" / "test.jsonl", {"text": "A question?"})
    config = EvaluationConfig(domain=("mmlu",), own=(OwnBenchmark(name="own", file=str(own)),))
    searched = ("own", "piqa", "searched")
    check_question_files(config, tmp_path, searched)
    check_question_files(config, None, ("own", "piqa"))  # those of the hub are not here yet
    for path in sorted(tmp_path.rglob("*.jsonl")):
        right = path.read_text()
        path.write_text(f"{right}{{\n")
        with pytest.raises(ConfigError, match=f"{path}, line 2"):
            check_question_files(config, tmp_path, searched)
        path.write_text(right)
    written(tmp_path / "searched" / "test.jsonl", {"text": "A question?"}, {"other": 1})
    with pytest.raises(ConfigError, match="1 of 2 rows have no column"):
        check_question_files(config, tmp_path, searched)


def test_data_of_task_files_is_read_to_its_end(tmp_path):
    pq.write_table(pa.table({"a": list(range(10_000))}), tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text('q,a\n"x, y",1\n')
    for name in ("a.parquet", "a.csv"):
        check_data(tmp_path / name)
    whole = (tmp_path / "a.parquet").read_bytes()
    for name, content in {
        "short.parquet": whole[:-100],
        "none.parquet": b"",
        "none.csv": b"",
        "odd.csv": b"q,a\n1,2,3\n",
        "latin.csv": "q\nü\n".encode("latin-1"),
        "open.csv": b'q\n"x',
        "a.jsonl": b"{",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            check_data(tmp_path / name)
