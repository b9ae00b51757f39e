"""Measures a given model from the store, a directory or the hub, on benchmarks and on a run's held-out text.

It uses the same stages as a run, through the same store, so earlier measurements are found. A model that is not in the
store yet is imported first. Scores go to a separate MLflow run, under the same names as a run's scores.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.config import TrackingConfig
from flows.dag.call import Build
from flows.dag.pretrain import measure
from flows.dag.requests import Measures
from flows.dag.state import Model
from flows.lineage.names import resolve
from flows.machine.gpu import Gpu
from flows.runs.attempt import Attempt
from flows.runs.checks import check_device, check_length, check_store, positions_of
from flows.runs.session import current_flow_run, ending_kept, failure_explained, in_flow_run, shown
from flows.runs.stage_task import Builder
from flows.runs.tracked import experiment, open_tracker
from flows.tracking.tracker import Tracked, Tracker, describe_run, flat
from flows.tracking.view import View
from flows.ui import publish
from flows.ui.console import Console
from storage.artifact import Artifact, Input
from storage.catalog import Catalog
from storage.errors import ConfigError, OnwardError
from storage.keys import canonical_json
from storage.paths import home, state_directory
from storage.runs import read_records, shared_lock
from storage.settings import PathText, Settings, Whole, execution, identity, identity_of, identity_values
from storage.store import Request, Store
from storage.workers import Workers
from tasks.corpus.holdout import texts_held_out
from tasks.corpus.tokens.begin import EOS, Begin
from tasks.evaluation.catalog import EvaluationConfig, check_benchmarks
from tasks.evaluation.question_files import check_question_files
from tasks.models import base
from tasks.models.base import ModelConfig

PLAIN_NAME = r"^\w[\w.-]*$"
"""The name becomes part of paths, so it must not lead out of its directory."""
_REGISTERED = re.compile(r"[^/:@]+@[\w-]+")
_KEY = re.compile(r"(base|train|decay|checkpoint|merge)/[0-9a-f]+|[0-9a-f]{6,64}")


class Evaluation(Settings):
    """What to evaluate: the parameters of the flow."""

    model: PathText = execution(
        description="key (or its beginning) of a model in the store, name@alias of the registry, directory, or hub name"
    )
    benchmarks: EvaluationConfig = identity(description="what it is measured on")
    run: str | None = execution(None, description="run whose held-out text it is measured on too")
    sequence_length: Whole = identity(description="tokens that the model is given at most")
    begin: Begin | None = identity(
        None, since="0.2", description="token before a document and a question; null: as in the run, else eos"
    )
    seed: Whole = identity(description="of the draw, where there is a limit")
    device: str = execution(description="auto, cpu or cuda")
    benchmark_files: PathText | None = execution(description="directory of local copies; null: the hub")
    store: PathText = execution(description="directory of the store")
    name: str = execution(description="experiment in MLflow", pattern=PLAIN_NAME, max_length=60)
    tracking: TrackingConfig = execution(description="where scores are published")

    @property
    def id(self) -> str:
        """Six hex digits that identify the model's name and what is measured."""
        named = {"model": self.model, "run": self.run, **identity_of(self)}
        return hashlib.sha256(canonical_json(named)).hexdigest()[:6]

    @property
    def title(self) -> str:
        """`evaluation · train/8c01d5e2 · 3f9a2c`."""
        model = Path(self.model).name if self.model.startswith(("/", ".")) else self.model
        return f"{self.name} · {model} · {self.id}"


def execute(wanted: Evaluation, console: Console) -> Any:
    """Measure the model. Returns the same summary as a run, or, inside a flow run, its final state.

    Raises (or ends) before any stage if the model, the run or a benchmark cannot be found.
    """
    return in_flow_run(console, lambda: _execute(wanted, console))


def _execute(wanted: Evaluation, console: Console) -> dict[str, Any]:
    store = Store(home() / wanted.store)
    flow_run = current_flow_run()
    attempt: Attempt | None = None
    with failure_explained(store, lambda: attempt, console.warn):
        check_store(store.root)
        check_device(wanted.device, "device")
        store.root.mkdir(parents=True, exist_ok=True)
        with shared_lock(store), Workers(1) as workers:
            holdouts = held_out_of(store, wanted.run) if wanted.run else {}
            measures = measures_of(wanted, holdouts, console.warn, begin_of(store, wanted))
            with _tracked(wanted, store, flow_run, console) as tracker:
                gpu = Gpu(state_directory(), wanted.device, wanted.title)
                builder = Builder(store, workers, console, facts={"flow_run": flow_run}, gpu=gpu)
                record, config = f"{wanted.name}-{wanted.id}", wanted.model_dump(mode="json")
                attempt = Attempt(store, builder, tracker, flow_run, record, wanted.name, config)
                with ending_kept(attempt), attempt.account(), shown(builder, tracker, wanted.name):
                    model = model_of(wanted, store, builder)
                    measure(measures, builder, attempt.outcome, model, holdouts)
                    attempt.outcome.settle()
            assert attempt.summary is not None
            return attempt.summary.as_json()


def held_out_of(store: Store, name: str) -> dict[str, Input]:
    """The held-out documents of a run (its name, or a record's under `runs/`), by source.

    Raises ConfigError if there is no such run, or if it has no held-out documents.
    """
    records = [record for record in read_records(store) if name in (record.run, record.name)]
    if not records:
        known = ", ".join(record.run for record in read_records(store)) or "none"
        raise ConfigError(f"run: {store.root} has no run {name!r} (there are: {known})")
    found: dict[str, Input] = {}
    for record in records:
        for stage, key in record.artifacts:
            artifact = store.lookup(stage, key) if stage == "decontaminate" else None
            if artifact is not None and artifact.has("holdout") and texts_held_out(artifact.stats):
                found.setdefault(_source_of(store, artifact), artifact.part("holdout"))
    if not found:
        raise ConfigError(f"run: nothing of the run {name!r} is held out in {store.root}")
    return found


def _source_of(store: Store, artifact: Artifact) -> str:
    """The name of the source that a slice was read from, taken from the configuration of its first stage."""
    while artifact.stage != "ingest":
        documents = artifact.manifest.inputs["documents"]
        before = store.lookup(documents["stage"], documents["key"])
        if before is None:
            raise ConfigError(f"run: {documents['stage']}/{documents['key'][:16]} is gone from {store.root}")
        artifact = before
    return str(artifact.manifest.config["name"])


def begin_of(store: Store, wanted: Evaluation) -> Begin:
    """The token before a document and a question: the one asked for, or that of the run.

    Raises ConfigError if runs of that name differ in it.
    """
    if wanted.begin is not None:
        return wanted.begin
    records = [one for one in read_records(store) if wanted.run and wanted.run in (one.run, one.name)]
    found: set[Begin] = {record.config.get("packing", {}).get("begin", EOS) for record in records}
    if len(found) > 1:
        raise ConfigError(
            f"begin: runs of the name {wanted.run} differ in packing.begin; name one of them, or say eos or bos"
        )
    return found.pop() if found else EOS


def measures_of(
    wanted: Evaluation, holdouts: Mapping[str, Input], warn: Callable[[str], None], begin: Begin = EOS
) -> Measures:
    """The requested measures. Raises ConfigError if there are none, or if a benchmark cannot be measured."""
    section = wanted.benchmarks
    directory = home() / wanted.benchmark_files if wanted.benchmark_files else None
    own = tuple(mine for mine in section.below(home()).own if not mine.held_out or mine.held_out in holdouts)
    for mine in section.own:
        if mine.held_out and mine.held_out not in holdouts:
            warn(
                f"benchmark {mine.name} is left out: it is made of the held-out text of a run (parameter run)"
            )
    section = section.model_copy(update={"own": own})
    if not section.groups() and not holdouts:
        raise ConfigError("benchmarks: nothing to measure; name benchmarks, or a run for its held-out text")
    check_benchmarks(section, directory, list(holdouts))
    check_question_files(section, directory)
    return Measures(
        evaluation=section,
        benchmark_directory=directory,
        cache=home() / wanted.store / ".cache",
        seed=wanted.seed,
        max_length=wanted.sequence_length,
        device=wanted.device,
        warn=warn,
        begin=begin,
    )


def model_of(wanted: Evaluation, store: Store, build: Build) -> Model:
    """The model: found by its key, or imported as the stage `base` of a run would import it."""
    given = wanted.model
    if _REGISTERED.fullmatch(given) and not (home() / given).is_dir():
        try:
            opened, artifact, _ = resolve(given, store.root, wanted.tracking.mlflow_uri)
        except OnwardError as error:
            raise ConfigError(f"model: {error}") from error
        if opened.root.resolve() != store.root.resolve():
            raise ConfigError(
                f"model: {given} is in the store {opened.root}; name that store, not {store.root}"
            )
    elif not (home() / given).is_dir() and _KEY.fullmatch(given):
        try:
            found = Catalog(store).find(given)
        except OnwardError as error:
            raise ConfigError(f"model: {error}") from error
        known = store.lookup(found["stage"], found["key"])
        if known is None or not known.has("export"):
            raise ConfigError(
                f"model: {found['stage']}/{found['key'][:16]} holds no model (a trunk, or no training)"
            )
        artifact = known
    else:
        config = ModelConfig(base=given)
        artifact = build(Request(base, base.BaseConfig(), base.resolve_base(config, home())))
    positions = positions_of(artifact.path / "export")
    check_length(wanted.sequence_length, positions, "sequence_length", given)
    tokens = int(artifact.stats.get("tokens_seen", 0))
    return Model(given, tokens, artifact, 0)


@contextmanager
def _tracked(wanted: Evaluation, store: Store, flow_run: str | None, console: Console) -> Iterator[Tracker]:
    uri, artifacts = experiment(wanted.tracking.mlflow_uri, wanted.name)
    params = dict(flat({"model": wanted.model, **identity_values(wanted)}))
    url = publish.flow_run_url(flow_run)
    tags = {"onward.run": wanted.id, "prefect.flow_run": flow_run or "", "store": str(store.root)}
    tags |= {"prefect.url": url} if url else {}
    words = {"model": wanted.model, "benchmarks": ", ".join(wanted.benchmarks.groups()) or "none"}
    words |= {"held-out text of": wanted.run} if wanted.run else {}
    note = describe_run(wanted.title, url, store.root, words)
    view = View.of({}, wanted.benchmarks.groups())
    tracked = Tracked(wanted.name, wanted.id, wanted.title, uri, artifacts, params, tags, note, view=view)
    with open_tracker(Tracker(tracked, store, console.warn)) as tracker:
        yield tracker
