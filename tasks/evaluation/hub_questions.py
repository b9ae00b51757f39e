"""Benchmarks of the hub as local files: <directory>/<benchmark>/<split>.jsonl, the layout of local copies.

The data sets are those named in the harness's own definitions: whole splits at one commit, one row per line. Beside
each file, `<split>.origin.json` has dataset, configuration, split and commit. An existing file is not fetched again,
so all models of a store answer the same questions, and the corpus is decontaminated against exactly these. Keys
contain the file's content, so a local copy with the same bytes is equivalent.
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
"""Configurations that contain all subjects. The harness reads one per subject."""


def fetch(names: Iterable[str], directory: Path, remembered: Remembered, where: str) -> Path:
    """Make sure that `directory` contains the scored split of each benchmark; return `directory`.

    Raises ConfigError for a benchmark that the harness does not read from the hub, or that the hub does not have.
    Raises HubUnreachable if the hub does not answer.
    """
    for name in names:
        split_file(name, supported(name).split, directory, remembered, where)
    return directory


def split_file(name: str, split: str, directory: Path, remembered: Remembered, where: str) -> Path:
    """One split of a benchmark as JSON lines; fetched if it is missing."""
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
    """All rows in order, held in memory: benchmarks are small (the largest here has 8 MB)."""
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
    """The origin of each benchmark's file, for those that were fetched."""
    found = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            path = directory / supported(name).files / f"{supported(name).split}.origin.json"
            found[name] = json.loads(path.read_bytes())
    return found
