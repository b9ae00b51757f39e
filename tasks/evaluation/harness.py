"""The harness in process: its task definitions over local rows, its model class over a loaded model, its scores.

Prompts, shots, metrics and the likelihoods are lm-evaluation-harness's own; replaced are only where rows come from
(local files, no cache, no code of a data set), the batch size (by rule) and what it prints. Importing this module
imports the harness, which is slow: import it inside `run`.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import lm_eval.utils
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoTokenizer

from storage.errors import BadInput
from tasks.evaluation.catalog import Benchmark

Row = dict[str, Any]
_FEWSHOT_SEED = 1234  # the harness's own default
_BATCH_LOGITS = {"cpu": 2**26, "cuda": 2**29}  # values of fp32 logits per batch: 256 MiB and 2 GiB
_BATCH_ROWS = {"cpu": 32, "cuda": 512}


@dataclass(frozen=True)
class Answered:
    """One question as the model answered it. `choices` are log-likelihoods (nats), `alone` those without the question."""

    subject: str | None
    doc: int
    metrics: Mapping[str, float]
    choices: list[float]
    alone: list[float] | None
    target: int | None


@contextlib.contextmanager
def templates_compiled_once() -> Iterator[None]:
    """The harness compiles a prompt's template anew for each question, which takes a third of a small model's time."""
    env = lm_eval.utils.env
    env.from_string = functools.lru_cache(maxsize=256)(env.from_string)
    try:
        yield
    finally:
        del env.from_string


class Scorer(HFLM):
    """The harness's Hugging Face model with a batch size that follows from the requests alone, and a progress call."""

    def __init__(
        self, model: Any, export: Path, max_length: int, progress: Callable[[int, int, str], None]
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(export, local_files_only=True)
        super().__init__(
            pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=1, backend="causal"
        )
        self._progress, self._done, self._total, self.cut = progress, 0, 0, 0

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, override_bs: Any = None
    ) -> Any:
        pieces = [_pieces(request, self.max_length) for request in requests]
        flat = [piece for of_request in pieces for piece in of_request]
        longest = max(min(len(context) + len(answer), self.max_length) for _, context, answer in flat)
        kind = self.device.type if self.device.type in _BATCH_LOGITS else "cpu"
        rows = _BATCH_LOGITS[kind] // (longest * self.model.config.vocab_size)
        self.batch_size_per_gpu = max(1, min(_BATCH_ROWS[kind], rows))
        self.cut = sum(len(of_request) > 1 for of_request in pieces)
        self._done, self._total = 0, len(flat)
        given = iter(super()._loglikelihood_tokens(flat, disable_tqdm=True, override_bs=override_bs))
        self._progress(self._total, self._total, "requests")
        answers = []
        for of_request in pieces:
            parts = [next(given) for _ in of_request]
            answers.append((sum(value for value, _ in parts), all(greedy for _, greedy in parts)))
        return answers

    def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
        logits = super()._model_call(inps, attn_mask=attn_mask, labels=labels)
        self._done += len(inps)  # requests that share a forward pass are counted at the end
        self._progress(self._done, self._total, "requests")
        return logits


def _pieces(request: Any, length: int) -> list[Any]:
    """A request whose answer fits, alone; else the answer in steps of half a window, each after all that comes before.

    The harness stops on an answer that is longer than the model's window; so each of its tokens is scored once.
    """
    names, context, answer = request
    if len(answer) <= length:
        return [request]
    step = max(1, length // 2)
    starts = range(0, len(answer), step)
    return [(names, context + answer[:start], answer[start : start + step]) for start in starts]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file, gzip or plain. Raises BadInput with the place of the first line that is no JSON object."""
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
    """The harness's task over local rows, by subject (None: the benchmark has none). `examples` are shown with `shots`."""
    definition = Path(lm_eval.__file__).parent / "tasks" / benchmark.definition
    if benchmark.subject_column is None:
        return {
            None: _task(
                load_yaml(definition), _adapted(benchmark, rows), _adapted(benchmark, examples), shots
            )
        }
    column, tasks = benchmark.subject_column, {}
    for subject in sorted({row[column] for row in rows}):
        config = load_yaml(definition / f"{benchmark.name}_{subject}.yaml")
        scored, shown = ([row for row in part if row[column] == subject] for part in (rows, examples))
        tasks[subject] = _task(config, scored, shown, shots)
    return tasks


def own_task(name: str, rows: list[Row]) -> dict[str | None, Any]:
    """A multiple-choice task over a user's rows {question, choices, answer}: choice after question, one space between."""
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
    """BoolQ from its own hub page has `answer` as a boolean where the harness's definition reads `label`."""
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
"""(subject, task, question id, row, requests) of one question."""


def requests_of(subject: str | None, task: Any, ids: Iterable[int]) -> list[Asked]:
    """The requests of the given question ids, in the harness's own words."""
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
    """Likelihoods of all requests in one pass, then the harness's metrics for each question, in the order given."""
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
        answers.append(
            Answered(
                subject,
                doc_id,
                metrics,
                values[:choices],
                values[choices:] or None,
                gold if choices > 1 else None,
            )
        )
    return answers


def version() -> str:
    """Version of the harness."""
    return str(lm_eval.__version__)
