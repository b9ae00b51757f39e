"""Checks the files of benchmarks before any work: every line, whole, against what their tasks will read.

A damaged file would otherwise be found after training, when the first model is measured. A file is read once in a process
while it stays the same, line by line. The 14,042 questions of MMLU (7.5 MB) take 0.2 s.
"""

from __future__ import annotations

import csv
import functools
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from storage.errors import ConfigError
from tasks.corpus.benchmarks.questions import benchmark_file, read_questions
from tasks.evaluation.catalog import BENCHMARKS, EvaluationConfig, benchmark_files_of
from tasks.evaluation.directory import read_task_directory

LONGEST_LINE = 16 << 20
LARGEST = 1 << 30
"""The most bytes of a line and of a file, unpacked. MMLU has 7.5 MB."""

Row = dict[str, Any]
Check = Callable[[Row], "str | None"]
"""What is wrong with a row, beginning with the name of its field; None if nothing is."""


def check_question_files(
    config: EvaluationConfig, directory: Path | None, searched: tuple[str, ...] = ()
) -> None:
    """Raise ConfigError, with file, line and field, for a benchmark whose local file cannot be asked.

    `config`: with absolute paths of own benchmarks. `directory`: local copies; None if the hub is used, whose files are not
    checked here. `searched`: the names in corpus.decontaminate.benchmarks, whose questions are looked for in the corpus.
    """
    own = {mine.name: Path(mine.file) for mine in config.own if mine.file}
    if directory is not None:
        for name in (*config.domain, *config.general):
            check_file(benchmark_files_of(name, directory)[0], BENCHMARKS[name].files)
    for mine in config.own:
        if mine.file:
            check_file(Path(mine.file), None)
        if mine.tasks:
            for file in read_task_directory(Path(mine.tasks)).files.values():
                check_data(file)
    for name in searched:
        if name in own or directory is not None:
            file = benchmark_file(directory, name, own)
            check_file(file, None if name in own else name)


def check_file(path: Path, benchmark: str | None) -> None:
    """Raise ConfigError for a file of questions that cannot be asked. `benchmark`: None for a user's own file."""
    found = path.stat()
    _check_file(path, benchmark, (found.st_ino, found.st_size, found.st_mtime_ns))


def questions_in(path: Path) -> int:
    """The number of rows of a file of questions. Raises ConfigError for a file that is none."""
    return sum(1 for _ in _rows(path))


@functools.lru_cache(maxsize=256)
def _check_file(path: Path, benchmark: str | None, version: tuple[int, int, int]) -> None:
    check = _own if benchmark is None else _CHECKS.get(benchmark)
    asked: dict[bytes, int] = {}
    kinds: dict[str, tuple[str, int]] = {}
    for number, row in _rows(path):
        where = f"{path}, line {number}"
        if check is not None and (problem := check(row)) is not None:
            raise ConfigError(f"{where}: {problem}")
        if benchmark is None:
            question = orjson.dumps([row["question"], row["choices"]])
            if (first := asked.setdefault(question, number)) != number:
                raise ConfigError(
                    f"{where}: question: stands in line {first} too, with the same choices; remove one, or it counts twice"
                )
        else:  # their columns become a table
            for name, value in row.items():
                kind, first = kinds.setdefault(name, (_kind(value), number))
                if kind != _kind(value) and value is not None:
                    raise ConfigError(f"{where}: {name} is {_kind(value)}, but {kind} in line {first}")
    if (
        benchmark is not None and check is None
    ):  # nothing is known of it but that its questions are searched for
        questions, rows = read_questions(benchmark, path)
        if len(questions) < rows:
            raise ConfigError(
                f"{path}: {rows - len(questions)} of {rows} rows have no column that holds a question"
            )


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Rows with the numbers of their lines, from 1. Raises ConfigError for what is no row, and if there is none."""
    number = size = 0
    found = False
    try:
        with _opened(path) as file:
            while line := file.readline(LONGEST_LINE + 1):
                number, size = number + 1, size + len(line)
                if len(line) > LONGEST_LINE or size > LARGEST:
                    what = (
                        f"a line has more than {LONGEST_LINE >> 20} MiB"
                        if size <= LARGEST
                        else "it is too large"
                    )
                    raise ConfigError(f"{path}, line {number}: {what}; this is no file of questions")
                if line.strip():
                    yield number, _row(path, number, line)
                    found = True
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(
            f"{path}, after line {number}: the packed file is cut short or damaged ({error})"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    if not found:
        raise ConfigError(f"{path} holds no question: it is empty")


def _opened(path: Path) -> BinaryIO:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _row(path: Path, number: int, line: bytes) -> Row:
    if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise ConfigError(
            f"{path}, line 1: begins with the mark of another encoding; save it as UTF-8 without a mark"
        )
    try:
        line.decode()
        row = orjson.loads(line)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}, line {number}: is no UTF-8 text; save it as UTF-8") from error
    except ValueError as error:
        hint = "" if line.endswith(b"\n") else "; the file may be cut short"
        raise ConfigError(f"{path}, line {number}: is no JSON ({error}){hint}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{path}, line {number}: holds {_kind(row)} where a row {{…}} should be")
    return row


def check_data(path: Path) -> None:
    """Raise ConfigError for a data file of a task directory that cannot be read to its end."""
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson") or path.name.lower().endswith(".jsonl.gz"):
        for _ in _rows(path):
            pass
    elif suffix == ".parquet":
        _check_parquet(path)
    elif suffix == ".csv":
        _check_csv(path)


def _check_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = sum(batch.num_rows for batch in file.iter_batches())
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{path} is no whole Parquet file: {' '.join(str(error).split())[:200]}") from error
    if not rows:
        raise ConfigError(f"{path} holds no question: it is empty")


def _check_csv(path: Path) -> None:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file, strict=True)
            columns = next(rows, [])
            for number, row in enumerate(rows, 2):
                if len(row) != len(columns):
                    raise ConfigError(
                        f"{path}, row {number}: has {len(row)} fields, the first line {len(columns)}"
                    )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no CSV file in UTF-8: {error}") from error
    if not columns:
        raise ConfigError(f"{path} holds no question: it is empty")


# ---- what the tasks read of a row -------------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    kinds = {str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value), "a value")


def _texts(row: Row, *names: str) -> str | None:
    """The first of the fields that is no text."""
    for name in names:
        if name not in row:
            return f"{name} is missing (there are: {', '.join(map(str, row)) or 'none'})"
        if not isinstance(row[name], str):
            return f"{name} must be a text, not {_kind(row[name])}"
    return None


def _list(row: Row, name: str, fewest: int = 2) -> str | None:
    value = row.get(name)
    if name not in row:
        return f"{name} is missing (there are: {', '.join(map(str, row)) or 'none'})"
    if not isinstance(value, list) or len(value) < fewest or not all(isinstance(one, str) for one in value):
        return f"{name} must be a list of {fewest} or more texts"
    return None


def _label(row: Row, name: str, first: int, count: int, texts: bool = True) -> str | None:
    """Whether a field is the number of a choice, which many files write as text."""
    value = row.get(name)
    if name not in row:
        return f"{name} is missing (there are: {', '.join(map(str, row)) or 'none'})"
    if isinstance(value, str) and texts and value.isdecimal():
        value = int(value)
    if type(value) is not int or not first <= value < first + count:
        return f"{name} must be one of {first} to {first + count - 1}, not {_short(row[name])}"
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _own(row: Row) -> str | None:
    problem = _texts(row, "question") or _list(row, "choices")
    if problem:
        return problem
    if not row["question"].strip():
        return "question is empty"
    if not all(one.strip() for one in row["choices"]):
        return "choices: one of them is empty"
    if len(set(row["choices"])) < len(row["choices"]):
        return "choices: two of them are the same text"
    return _label(row, "answer", 0, len(row["choices"]), texts=False)


def _lettered(question: str, row: Row) -> str | None:
    if problem := _texts(row, question, "answerKey"):
        return problem
    choices = row.get("choices")
    if not isinstance(choices, dict):
        return "choices must be an object with text and label"
    for name in ("text", "label"):
        if problem := _list(choices, name):
            return f"choices.{problem}"
    if len(choices["text"]) != len(choices["label"]):
        return f"choices: {len(choices['text'])} texts for {len(choices['label'])} labels"
    if row["answerKey"] not in choices["label"]:
        return f"answerKey {_short(row['answerKey'])} is none of the labels {', '.join(choices['label'])}"
    return None


def _boolq(row: Row) -> str | None:
    problem = _texts(row, "question", "passage")
    if problem or ("label" not in row and isinstance(row.get("answer"), bool)):
        return problem
    return _label(row, "label" if "label" in row else "answer", 0, 2, texts=False)


def _hellaswag(row: Row) -> str | None:
    problem = _texts(row, "activity_label", "ctx_a", "ctx_b") or _list(row, "endings")
    return problem or _label(row, "label", 0, len(row["endings"]))


def _lambada(row: Row) -> str | None:
    problem = _texts(row, "text")
    if problem is None and len(row["text"].split()) < 2:
        return "text must have two words or more: the last one is asked for"
    return problem


def _mmlu(row: Row) -> str | None:
    problem = _texts(row, "question", "subject") or _list(row, "choices", 4)
    return problem or _label(row, "answer", 0, len(row["choices"]))


def _piqa(row: Row) -> str | None:
    return _texts(row, "goal", "sol1", "sol2") or _label(row, "label", 0, 2)


def _sciq(row: Row) -> str | None:
    return _texts(row, "question", "correct_answer", "distractor1", "distractor2", "distractor3", "support")


def _social_iqa(row: Row) -> str | None:
    return _texts(row, "context", "question", "answerA", "answerB", "answerC") or _label(row, "label", 1, 3)


def _winogrande(row: Row) -> str | None:
    problem = _texts(row, "sentence", "option1", "option2")
    if problem is None and "_" not in row["sentence"]:
        return "sentence has no _ where an option goes"
    return problem or _label(row, "answer", 1, 2)


_CHECKS: Mapping[str, Check] = {
    "arc_challenge": functools.partial(_lettered, "question"),
    "arc_easy": functools.partial(_lettered, "question"),
    "boolq": _boolq,
    "commonsense_qa": functools.partial(_lettered, "question"),
    "hellaswag": _hellaswag,
    "lambada_openai": _lambada,
    "mmlu": _mmlu,
    "openbookqa": functools.partial(_lettered, "question_stem"),
    "piqa": _piqa,
    "sciq": _sciq,
    "social_iqa": _social_iqa,
    "winogrande": _winogrande,
}
"""The columns that the harness's definitions read, by the directory of a benchmark's files."""
