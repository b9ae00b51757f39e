"""A user's directory of the harness's task files, for tests: a template, two tasks with examples, data in two formats."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.support.evaluation.cases import Case

TEMPLATE = {
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "shown",
    "num_fewshot": 2,
    "doc_to_text": "Q: {{stem | trim}}\nA:",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "right",
    "description": "Choose well.\n\n",
    "metric_list": [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ],
}


def write_tasks(directory: Path, case: Case) -> list[str]:
    """Write the directory; the names of its tasks. Its paths are absolute, as the harness takes relative ones elsewhere."""
    directory.mkdir(parents=True)
    (directory / "_template").write_text(yaml.safe_dump(TEMPLATE))
    names = ["mine_early", "mine_late"]
    for number, name in enumerate(names):
        rows = _rows(case, 30 + 20 * number, 14 + 5 * number)
        kind, files = ("json", ("jsonl", "jsonl")) if number == 0 else ("parquet", ("parquet", "parquet"))
        given = {}
        for split, some, suffix in zip(("shown", "test"), (rows[:5], rows[5:]), files, strict=True):
            path = directory.resolve() / f"{name}-{split}.{suffix}"
            if suffix == "jsonl":
                path.write_text("".join(json.dumps(row) + "\n" for row in some))
            else:
                pq.write_table(pa.Table.from_pylist(some), path)
            given[split] = str(path)
        task = {
            "include": "_template",
            "task": name,
            "dataset_path": kind,
            "dataset_kwargs": {"data_files": given},
        }
        (directory / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return names


def _rows(case: Case, start: int, count: int) -> list[dict[str, object]]:
    """Which words come next in a real document, among three."""
    texts = [text.split() for text in case.texts[start % 60 :] + case.texts[: start % 60]]
    rows = []
    for number in range(count):
        words = texts[number]
        options = [" ".join(texts[number + at][12:18]) for at in range(3)]
        right = number % 3
        options[0], options[right] = options[right], options[0]
        rows.append({"stem": " ".join(words[:12]) + " ", "options": options, "right": right})
    return rows
