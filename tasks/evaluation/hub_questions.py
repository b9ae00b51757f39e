"""Benchmarks of the hub as files on this disk: <directory>/<benchmark>/<split>.jsonl, as local copies lie.

The data sets are those that the harness's own definitions name, whole splits at one commit, a row a line. Beside each
stands `<split>.origin.json`: dataset, configuration, split and commit. What is there is not asked for again, so all
models of a store answer the same questions, and the corpus is kept free of just these; what counts in keys is the
content of the file, so that a local copy of the same bytes is the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import orjson

from storage.atomic import write_bytes
from storage.errors import ConfigError
from tasks.corpus.reading.hub import Remembered, asked, commit_of
from tasks.evaluation.catalog import supported

_WHOLE = {"mmlu": "all", "mmlu_continuation": "all"}
"""Configurations that hold all subjects, where the harness reads one a subject."""


def fetch(names: Iterable[str], directory: Path, remembered: Remembered, where: str) -> Path:
    """Have the scored split of each benchmark in `directory`, which is returned.

    Raises ConfigError for a benchmark that the harness does not read from the hub, or that the hub does not have,
    HubUnreachable where the hub gives no answer.
    """
    for name in names:
        split_file(name, supported(name).split, directory, remembered, where)
    return directory


def split_file(name: str, split: str, directory: Path, remembered: Remembered, where: str) -> Path:
    """One split of a benchmark as JSON lines, fetched where it is not there yet."""
    path = directory / supported(name).files / f"{split}.jsonl"
    if path.is_file():
        return path
    dataset, configuration = supported(name).dataset
    configuration = _WHOLE.get(name, configuration)
    commit = commit_of("dataset", dataset, "main", where, remembered)
    lines = _rows(dataset, configuration, split, commit, f"{where}: {name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {"dataset": dataset, "configuration": configuration, "split": split, "commit": commit}
    write_bytes(path.with_name(f"{split}.origin.json"), json.dumps(origin, indent=1).encode() + b"\n")
    write_bytes(path, lines)
    return path


def _rows(dataset: str, configuration: str | None, split: str, commit: str, where: str) -> bytes:
    """All rows, in their order. Benchmarks are small (the largest here 8 MB), so they are held in memory."""
    import datasets

    load = partial(
        datasets.load_dataset,
        f"hf://datasets/{dataset}",
        configuration,
        split=split,
        revision=commit,
        streaming=True,
    )

    def read() -> bytes:
        return b"".join(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n" for row in load())

    try:
        return asked(read, "dataset", dataset, commit, where)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        raise ConfigError(
            f"{where}: the hub's {dataset} cannot be read ({first}); set benchmark_files to a directory of local copies"
        ) from error


def origins(directory: Path, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Where the files of benchmarks came from, as far as they were fetched."""
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            path = directory / supported(name).files / f"{supported(name).split}.origin.json"
            found[name] = json.loads(path.read_bytes())
    return found
