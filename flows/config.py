"""RunConfig: one YAML file describes the whole run. The same model is the parameter of the flow.

It is composed of sections that are defined beside each stage. Every field states whether it is identity (in a key) or
execution (never in a key). A wrong configuration is refused here, before any work starts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, ValidationError, model_validator

from storage.errors import ConfigError
from storage.executors import EXECUTOR, PROCESSES, check_executor
from storage.paths import home
from storage.settings import Count, Section, Settings, execution, identity, is_section, types_of
from storage.workers import usable_cores
from tasks.corpus.decontaminate import ContaminationConfig
from tasks.corpus.dedup import DedupConfig
from tasks.corpus.filter import FilterConfig
from tasks.corpus.pack import PackingConfig
from tasks.corpus.reading.sources import SourceConfig
from tasks.evaluation.catalog import EvaluationConfig
from tasks.models.base import ModelConfig
from tasks.models.config import TrainingConfig

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's error types for an unknown key of a model or a dataclass."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,59}")


def _auto_or_count(value: Any) -> Any:
    return value if value == "auto" else int(value)


def _executor(value: Any) -> Any:
    return check_executor(value) if isinstance(value, str) else value


class CorpusExecution(Settings):
    """Where the shards of the corpus stages run."""

    executor: Annotated[str, BeforeValidator(_executor)] = execution(
        PROCESSES,
        pattern=f"^({EXECUTOR})$",
        description="processes: on this machine; dask://host:port: on the Dask cluster of that scheduler",
    )
    workers: Annotated[int | Literal["auto"], BeforeValidator(_auto_or_count)] = execution(
        "auto", description="worker processes on this machine; auto: one per usable core"
    )

    @property
    def count(self) -> int:
        """Number of worker processes."""
        return usable_cores() if self.workers == "auto" else max(1, self.workers)


class CorpusConfig(Settings):
    """The section `corpus`."""

    sources: tuple[SourceConfig, ...] = identity(min_length=1, description="where the text comes from")
    slice_bytes: Count = identity(
        256_000_000, gt=0, description="text read from a source at a time, in bytes of UTF-8"
    )
    holdout_fraction: float = identity(
        0.005,
        ge=0,
        lt=0.5,
        description="share (0 to 1) of each source's first slice that is only ever measured on",
    )
    max_bad_fraction: float = identity(
        0.01, ge=0, le=1, description="share (0 to 1) of unreadable rows past which ingest fails"
    )
    dedup: DedupConfig = identity(default_factory=DedupConfig, description="which duplicates are dropped")
    filter: FilterConfig = identity(
        default_factory=FilterConfig, description="which documents are dropped for their quality"
    )
    decontaminate: ContaminationConfig = identity(
        default_factory=ContaminationConfig, description="documents that hold benchmark questions are dropped"
    )
    execution: CorpusExecution = execution(
        default_factory=CorpusExecution, description="where shards run; never changes what comes out"
    )

    @model_validator(mode="after")
    def _sources_make_sense(self) -> CorpusConfig:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"corpus.sources has the name {twice[0]!r} twice")
        return self


class TrackingConfig(Settings):
    """Where metrics and lineage are published. Never in a key."""

    mlflow_uri: str | None = execution(
        None, description="MLflow's address; null: MLFLOW_TRACKING_URI, else a local database"
    )
    registered_model: str | None = execution(
        None,
        pattern=r"^[^/:@\s]+$",
        max_length=100,
        description="name in MLflow's model registry; null: models are logged, none is registered",
    )

    @model_validator(mode="after")
    def _no_password(self) -> TrackingConfig:
        """Refuse a password, because run records, Prefect and MLflow show the configuration. The message hides it too."""
        if self.mlflow_uri and "@" in self.mlflow_uri.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "mlflow_uri names a user or a password, and the configuration is shown in many places; leave it "
                "out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment "
                "(for a database: its whole address as MLFLOW_TRACKING_URI, and mlflow_uri: null)"
            )
        return self


class RunConfig(Settings):
    """A whole run."""

    name: str = execution(
        description="the run's name in Prefect, MLflow and the report: letters, digits, _, - and .",
        pattern=r"^\w[\w.-]*$",
        max_length=60,
    )
    store: str = execution(
        "store", description="directory of the artifact store, absolute or from the project directory"
    )
    seed: int = identity(0, ge=0, description="seed of every choice that is drawn")
    benchmark_files: str | None = execution(
        None, description="directory of local benchmark files, <benchmark>/<split>.jsonl[.gz]; null: the hub"
    )
    corpus: CorpusConfig = identity(
        description="from text to documents: what is read, and what of it is kept"
    )
    model: ModelConfig = identity(description="the base model that training begins with")
    packing: PackingConfig = identity(description="from tokens to training sequences")
    training: TrainingConfig = identity(description="from sequences to models: budgets, rates, device")
    evaluation: EvaluationConfig = identity(
        default_factory=EvaluationConfig, description="what the base and every model are measured on"
    )
    tracking: TrackingConfig = execution(
        default_factory=TrackingConfig, description="where metrics and lineage are published"
    )

    @model_validator(mode="after")
    def _names_are_plain(self) -> RunConfig:
        """Refuse names that are not plain. They become parts of paths and must never lead out of their directory."""
        named = [("corpus.sources", source.name) for source in self.corpus.sources]
        named += [("evaluation.own", own.name) for own in self.evaluation.own]
        named += [("corpus.decontaminate.benchmarks", name) for name in self.corpus.decontaminate.benchmarks]
        for field, name in named:
            if not _PLAIN_NAME.fullmatch(name):
                raise ValueError(
                    f"{field}: {name[:80]!r} is no name: letters, digits, _, - and ., at most 60"
                )
        return self

    @property
    def store_path(self) -> Path:
        """The store's directory, absolute."""
        return home() / self.store

    @property
    def benchmark_directory(self) -> Path | None:
        """The directory of local benchmark files, absolute, or None for the hub."""
        return home() / self.benchmark_files if self.benchmark_files else None


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply overrides `dotted.key=value` (values as YAML).

    Raises ConfigError that names the file, each wrong key and, for an unknown key, the nearest known one.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values")
    for override in overrides:
        _set(raw, override)
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], where: str = "the configuration") -> RunConfig:
    """Validate plain data. Raises ConfigError like `load_config`."""
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        lines = [_explained(problem) for problem in error.errors()]
        raise ConfigError(f"{where}:\n" + "\n".join(f"  {line}" for line in dict.fromkeys(lines))) from error


def _set(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} is not of the form key=value")
    *path, last = key.strip().split(".")
    node = raw
    for step in path:
        below = node.setdefault(step, {})
        if below is None:
            below = node[step] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"--set {key}: {step} holds a value, not a section")
        node = below
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: {value!r} is no YAML: {error}") from error


def _explained(problem: Any) -> str:
    where = _dotted(problem["loc"])
    if problem["type"] not in _UNKNOWN:
        message = problem["msg"].removeprefix("Value error, ")
        given = problem.get("input")
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
        return f"{where}: {message}{shown}" if where else f"{message}"
    nearest = _nearest(where)
    return f"{where}: unknown key" + (f"; did you mean {nearest}?" if nearest else "")


_MEMBERS = {
    *("str", "int", "float", "bool"),
    *(
        kind
        for schedule in get_args(TrainingConfig.model_fields["schedule"].annotation)
        for kind in get_args(schedule.model_fields["kind"].annotation)
    ),
}
"""Pydantic's names for the union members that it tried. They are not part of a key."""


def _dotted(location: Sequence[str | int]) -> str:
    text = ""
    for step in location:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[a-z_]+", step) and step not in _MEMBERS:
            text += f".{step}" if text else step
    return text


def _nearest(where: str) -> str | None:
    plain = re.sub(r"\[\d+\]", "[]", where)
    known = list(dict.fromkeys(known_keys(RunConfig)))
    last = plain.rsplit(".", 1)[-1]
    misplaced = [key for key in known if key.rsplit(".", 1)[-1] == last]
    if misplaced:
        return misplaced[0]
    section = plain.rpartition(".")[0]
    siblings = {key.rsplit(".", 1)[-1]: key for key in known if key.rpartition(".")[0] == section}
    close = difflib.get_close_matches(last, siblings, n=1, cutoff=0.5)
    if close:
        return siblings[close[0]]
    names = {key.rsplit(".", 1)[-1]: key for key in known}
    close = difflib.get_close_matches(last, names, n=1, cutoff=0.6)
    return names[close[0]] if close else None


def known_keys(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted names of all configuration keys. `[]` stands for an index."""
    for name, annotation in types_of(model).items():
        yield prefix + name
        for below, many in _sections(annotation):
            yield from known_keys(below, f"{prefix}{name}{'[]' if many else ''}.")


def _sections(annotation: Any) -> Iterator[tuple[type[Section], bool]]:
    if is_section(annotation):
        yield annotation, False
    many = getattr(annotation, "__origin__", None) in (tuple, list)
    for argument in get_args(annotation):
        for below, nested in _sections(argument):
            yield below, many or nested
