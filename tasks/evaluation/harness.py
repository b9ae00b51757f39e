"""lm-evaluation-harness in process: its task definitions over local rows, and its scores from likelihoods (scorer.py).

Prompts, shots and metrics are the harness's own. Only the source of rows differs (local files, no cache, no code of a
data set). Importing this module imports the harness, which is slow: import it inside `run`.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.utils
from jinja2 import TemplateError
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from storage.errors import BadInput
from tasks.evaluation.catalog import Benchmark
from tasks.evaluation.directory import TaskDirectory
from tasks.evaluation.scorer import Scorer

Row = dict[str, Any]
_FEWSHOT_SEED = 1234  # the harness's own default
_DEFINITIONS = Path(lm_eval.__file__).parent / "tasks"
_TAG = re.compile(r"_(tasks|continuation)$")


@dataclass(frozen=True)
class Answered:
    """One question with the model's answer. `choices`: log-likelihoods (nats). `alone`: the same without the question."""

    subject: str | None
    doc: int
    metrics: Mapping[str, float]
    choices: list[float]
    alone: list[float] | None
    target: int | None
    answer_bytes: int
    """Bytes of the right answer as it was asked, in UTF-8, with the space before it."""


@contextlib.contextmanager
def templates() -> Iterator[None]:
    """Context in which prompt templates are compiled once, and in a sandbox.

    The harness compiles a template again for each question, which takes a third of a small model's time. In its own
    environment a template, even of a user's task directory, could reach any Python object. Raises BadInput if a
    template needs a field that a row lacks, or accesses more than values.
    """
    env = lm_eval.utils.env
    sandbox = SandboxedEnvironment(
        loader=env.loader, undefined=env.undefined, keep_trailing_newline=env.keep_trailing_newline
    )
    sandbox.filters.update(env.filters)
    env.from_string = functools.lru_cache(maxsize=256)(sandbox.from_string)
    try:
        yield
    except TemplateError as error:
        words = str(error) or type(error).__name__
        raise BadInput(f"the template of a prompt cannot be filled in: {words}") from error
    finally:
        del env.from_string


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file, gzip or plain. Raises BadInput with the first line that is not a JSON object."""
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as lines
    ):
        rows = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise BadInput(f"{path.name}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise BadInput(
                    f"{path.name}, line {number}: a {type(row).__name__} where a row (an object) should be"
                )
            rows.append(row)
    if not rows:
        raise BadInput(f"{path.name} holds no row")
    return rows


def tasks_of_rows(
    benchmark: Benchmark, rows: list[Row], examples: list[Row], shots: int | None
) -> dict[str | None, Any]:
    """The harness's task over local rows, by subject (None: no subjects). `examples` are the rows shown as `shots`."""
    if benchmark.subject_column is None:
        given = benchmark.definition
        config = load_yaml(_DEFINITIONS / given) if isinstance(given, str) else dict(given)
        return {None: _task(config, _adapted(benchmark, rows), _adapted(benchmark, examples), shots)}
    column, tasks = benchmark.subject_column, {}
    for subject in sorted({row[column] for row in rows}):
        scored, shown = ([row for row in part if row[column] == subject] for part in (rows, examples))
        tasks[subject] = _task(_of_subject(benchmark, subject), scored, shown, shots)
    return tasks


def _of_subject(benchmark: Benchmark, subject: str) -> dict[str, Any]:
    path = _DEFINITIONS / str(benchmark.definition) / f"{benchmark.files}_{subject}.yaml"
    if not path.is_file():
        raise BadInput(f"{benchmark.name} has no subject {subject!r} in the harness {version()}")
    return load_yaml(path)


def groups_of(benchmark: Benchmark, subjects: Iterable[str | None]) -> dict[str, str]:
    """The harness's group of each subject, from the tag in its definition: `anatomy` → `stem`."""
    found = {}
    for subject in subjects:
        if subject is not None:
            tag = str(_of_subject(benchmark, subject)["tag"])
            found[subject] = _TAG.sub("", tag.removeprefix(f"{benchmark.files}_")).replace("_", " ")
    return found


def tasks_of_directory(directory: TaskDirectory, cache: Path) -> tuple[dict[str | None, Any], str]:
    """A user's tasks over their data files, by name (None: a single task), and the splits that are scored.

    The data are loaded by the harness's own readers; `cache` is the directory for the files that they write.
    """
    tasks: dict[str | None, Any] = {}
    splits = set()
    for name, config in directory.tasks.items():
        files = config["dataset_kwargs"]["data_files"]
        local = datasets.load_dataset(config["dataset_path"], data_files=files, cache_dir=str(cache))
        given = {field: value for field, value in config.items() if field != "dataset_kwargs"}
        task = _ready({**given, "custom_dataset": functools.partial(_given, local)}, None)
        tasks[name if len(directory.tasks) > 1 else None] = task
        splits.add(config.get("test_split") or config["validation_split"])
    return tasks, ", ".join(sorted(splits))


def _given(local: Any, **_: Any) -> Any:
    return local


def own_task(name: str, rows: list[Row]) -> dict[str | None, Any]:
    """A multiple-choice task over a user's rows {question, choices, answer}: question, one space, choice."""
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in ("acc", "acc_norm", "acc_mutual_info")
    ]
    config = {
        "task": name,
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: row["question"],
        "doc_to_choice": lambda row: row["choices"],
        "doc_to_target": lambda row: row["answer"],
        "metric_list": metrics,
    }
    return {None: _task(config, rows, [], 0)}


def _adapted(benchmark: Benchmark, rows: list[Row]) -> list[Row]:
    """BoolQ from its own hub page has a boolean `answer`; the harness's definition reads `label`."""
    if benchmark.name != "boolq":
        return rows
    return [row if "label" in row else {**row, "label": int(row["answer"])} for row in rows]


def _task(
    config: dict[str, Any], rows: list[Row], examples: list[Row], shots: int | None
) -> ConfigurableTask:
    local = {"scored": datasets.Dataset.from_list(rows)}
    if examples:
        local["examples"] = datasets.Dataset.from_list(examples)
    config = {
        **config,
        "custom_dataset": lambda **_: local,
        "training_split": None,
        "validation_split": None,
        "test_split": "scored",
        "fewshot_split": "examples" if examples else None,
    }
    return _ready(config, shots)


def _ready(config: dict[str, Any], shots: int | None) -> ConfigurableTask:
    task = ConfigurableTask(config=config)
    if shots is not None and task.config.num_fewshot != 0:
        task.set_config("num_fewshot", shots)
    if task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(_FEWSHOT_SEED)
    return task


Asked = tuple[str | None, Any, int, Row, list[Instance]]
"""One question: (subject, task, question id, row, requests)."""


def requests_of(subject: str | None, task: Any, ids: Iterable[int]) -> list[Asked]:
    """The requests for the given question ids, as the harness builds them."""
    built: list[Asked] = []
    for doc_id in ids:
        doc = task.task_docs[doc_id]
        context = task.fewshot_context(
            doc, num_fewshot=task.config.num_fewshot, gen_prefix=task.doc_to_prefix(doc)
        )
        made = task.construct_requests(doc=doc, ctx=context, metadata=(task.config.task, doc_id, 1))
        built.append((subject, task, doc_id, doc, made if isinstance(made, list) else [made]))
    return built


def answer(scorer: Scorer, built: Sequence[Asked]) -> list[Answered]:
    """Likelihoods of all requests in one pass, then the harness's metrics for each question, in the given order."""
    flat = [request for *_, requests in built for request in requests]
    likelihoods = scorer.loglikelihood(flat, disable_tqdm=True)
    answers, position = [], 0
    for subject, task, doc_id, doc, requests in built:
        given = likelihoods[position : position + len(requests)]
        position += len(requests)
        metrics = {name: float(value) for name, value in task.process_results(doc, given).items()}
        values = [value for value, _ in given]
        choices = len(task.doc_to_choice(doc)) if task.config.doc_to_choice is not None else 1
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        if isinstance(gold, str) and choices > 1:
            gold = task.doc_to_choice(doc).index(gold)
        right = requests[gold if choices > 1 and isinstance(gold, int) else 0].arguments[1]
        answers.append(
            Answered(
                subject,
                doc_id,
                metrics,
                values[:choices],
                values[choices:] or None,
                gold if choices > 1 else None,
                len(right.encode()),
            )
        )
    return answers


def version() -> str:
    """Version of the harness."""
    return str(lm_eval.__version__)
