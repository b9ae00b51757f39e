"""A user's own benchmark as a directory of the harness's task files (YAML) with local data files.

The harness's formats are read, but its code is never run from them. A file that asks for code (`!function`, a script
for its data set, an external metric) is refused, by name, before any work. Several tasks in one directory form one
benchmark; each task is a subject, weighted by its questions. This module does not import the harness.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import ConfigError
from storage.yaml_text import read_yaml

_DATA = ("json", "csv", "parquet")
_OUTPUTS = {
    "multiple_choice": ("acc", "acc_norm", "acc_bytes", "acc_mutual_info"),
    "loglikelihood": ("acc", "perplexity"),
}
_AGGREGATIONS = {"perplexity": "perplexity"}
_SHOTS_FIELDS = frozenset(
    {
        *("sampler", "split", "samples", "fewshot_indices", "doc_to_text", "doc_to_choice", "doc_to_target"),
        *("gen_prefix", "fewshot_delimiter", "target_delimiter"),
    }
)
_FIELDS = frozenset(
    {
        *("task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "output_type"),
        *(
            "training_split",
            "validation_split",
            "test_split",
            "fewshot_split",
            "fewshot_config",
            "num_fewshot",
        ),
        *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix", "target_delimiter"),
        *("fewshot_delimiter", "metric_list", "repeats", "metadata"),
        *("should_decontaminate", "doc_to_decontamination_query"),
    }
)
_GROUP_FIELDS = frozenset(["group", "group_alias", "task", "aggregate_metric_list", "metadata"])


@dataclass(frozen=True)
class TaskDirectory:
    """`tasks`: the harness's configurations by task name, with absolute paths of the data files by split.

    `files`: all files that decide the result, by a name that does not depend on the directory's location.
    """

    tasks: Mapping[str, dict[str, Any]]
    files: Mapping[str, Path]

    @property
    def main(self) -> str:
        """The score shown first: the first task's `acc_norm`, else `acc`, else its first share of right answers.

        It is never perplexity: lower is better there, and it is not a share, so it cannot enter a mean of scores.
        """
        first = next(iter(self.tasks.values()))
        shares = _shares(first)
        return next((name for name in ("acc_norm", "acc") if name in shares), shares[0])


def read_task_directory(directory: Path) -> TaskDirectory:
    """The tasks of a directory.

    Raises ConfigError, naming file and field, for missing files, for code, and for kinds that are not supported here.
    """
    if not directory.is_dir():
        raise ConfigError(f"{directory} is no directory")
    tasks: dict[str, dict[str, Any]] = {}
    files: dict[str, Path] = {}
    for path in sorted(directory.rglob("*.yaml")):
        read: list[Path] = []
        config = _merged(path, directory, read)
        if "group" in config:
            _check_group(path, config)
        elif isinstance(config.get("task"), str):  # other files are templates, read when a task includes them
            if config["task"] in tasks:
                raise ConfigError(f"{path}: the task {config['task']} stands in another file too")
            tasks[config["task"]] = _checked(path, config, directory, files)
            files.update({_name(one, directory): one for one in read})
    if not tasks:
        raise ConfigError(f"{directory} holds no task of the harness (a .yaml file with a field `task`)")
    return TaskDirectory(dict(sorted(tasks.items())), dict(sorted(files.items())))


def _shares(config: Mapping[str, Any]) -> list[str]:
    """Metrics of a task that are shares of right answers, in the task's order."""
    names = [str(entry["metric"]) for entry in config.get("metric_list") or ()]
    if not names:  # the harness's own lists (`DEFAULT_METRIC_REGISTRY`)
        names = ["acc", "acc_norm"] if config["output_type"] == "multiple_choice" else ["perplexity", "acc"]
    return [name for name in names if name != "perplexity"]


_NO_CODE = {
    "!function": "!function names code, and no code of a task directory is run: write the prompt as a template, and put "
    "prepared values into the data file"
}


def _load(path: Path) -> dict[str, Any]:
    found = read_yaml(path, _NO_CODE)
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no fields")
    return found


def _merged(path: Path, directory: Path, read: list[Path]) -> dict[str, Any]:
    """A file's fields merged over those of the files that it includes, as the harness does. Adds every file to `read`."""
    if path in read:
        raise ConfigError(f"{path} includes itself")
    read.append(path)
    config = _load(path)
    included = config.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        other = (path.parent / str(name)).resolve()
        if not other.is_relative_to(directory.resolve()) or not other.is_file():
            raise ConfigError(f"{path}: include: {name} is no file of {directory}")
        merged.update(_merged(other, directory, read))
    return {**merged, **config}


def _check_group(path: Path, config: Mapping[str, Any]) -> None:
    _only(path, "", config, _GROUP_FIELDS)
    for entry in config.get("aggregate_metric_list") or ():
        if entry.get("aggregation", "mean") != "mean" or entry.get("weight_by_size", True) is not True:
            raise ConfigError(
                f"{path}: aggregate_metric_list: only the mean weighted by size is measured here"
            )


def _checked(
    path: Path, config: Mapping[str, Any], directory: Path, files: dict[str, Path]
) -> dict[str, Any]:
    _only(path, "", config, _FIELDS)
    _only(path, "fewshot_config.", config.get("fewshot_config") or {}, _SHOTS_FIELDS)
    _only(path, "dataset_kwargs.", config.get("dataset_kwargs") or {}, frozenset({"data_files"}))
    kind = config.get("output_type")
    if kind not in _OUTPUTS:
        raise ConfigError(f"{path}: output_type {kind}: measured here are {' and '.join(_OUTPUTS)}")
    for entry in config.get("metric_list") or ():
        _check_metric(path, entry, _OUTPUTS[kind])
    if not _shares(config):
        raise ConfigError(
            f"{path}: metric_list: the task {config['task']} has perplexity alone, which is no share of right answers and "
            "cannot be shown first: name acc too"
        )
    if config.get("repeats", 1) != 1:
        raise ConfigError(f"{path}: repeats: likelihoods do not change, so only 1 is measured")
    if config.get("dataset_path") not in _DATA:
        raise ConfigError(
            f"{path}: dataset_path {config.get('dataset_path')}: local files are read, as {', '.join(_DATA)}"
        )
    data = dict(_data_files(path, (config.get("dataset_kwargs") or {}).get("data_files")))
    for field in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(field) is not None and config[field] not in data:
            raise ConfigError(f"{path}: {field}: {config[field]} is not in dataset_kwargs.data_files")
    if not (config.get("test_split") or config.get("validation_split")):
        raise ConfigError(f"{path}: neither test_split nor validation_split says what is scored")
    for split, some in data.items():
        for place, one in enumerate(some):
            files[_data_name(one, directory, f"{config['task']}/{split}/{place}")] = one
    given = {split: [str(one) for one in some] for split, some in data.items()}
    return {**config, "dataset_kwargs": {"data_files": given}}


def _check_metric(path: Path, entry: Any, known: tuple[str, ...]) -> None:
    name = entry.get("metric") if isinstance(entry, dict) else None
    if name not in known:
        raise ConfigError(f"{path}: metric_list: {name}: measured here are {', '.join(known)}")
    _only(path, "metric_list.", entry, frozenset({"metric", "aggregation", "higher_is_better"}))
    if entry.get("aggregation", _AGGREGATIONS.get(name, "mean")) != _AGGREGATIONS.get(name, "mean"):
        raise ConfigError(f"{path}: metric_list: {name} is aggregated by {_AGGREGATIONS.get(name, 'mean')}")


def _data_files(path: Path, given: Any) -> Iterator[tuple[str, list[Path]]]:
    """Splits and their files. A relative path starts at the directory of its YAML file."""
    if not isinstance(given, dict):
        given = {"train": given}
    for split, names in given.items():
        files = []
        for name in names if isinstance(names, list) else [names]:
            file = path.parent / str(name)
            if not isinstance(name, str) or not file.is_file():
                raise ConfigError(f"{path}: dataset_kwargs.data_files: {split}: {name} is no local file")
            files.append(file.resolve())
        yield str(split), files


def _only(path: Path, where: str, config: Any, fields: frozenset[str]) -> None:
    wrong = sorted(str(name) for name in set(config) - fields)
    if wrong:
        raise ConfigError(f"{path}: {', '.join(where + name for name in wrong)}: not supported here")


def _name(file: Path, directory: Path) -> str:
    """The name of a task file: its path in the directory, even if it is a link to elsewhere."""
    root = directory if file.is_relative_to(directory) else directory.resolve()
    return str(file.relative_to(root))


def _data_name(file: Path, directory: Path, use: str) -> str:
    """The name of a data file: its path in the directory; for a file elsewhere, its use by a task."""
    root = directory.resolve()
    return str(file.relative_to(root)) if file.is_relative_to(root) else f"../{use}"
