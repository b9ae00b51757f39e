"""RunConfig: one YAML file describes the whole run. The same model is the parameter of the flow.

It is composed of sections that are defined beside each stage. Every field states whether it is identity (in a key) or
execution (never in a key). A wrong configuration is refused here, before any work starts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BeforeValidator, ValidationError, model_validator

from storage.errors import ConfigError
from storage.executors import EXECUTOR, PROCESSES, check_executor
from storage.paths import home
from storage.settings import (
    Count,
    LineText,
    PathText,
    Real,
    Section,
    Settings,
    Whole,
    execution,
    identity,
    is_section,
    types_of,
)
from storage.units import Bounds, Written, auto_or_whole
from storage.workers import usable_cores
from storage.yaml_text import parse_yaml, read_yaml
from tasks.corpus.decontaminate import ContaminationConfig
from tasks.corpus.dedup import DedupConfig
from tasks.corpus.filter import FilterConfig
from tasks.corpus.pack import PackingConfig
from tasks.corpus.reading.sources import LikeConfig, SourceConfig, unlike_of
from tasks.evaluation.catalog import EvaluationConfig
from tasks.models.base import InitConfig, ModelConfig
from tasks.models.config import TrainingConfig
from tasks.models.merge import MergePlan

S = TypeVar("S", bound=Settings)
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's error types for an unknown key of a model or a dataclass."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,59}")


def _executor(value: Any) -> Any:
    return check_executor(value) if isinstance(value, str) else value


class CorpusExecution(Settings):
    """Where the shards of the corpus stages run."""

    executor: Annotated[str, BeforeValidator(_executor)] = execution(
        PROCESSES,
        pattern=f"^({EXECUTOR})$",
        description="processes: on this machine; dask://host:port: on the Dask cluster of that scheduler",
    )
    workers: Annotated[Annotated[int, Bounds(ge=1, le=1024)] | Literal["auto"], Written(auto_or_whole)] = (
        execution("auto", description="worker processes on this machine; auto: one per usable core")
    )

    @property
    def count(self) -> int:
        """Number of worker processes."""
        return usable_cores() if self.workers == "auto" else self.workers


class CorpusConfig(Settings):
    """The section `corpus`."""

    sources: tuple[SourceConfig, ...] = identity(min_length=1, description="where the text comes from")
    slice_bytes: Count = identity(
        256_000_000, gt=0, description="text read from a source at a time, in bytes of UTF-8"
    )
    holdout_fraction: Real = identity(
        0.005,
        ge=0,
        lt=0.5,
        description="share (0 to 1) of each source's first slice that is only ever measured on",
    )
    holdout_piece: Count | None = identity(
        None,
        since="0.2",
        ge=200,
        description="bytes of a piece that is held out of each document of at least four times the size, for texts such as "
        "books, of which there are too few to hold out whole ones; null: documents are held out whole",
    )
    max_bad_fraction: Real = identity(
        0.01, ge=0, le=1, description="share (0 to 1) of unreadable rows past which ingest fails"
    )
    max_epochs: Real | None = execution(
        None,
        ge=1,
        le=1e9,
        description="readings of a source's text, past which nothing is trained; null: no limit, only a warning past 4",
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
        for at, source in enumerate(self.sources):
            if source.like is not None:
                self._like(f"corpus.sources[{at}].like", source.name, source.like)
        if not any(source.weight for source in self.sources):
            raise ValueError(
                "corpus.sources: one source at least needs a weight above 0; 0 is for what is only measured"
            )
        if not any(source.branch_weight for source in self.sources):
            raise ValueError(
                "corpus.sources: one source at least needs a decay_weight above 0, or none has one"
            )
        return self

    def _like(self, field: str, name: str, like: LikeConfig) -> None:
        """Refuse examples that are no other source, or that are filtered by examples themselves."""
        known = {source.name: source for source in self.sources}
        other = unlike_of(self.sources, like)
        for key, given in (("source", like.source), ("unlike", other)):
            if given is None:
                raise ValueError(f"{field}.unlike: there is no replay source to tell it from; name a source")
            if given == name or given not in known:
                there = ", ".join(one for one in known if one != name) or "none"
                raise ValueError(f"{field}.{key}: {given!r} is no other source (there are: {there})")
            if known[given].like is not None:
                raise ValueError(
                    f"{field}.{key}: source {given!r} has examples of its own; name one that has none"
                )
        if other == like.source:
            raise ValueError(f"{field}: {other!r} cannot be both the examples and what they are told from")


class TrackingConfig(Settings):
    """Where metrics and lineage are published. Never in a key."""

    mlflow_uri: LineText | None = execution(
        None, description="MLflow's address; null: MLFLOW_TRACKING_URI, else a local database"
    )
    registered_model: str | None = execution(
        None,
        pattern=r"^[^/:@\s]+$",
        max_length=100,
        description="name in MLflow's model registry; null: the configuration's name; none: no model is registered",
    )

    def registered(self, name: str) -> str | None:
        """The registered model of a configuration of this `name`; None if none is wanted."""
        return None if self.registered_model == "none" else self.registered_model or name

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
    store: PathText = execution(
        "store", description="directory of the artifact store, absolute or from the project directory"
    )
    seed: Whole = identity(0, ge=0, description="seed of every choice that is drawn")
    benchmark_files: PathText | None = execution(
        None, description="directory of local benchmark files, <benchmark>/<split>.jsonl[.gz]; null: the hub"
    )
    corpus: CorpusConfig = identity(
        description="from text to documents: what is read, and what of it is kept"
    )
    model: ModelConfig = identity(description="the base model that training begins with")
    packing: PackingConfig = identity(
        default_factory=PackingConfig, description="from tokens to training sequences"
    )
    training: TrainingConfig = identity(description="from sequences to models: budgets, rates, device")
    evaluation: EvaluationConfig = identity(
        default_factory=EvaluationConfig, description="what the base and every model are measured on"
    )
    merge: MergePlan = identity(
        default_factory=MergePlan,
        since="0.2",
        description="models between the base and the last budget's, untrained",
    )
    tracking: TrackingConfig = execution(
        default_factory=TrackingConfig, description="where metrics and lineage are published"
    )
    price_per_hour: Real | None = execution(
        None,
        ge=0,
        le=1e6,
        description="price of an hour of this machine, in any currency, for what a plan says; null: no price is said",
    )

    @model_validator(mode="after")
    def _names_are_plain(self) -> RunConfig:
        """Refuse names that are not plain. They become parts of paths and must never lead out of their directory."""
        named = [(f"corpus.sources[{at}].name", one.name) for at, one in enumerate(self.corpus.sources)]
        named += [(f"evaluation.own[{at}].name", one.name) for at, one in enumerate(self.evaluation.own)]
        searched = enumerate(self.corpus.decontaminate.benchmarks)
        named += [(f"corpus.decontaminate.benchmarks[{at}]", name) for at, name in searched]
        for field, name in named:
            if not _PLAIN_NAME.fullmatch(name):
                raise ValueError(
                    f"{field}: {name[:80]!r} is no name: letters, digits, _, - and ., at most 60"
                )
        return self

    @model_validator(mode="after")
    def _anneals_in_a_branch(self) -> RunConfig:
        given = [source.name for source in self.corpus.sources if source.decay_weight is not None]
        if given and self.training.schedule.kind != "wsd":
            raise ValueError(
                f"decay_weight of source {given[0]} goes with training.schedule.kind: wsd, which has a branch that decays"
            )
        return self

    @model_validator(mode="after")
    def _stops_by_a_source(self) -> RunConfig:
        stop, names = self.training.stop, [source.name for source in self.corpus.sources]
        if stop is not None and stop.source not in names:
            raise ValueError(
                f"training.stop.source: {stop.source[:80]!r} is no source; there are: {', '.join(names)}"
            )
        if stop is not None and not self.corpus.holdout_fraction:
            raise ValueError("training.stop needs held-out text: set corpus.holdout_fraction above 0")
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
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        what = (
            "it is empty" if raw is None else f"it holds {'a list' if isinstance(raw, list) else 'one value'}"
        )
        raise ConfigError(f"{path} holds no mapping of keys to values: {what}")
    for override in overrides:
        _set(raw, override)
    return parse_config(raw, str(path))


def with_overrides(run: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The configuration with overrides `dotted.key=value` (values as YAML). Raises ConfigError like `load_config`."""
    raw = run.model_dump(mode="json", exclude_unset=True)
    for override in overrides:
        _set(raw, override)
    return parse_config(raw, run.name)


def parse_config(raw: Any, where: str = "the configuration") -> RunConfig:
    """Validate plain data. Raises ConfigError like `load_config`."""
    return parse_section(RunConfig, raw, where)


def parse_section(section: type[S], raw: Any, where: str) -> S:
    """Validate plain data as a section. Raises ConfigError with the dotted name of each wrong key."""
    try:
        return section.model_validate(raw)
    except ValidationError as error:
        lines = "".join(f"\n  {line}" for line in _explained(error, section))
        raise ConfigError(f"{where}:{lines}") from error


def _set(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    steps = [step for part in key.strip().split(".") for step in re.split(r"\[(\d+)\]", part) if step]
    if not equals or not steps:
        raise ConfigError(f"--set {override[:200]!r} is not of the form key=value")
    key = ".".join(steps)[:200]
    new = parse_yaml(value, f"--set {key}")
    node: Any = raw
    for at, step in enumerate(steps):
        place: Any = step
        if isinstance(node, list):
            place = int(step) if re.fullmatch(r"\d{1,9}", step) else -1
            if not 0 <= place < len(node):
                known = ", ".join(str(one) for one in range(len(node))) or "none, it is empty"
                raise ConfigError(f"--set {key}: {step} is no entry of the list (there are: {known})")
        if at == len(steps) - 1:
            node[place] = new
            return
        if isinstance(node, dict) and node.get(place) is None:
            node[place] = {}
        node = node[place]
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {key}: {step} holds a value, not a section")


# ---- how a refusal is told --------------------------------------------------------------------------------------------

_LONGEST = 600
_INSIDE = {InitConfig: "init"}
"""Sections that stand below a key of their own in a union: `model.base: {init: …}`."""


def _explained(error: ValidationError, root: type[Section]) -> list[str]:
    """One line for each wrong key, with its dotted name.

    A union reports each type that it tried. If a value has errors inside, it was meant as a section, and its other errors
    are left out; so are those beside an error in our own words.
    """
    found: dict[str, dict[str, bool]] = {}
    for problem in error.errors():
        where = _dotted(root, problem["loc"], problem["type"])
        message = _unknown(root, where) if problem["type"] in _UNKNOWN else _wrong(problem)
        found.setdefault(where, {})[message] = problem["type"] == "value_error"
    lines = []
    for where, messages in found.items():
        inside = any(other.startswith((f"{where}.", f"{where}[")) for other in found)
        if where and inside:
            continue
        own = [message for message, ours in messages.items() if ours]
        lines.append(_line(where, own or list(messages)))
    return lines


def _line(where: str, messages: list[str]) -> str:
    text = "; or: ".join(messages)
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return text if not where or text.startswith(where) else f"{where}: {text}"


_WORDS = {
    **dict.fromkeys(("tuple_type", "list_type"), "must be a list"),
    **dict.fromkeys(
        ("model_type", "dataclass_type", "model_attributes_type", "dict_type"),
        "must be a section of keys and values",
    ),
    "missing": "is required and missing",
}
"""Our words for pydantic's types of errors, where its own speak of Python."""


def _wrong(problem: Any) -> str:
    if problem["type"].startswith("union_tag_"):
        kinds = str(problem.get("ctx", {}).get("expected_tags", "")).replace("'", "")
        return f"must be a section whose kind is one of {kinds}" if kinds else "needs its key kind"
    message = _WORDS.get(problem["type"], str(problem["msg"]).removeprefix("Value error, "))
    if problem["type"] == "value_error":  # our own words, which show the value where that helps
        return message
    given = problem.get("input")
    if not (given is None or isinstance(given, str | int | float)):
        return message
    return f"{message} (given: {_shown(given)})"


def _shown(value: str | int | float | None) -> str:
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write thousands of digits
        return f"an integer of {value.bit_length():,} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"


def _unknown(root: type[Section], where: str) -> str:
    nearest = _nearest(root, where)
    return "unknown key" + (f"; did you mean {nearest}?" if nearest else "")


def _dotted(root: type[Section], location: Sequence[str | int], kind_of_error: str = "") -> str:
    """The dotted name of a place in the configuration, with indices: `corpus.sources[1].weight`.

    Pydantic's location also names the types of a union that it tried. The model says which steps are keys; of an
    unknown key, the last step is one too.
    """
    text, kinds = "", list(_alternatives(root))
    for at, step in enumerate(location):
        sections = [kind for kind in kinds if is_section(kind)]
        named = [kind for kind in sections if step in types_of(kind)]
        if isinstance(step, int):
            text += f"[{step}]"
            kinds = [below for kind in kinds for item in _items(kind) for below in _alternatives(item)]
        elif named:
            text += f".{step}"
            kinds = [below for kind in named for below in _alternatives(types_of(kind)[str(step)])]
        elif any(get_origin(kind) is dict for kind in kinds) and step != "[key]":
            text += f".{step}"
            kinds = [
                below
                for kind in kinds
                if get_origin(kind) is dict
                for below in _alternatives(get_args(kind)[1])
            ]
        elif kind_of_error in _UNKNOWN and at == len(location) - 1:
            text += f".{step}"
        elif kept := [kind for kind in sections if _is_name_of(kind, step)]:
            kinds = kept
            if at < len(location) - 1 or kind_of_error == "value_error":
                text += "".join(f".{_INSIDE[kind]}" for kind in kept if kind in _INSIDE)
    return text.removeprefix(".")


def _is_name_of(section: Any, step: str) -> bool:
    """Whether pydantic names a member of a union so: by its class (maybe inside a validator's name), or its `kind`."""
    kind = types_of(section).get("kind")
    kinds = get_args(kind) if get_origin(kind) is Literal else ()
    return step in kinds or re.split(r"[\[\], ]+", step.rstrip("]"))[-1] == section.__name__


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows, without null and without markers."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for one in get_args(annotation):
            yield from _alternatives(one)
    elif annotation is not NoneType:
        yield annotation


def _items(kind: Any) -> Iterator[Any]:
    """The types of a list's entries."""
    if get_origin(kind) in (tuple, list):
        yield from (one for one in get_args(kind) if one is not Ellipsis)


def _nearest(root: type[Section], where: str) -> str | None:
    plain = re.sub(r"\[\d+\]", "[]", where)
    known = list(dict.fromkeys(known_keys(root)))
    section, _, last = plain.rpartition(".")
    siblings = {key.rsplit(".", 1)[-1]: key for key in known if key.rpartition(".")[0] == section}
    misplaced = [key for key in known if key.rsplit(".", 1)[-1] == last]
    if misplaced:
        return misplaced[0]
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
            inside = f".{_INSIDE[below]}" if below in _INSIDE else ""
            yield from known_keys(below, f"{prefix}{name}{'[]' if many else ''}{inside}.")


def _sections(annotation: Any, many: bool = False) -> Iterator[tuple[type[Section], bool]]:
    """The sections that a type holds, and whether it holds many of them."""
    for kind in _alternatives(annotation):
        if is_section(kind):
            yield kind, many
        for item in _items(kind):
            yield from _sections(item, True)
