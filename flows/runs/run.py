"""A run with its surroundings, as the flow does it. It binds the DAG to the store, Prefect, MLflow and the terminal.

A run is named by its configuration's name and a digest of its identity; every attempt at it is one Prefect flow run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.config import RunConfig
from flows.dag.plan import make_plan, render
from flows.dag.pretrain import ALL_STAGES, Outcome, adapt, describe
from flows.dag.requests import Requests
from flows.dag.rounds import short_count
from flows.dag.slices import CORPUS_STAGES
from flows.machine.gpu import Gpu
from flows.machine.processes import at_work, start_ticks
from flows.runs.checks import advice, check, check_hub
from flows.runs.estimate import foresee
from flows.runs.prefect_states import crash_lost_attempts
from flows.runs.session import current_flow_run, in_flow_run, shown, told
from flows.runs.stage_task import Builder, Call
from flows.tracking.tracker import Tracked, Tracker, describe_run, flat
from flows.ui import publish
from flows.ui.console import Console
from storage.artifact import Artifact
from storage.errors import ConfigError, OnwardError, StageFailed
from storage.keys import canonical_json
from storage.paths import from_home, mlflow_database, mlflow_files, state_directory
from storage.runs import RunRecord, amend_record, read_records, shared_lock
from storage.settings import identity_of
from storage.store import Store
from storage.workers import Workers
from tasks import report_cost

_MEASURED_BEFORE = ("perplexity", "evaluate", "pack", "report")
"""Stages by whose end more of a model may have been measured; none of them runs beside the main thread."""

_TRUNK = "trunk/"
"""Before the names of scores of checkpoints that training kept on its way."""


@dataclass(frozen=True)
class Options:
    """What one invocation asks for, beside the configuration."""

    force: tuple[str, ...] = ()
    until: str = "report"
    slices: int | None = None
    dry_run: bool = False
    """Only say what would be done."""

    @property
    def forced(self) -> frozenset[str]:
        """Names of the stages that are made again; `all` in `force` stands for every one."""
        return frozenset(ALL_STAGES if "all" in self.force else self.force)


def run_id(run: RunConfig) -> str:
    """Six hex digits that stand for the configuration: its identity, and what its base and sources are called."""
    model = run.model.model_dump(mode="json")
    if isinstance(run.model.base, str):
        model["base"] = from_home(run.model.base)
    named = {
        "base": model,
        "files": [[from_home(pattern) for pattern in source.files or ()] for source in run.corpus.sources],
        "revisions": [source.hub.revision for source in run.corpus.sources if source.hub],
    }
    return hashlib.sha256(canonical_json({"identity": identity_of(run), **named})).hexdigest()[:6]


def run_name(run: RunConfig) -> str:
    """`edu-125m · 400M→1B · 3f9a2c`."""
    budgets = "→".join(short_count(budget) for budget in run.training.token_budgets)
    return f"{run.name} · {budgets} · {run_id(run)}"


def execute(run: RunConfig, options: Options, console: Console) -> Any:
    """One attempt at a run, inside a flow run: what `onward run --json` prints, or the state that the flow ends in.

    Outside of a flow run what fails raises RunFailed; in one the state holds it, and its text is the state's message.
    The error's `summary` is what `--json` prints. Asked to stop (by whatever is no Exception), it is gone in seconds:
    the trainer leaves a checkpoint, workers end in mid-shard, servers are waited for no longer than that.
    """
    return in_flow_run(console, lambda: _execute(run, options, console))


def _execute(run: RunConfig, options: Options, console: Console) -> Any:
    flow_run = current_flow_run()
    store = Store(run.store_path)
    builder: Builder | None = None
    with told(store, lambda: builder.calls if builder else []):
        check(run)
        if options.slices is not None and options.until not in CORPUS_STAGES:
            raise ConfigError(
                f"slices: goes with a corpus stage as the last one ({', '.join(CORPUS_STAGES)})"
            )
        check_hub(run)
        if options.dry_run:
            return _planned(run)
        for line in advice(run):
            console.warn(line)
        store.root.mkdir(parents=True, exist_ok=True)
        with (
            shared_lock(store),
            Workers(run.corpus.execution.count, run.corpus.execution.executor) as workers,
            _tracked(run, store, flow_run, console) as tracker,
        ):
            asked = run.training.execution
            gpu = Gpu(state_directory(), asked.device, run_name(run), asked.processes)
            facts = {"flow_run": flow_run}
            builder = Builder(store, workers, console, options.forced, facts, gpu=gpu)
            return _attempt(run, options, builder, _Attempt(run, store, builder, tracker, flow_run))


def _attempt(run: RunConfig, options: Options, builder: Builder, attempt: _Attempt) -> dict[str, Any]:
    attempt.begin()
    try:
        with shown(builder, attempt.tracker, run.name, attempt.known) as pages:
            outcome = adapt(
                Requests(run, builder.store, warn=builder.console.warn),
                builder,
                until=options.until,
                slices=options.slices,
                overlap=_overlap(run),
                stop=builder.stop,
                halt=builder.halt,
                outcome=attempt.outcome,
            )
            publish.data_page(pages, outcome.data.part("page") if outcome.data else None)
            page = _page(builder.store, outcome.report, builder.console) if outcome.report else None
            publish.report_page(pages, page)
            if "all" in options.force:
                _same_bytes(builder)
        return attempt.end("completed", outcome, None)
    except Exception as error:
        attempt.end("failed", None, error)
        raise
    except BaseException as error:  # asked to stop
        attempt.end("stopped", None, error)
        raise


def _page(store: Store, report: Artifact, console: Console) -> Path:
    """Where the report lies with what it cost, which no stage may know; or, where it cannot be written, without."""
    try:
        return report_cost.published(report, store.lookup, report_cost.page_of(store.root, report))
    except (OSError, OnwardError) as error:
        console.warn(f"the report is shown without what it cost: {error}")
        return report.path


def _same_bytes(builder: Builder) -> None:
    """Raises StageFailed where a stage that was made again gave other bytes than before."""
    differing = [
        f"{call.label} ({call.request.stage}/{call.request.key[:16]})"
        for call in builder.calls
        if call.differs
    ]
    if differing:
        raise StageFailed(
            f"{len(differing)} of {len(builder.calls)} stages gave other bytes than when they were first made: "
            f"{', '.join(differing)}. The old artifacts are set aside beside the new ones (.damaged-…), to compare. "
            "The same code, data and machine must give the same bytes: look at memory, disk and what was installed"
        )


def _planned(run: RunConfig) -> State[Any]:
    """What a dry run ends in: the plan is on its page, and nothing was made."""
    rows = foresee(run, make_plan(run))
    flow_run = current_flow_run()
    text = "\n".join([*(f"! {line}" for line in advice(run)), render(rows)])
    if flow_run is not None:
        publish.plan_page(publish.Pages(flow_run), rows, text)
    summary = {
        "flow_run": flow_run,
        "state": "planned",
        "stages": [],
        "models": [],
        "report": None,
        "mlflow_run": None,
        "plan": [vars(row) for row in rows],
    }
    waits = sum(row.state != "cached" for row in rows)
    message = (
        f"planned: {len(rows) - waits} stages are in the store, {waits} are to be made; nothing was built"
    )
    return Completed(name="Planned", message=message, data=summary)


@dataclass
class _Attempt:
    """The account of one attempt: the run record, the pages in Prefect, the scores in MLflow."""

    run: RunConfig
    store: Store
    builder: Builder
    tracker: Tracker
    flow_run: str | None
    summary: dict[str, Any] | None = None
    known: frozenset[str] = frozenset()
    """Keys that earlier attempts made."""
    name: str = ""
    outcome: Outcome = field(default_factory=Outcome)
    """Filled on the way."""
    _noted: set[str] = field(default_factory=set)

    def begin(self) -> None:
        self.name = f"{self.run.name}-{run_id(self.run)}"
        known = {record.run: record for record in read_records(self.store)}
        crash_lost_attempts(known.get(self.name), self.flow_run)
        publish.announce_process(self.flow_run)
        before = amend_record(self.store, self.name, self._begun)
        self.builder.listeners += [self.tracker.listen, self.remember, self._show_scores]
        self.known = frozenset(key for _, key in before.artifacts)

    @property
    def own(self) -> str:
        """What this attempt is called in the record."""
        return self.flow_run or f"{os.uname().nodename}:{os.getpid()}"

    def _begun(self, before: RunRecord | None) -> RunRecord:
        config = self.run.model_dump(mode="json")
        process = {"pid": os.getpid(), "host": os.uname().nodename, "started": start_ticks(os.getpid())}
        processes = at_work(before.processes if before else {}) | {self.own: process}
        earlier = [one for one in (before.attempts if before else ()) if one != self.flow_run]
        attempts = (*earlier, *([self.flow_run] if self.flow_run else []))
        artifacts = before.artifacts if before else ()
        facts = {"processes": processes}
        return RunRecord(self.name, self.run.name, config, artifacts, attempts, "running", facts)

    def remember(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Keep the record true at each stage, so that a run that is killed keeps what it made from `gc`."""
        if artifact is None or artifact.key in self._noted:
            return
        self._noted.add(artifact.key)
        made = (artifact.stage, artifact.key)

        def with_it(record: RunRecord | None) -> RunRecord:
            record = record or self._begun(None)
            return replace(record, artifacts=tuple(dict.fromkeys((*record.artifacts, made))))

        amend_record(self.store, self.name, with_it)

    def _ended(self, record: RunRecord | None, state: str, complete: bool) -> RunRecord:
        """Without what no longer belongs to the run, where this attempt was complete and none other is at work."""
        record = record or self._begun(None)
        made = {(artifact.stage, artifact.key) for artifact in self.builder.artifacts.values()}
        others = {name: one for name, one in at_work(record.processes).items() if name != self.own}
        artifacts = made if complete and not others else {*record.artifacts, *made}
        facts = {"processes": others}
        return replace(
            record,
            artifacts=tuple(sorted(artifacts)),
            state="running" if others else state,
            facts=facts,
        )

    def end(self, state: str, outcome: Outcome | None, error: BaseException | None) -> dict[str, Any]:
        complete = state == "completed" and outcome is not None and outcome.report is not None
        models = describe(outcome) if outcome else []
        self._publish_scores(complete)
        report = str(outcome.report.path.relative_to(self.store.root)) if outcome and outcome.report else None
        self.summary = {
            "flow_run": self.flow_run,
            "state": state,
            "stages": [asdict(record) for record in self.builder.records],
            "models": models,
            "report": report,
            "mlflow_run": self.tracker.parent,
        }
        amend_record(self.store, self.name, lambda record: self._ended(record, state, complete))
        if error is not None:
            error.summary = self.summary  # type: ignore[attr-defined]
        return self.summary

    def _show_scores(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Publish what is measured so far: a run may train for days after that."""
        if event == "end" and call.request.stage in _MEASURED_BEFORE:
            self._measured()

    def _measured(self) -> None:
        """What is measured so far. Checkpoints of the way are measured after the budget that follows them, so that their
        scores are a line of their own: within it no step goes back."""
        self.tracker.measured(self.outcome.models, self._registered)
        self.tracker.measured(self.outcome.between, prefix=_TRUNK)

    @property
    def _registered(self) -> tuple[str, ...]:
        """Names of the models that become versions of the registered model."""
        return ("base", *(short_count(budget) for budget in self.run.training.token_budgets))

    def _publish_scores(self, complete: bool) -> None:
        models, report = self.outcome.models, self.outcome.report
        self._measured()
        if complete:
            groups = self.run.evaluation.groups()
            roles = {source.name: source.role for source in self.run.corpus.sources}
            self.tracker.champion(models, self._registered, groups, roles)
        for made in (self.outcome.data, report):
            if made is not None:
                self.tracker.files(made)


def experiment(configured: str | None, name: str) -> tuple[str, Path | None]:
    """MLflow's address, and where it keeps an experiment's files (None where the server decides).

    Without an address of its own, a run is published to this home's database, which `onward up` serves.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and (configured or os.environ.get("ONWARD_MLFLOW_LOCAL") != "1"):
        return uri, None
    files = mlflow_files(name)
    files.mkdir(parents=True, exist_ok=True)
    return uri or mlflow_database(), files


@contextmanager
def _tracked(run: RunConfig, store: Store, flow_run: str | None, console: Console) -> Iterator[Tracker]:
    uri, artifacts = experiment(run.tracking.mlflow_uri, run.name)
    params = dict(flat(identity_of(run)))
    url = publish.flow_run_url(flow_run)
    tags = {"onward.run": run_id(run), "prefect.flow_run": flow_run or "", "store": str(store.root)}
    tags |= {"prefect.url": url} if url else {}
    note = describe_run(run_name(run), url, run.store_path, summary_of(run))
    registered = run.tracking.registered_model
    tracked = Tracked(run.name, run_id(run), run_name(run), uri, artifacts, params, tags, note, registered)
    with open_tracker(Tracker(tracked, store, console.warn)) as tracker:
        yield tracker


@contextmanager
def open_tracker(tracker: Tracker) -> Iterator[Tracker]:
    """Publish while the block runs; end the run in MLflow as the block ends."""
    tracker.start()
    try:
        yield tracker
    except Exception:
        tracker.close("FAILED")
        raise
    except BaseException:
        tracker.close("KILLED", seconds=publish.LAST_WORD_SECONDS)
        raise
    tracker.close("FINISHED")


def summary_of(run: RunConfig) -> dict[str, str]:
    """A configuration in a few words, for people: what is read, which model, how much, and when it is measured."""
    training = run.training
    base = run.model.base if isinstance(run.model.base, str) else "a new model"
    sources = ", ".join(f"{source.name} ({source.role}, {source.weight:g})" for source in run.corpus.sources)
    budgets = " → ".join(short_count(budget) for budget in training.token_budgets)
    return {
        "base": base,
        "sources": sources,
        "budgets": f"{budgets} tokens",
        "batch": f"{training.batch_tokens:,} tokens",
        "learning rate": f"{training.learning_rate:g}, {training.schedule.kind}",
        "sequence length": f"{run.packing.sequence_length:,} tokens",
        "seed": str(run.seed),
    }


def _overlap(run: RunConfig) -> bool:
    wanted = run.training.execution.overlap
    if wanted != "auto":
        return bool(wanted)
    if run.training.execution.device == "cpu":
        return False
    import torch

    return bool(torch.cuda.is_available())
