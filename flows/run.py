"""A run with its surroundings, as the flow does it. It binds the DAG to the store, Prefect, MLflow and the terminal.

A run is named by its configuration's name and a digest of its identity; every attempt at it is one Prefect flow run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from prefect.context import FlowRunContext

from flows import publish
from flows.checks import check
from flows.config import RunConfig
from flows.places import from_home, mlflow_database, mlflow_files
from flows.pretrain import Outcome, adapt, describe
from flows.requests import Requests
from flows.rounds import short_count
from flows.stage import Builder, Call
from flows.story import Story
from flows.tracking import Tracked, Tracker, flat
from storage.artifact import Artifact
from storage.keys import canonical_json
from storage.runs import RunRecord, read_records, shared_lock, write_record
from storage.settings import identity_of
from storage.store import Store
from storage.workers import Workers


@dataclass(frozen=True)
class Options:
    """What one invocation asks for, beside the configuration."""

    force: tuple[str, ...] = ()
    until: str = "report"
    slices: int | None = None


def run_id(run: RunConfig) -> str:
    """Six hex digits that stand for the configuration: its identity, and what its base and sources are called."""
    model = run.model.model_dump(mode="json")
    if isinstance(run.model.base, str):
        model["base"] = from_home(run.model.base)
    named = {
        "base": model,
        "files": [[from_home(pattern) for pattern in source.files or ()] for source in run.corpus.sources],
    }
    return hashlib.sha256(canonical_json({"identity": identity_of(run), **named})).hexdigest()[:6]


def run_name(run: RunConfig) -> str:
    """`edu-125m · 400M→1B · 3f9a2c`."""
    budgets = "→".join(short_count(budget) for budget in run.training.token_budgets)
    return f"{run.name} · {budgets} · {run_id(run)}"


def execute(run: RunConfig, options: Options, story: Story) -> dict[str, Any]:
    """One attempt at a run, inside a flow run. Returns what `onward run --json` prints; so does the error raised."""
    check(run)
    store = Store(run.store_path)
    store.root.mkdir(parents=True, exist_ok=True)
    flow_run = _flow_run_id()
    with (
        shared_lock(store),
        Workers(run.corpus.execution.count, run.corpus.execution.executor) as workers,
        _tracked(run, store, flow_run, story) as tracker,
    ):
        builder = Builder(store, workers, story, frozenset(options.force), facts={"flow_run": flow_run})
        attempt = _Attempt(run, store, builder, tracker, flow_run)
        attempt.begin()
        builder.listeners += [tracker.listen, attempt.remember]
        ask = Requests(run, store, warn=story.warn)
        outcome = None
        try:
            outcome = adapt(
                ask,
                builder,
                until=options.until,
                slices=options.slices,
                overlap=_overlap(run),
                stop=builder.stop,
            )
        except BaseException as error:
            attempt.end("failed", None, error)
            raise
        return attempt.end("completed", outcome, None)


@dataclass
class _Attempt:
    """The account of one attempt: the run record, the pages in Prefect, the scores in MLflow."""

    run: RunConfig
    store: Store
    builder: Builder
    tracker: Tracker
    flow_run: str | None
    summary: dict[str, Any] | None = None

    def begin(self) -> None:
        known = {record.run: record for record in read_records(self.store)}
        name = f"{self.run.name}-{run_id(self.run)}"
        before = known.get(name)
        attempts = (*(before.attempts if before else ()), *([self.flow_run] if self.flow_run else []))
        publish.crash_lost_attempts(before, self.builder.story.warn)
        config = self.run.model_dump(mode="json")
        artifacts = before.artifacts if before else ()
        facts = {"pid": os.getpid(), "host": os.uname().nodename}
        self.record = RunRecord(name, self.run.name, config, artifacts, attempts, "running", facts)
        write_record(self.store, self.record)

    def remember(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Keep the record true at each stage, so that a run that is killed keeps what it made from `gc`."""
        if artifact is None or (artifact.stage, artifact.key) in self.record.artifacts:
            return
        self.record = replace(self.record, artifacts=(*self.record.artifacts, (artifact.stage, artifact.key)))
        write_record(self.store, self.record)

    def end(self, state: str, outcome: Outcome | None, error: BaseException | None) -> dict[str, Any]:
        made = {(artifact.stage, artifact.key) for artifact in self.builder.artifacts.values()}
        complete = state == "completed" and outcome is not None and outcome.report is not None
        artifacts = made if complete else {*self.record.artifacts, *made}
        models = describe(outcome) if outcome else []
        self._publish_scores(outcome)
        report = str(outcome.report.path.relative_to(self.store.root)) if outcome and outcome.report else None
        self.summary = {
            "flow_run": self.flow_run,
            "state": state,
            "stages": [asdict(record) for record in self.builder.records],
            "models": models,
            "report": report,
            "mlflow_run": self.tracker.parent,
        }
        write_record(self.store, replace(self.record, artifacts=tuple(sorted(artifacts)), state=state))
        page = outcome.report.part("report") if outcome and outcome.report else None
        publish.stage_table(self.builder.records)
        publish.report_page(page)
        if error is not None:
            error.summary = self.summary  # type: ignore[attr-defined]
        return self.summary

    def _publish_scores(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        for model in outcome.models:
            metrics = {f"perplexity/{name}": a.stats["perplexity"] for name, a in model.perplexity.items()}
            metrics |= {
                f"eval/{name}/{metric}": value
                for name, artifact in model.scores.items()
                for metric, value in artifact.stats["metrics"].items()
            }
            self.tracker.score(model.export.key, model.tokens, metrics)
            self.tracker.line(model.export.key, [a.part("journal").only() for a in model.journals])
        if outcome.report is not None:
            self.tracker.files(
                [path for path in outcome.report.part("report").paths if path.suffix in (".html", ".md")]
            )


@contextmanager
def _tracked(run: RunConfig, store: Store, flow_run: str | None, story: Story) -> Iterator[Tracker]:
    uri, artifacts = run.tracking.mlflow_uri, None
    if uri is None:
        uri = mlflow_database()
        artifacts = mlflow_files(run.name)
        artifacts.mkdir(parents=True, exist_ok=True)
    params = dict(flat(identity_of(run)))
    tags = {"onward.run": run_id(run), "prefect.flow_run": flow_run or "", "store": str(store.root)}
    tracked = Tracked(run.name, run_id(run), run_name(run), uri, artifacts, params, tags)
    tracker = Tracker(tracked, store.work_of, story.warn)
    tracker.start()
    try:
        yield tracker
    except KeyboardInterrupt:
        tracker.close("KILLED")
        raise
    except BaseException:
        tracker.close("FAILED")
        raise
    tracker.close("FINISHED")


def _overlap(run: RunConfig) -> bool:
    wanted = run.training.execution.overlap
    if wanted != "auto":
        return bool(wanted)
    if run.training.execution.device == "cpu":
        return False
    import torch

    return bool(torch.cuda.is_available())


def _flow_run_id() -> str | None:
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None
