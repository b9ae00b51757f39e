"""One attempt at a run or an evaluation, with its record in the store, its scores in MLflow, and its summary.

The record is correct at each stage. If a process is killed, `gc` and later readers still find what it made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from flows.dag.call import Call, StageRecord
from flows.dag.pretrain import describe
from flows.dag.state import Outcome
from flows.machine.processes import ProcessId, at_work
from flows.runs.ending import Ending
from flows.runs.prefect_away import tell_untold, untold_of
from flows.runs.prefect_states import crash_lost_attempts
from flows.runs.stage_task import Builder
from flows.tracking.tracker import Tracker
from flows.ui import publish
from storage.artifact import Artifact
from storage.provenance import host_name
from storage.runs import RunRecord, amend_record, read_records
from storage.store import Store

_MEASURED_BEFORE = ("perplexity", "evaluate", "pack", "report")
"""Stages after which more results of a model may exist. None of them runs beside the main thread."""


@dataclass(frozen=True)
class Summary:
    """The result of an attempt, as `onward run --json` prints it."""

    flow_run: str | None
    state: str
    stages: tuple[StageRecord, ...]
    models: tuple[dict[str, Any], ...]
    report: str | None
    """The report's directory, relative to the store."""
    mlflow_run: str | None

    def as_json(self) -> dict[str, Any]:
        """The summary as plain JSON values."""
        return {**asdict(self), "stages": [asdict(one) for one in self.stages], "models": list(self.models)}


@dataclass
class Attempt:
    """The account of one attempt. `record` names the run's record, `title` the configuration; `config` is plain JSON."""

    store: Store
    builder: Builder
    tracker: Tracker
    flow_run: str | None
    record: str
    title: str
    config: dict[str, Any]
    outcome: Outcome = field(default_factory=Outcome)
    """Filled along the way."""
    known: frozenset[str] = frozenset()
    """Keys of artifacts that earlier attempts made."""
    summary: Summary | None = None
    """Set when the attempt has ended."""
    ending: Ending | None = None
    """Set when it has ended early."""
    _noted: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    """Earlier attempts whose end Prefect has been told by this one."""

    @contextmanager
    def account(self) -> Iterator[None]:
        """Keep the account while the block runs, and record how it ends. A run with an `outcome.report` is complete."""
        self.begin()
        try:
            yield
        except Exception:
            self.end("failed")
            raise
        except BaseException:  # asked to stop
            self.end("stopped")
            raise
        self.end("completed")

    def begin(self) -> None:
        """Record that this attempt is at work, and correct the states that killed attempts left."""
        known = {record.run: record for record in read_records(self.store)}
        crash_lost_attempts(self.store, known.get(self.record), self.flow_run)
        self._told = tell_untold(known[self.record].facts.get("untold", {}) if self.record in known else {})
        publish.announce_process(self.flow_run)
        before = amend_record(self.store, self.record, self._begun, self.builder.console.warn)
        self.builder.listeners += [self.tracker.listen, self.remember, self._show_scores]
        self.known = frozenset(key for _, key in before.artifacts)
        self._noted |= self.known

    def end(self, state: str) -> Summary:
        """Record how the attempt ended: `completed`, `failed` or `stopped`."""
        complete = state == "completed" and self.outcome.report is not None
        models = describe(self.outcome) if state == "completed" else []
        self.publish_scores(complete)
        report = self.outcome.report if state == "completed" else None
        self.summary = Summary(
            self.flow_run,
            state,
            tuple(self.builder.records),
            tuple(models),
            str(report.path.relative_to(self.store.root)) if report else None,
            self.tracker.parent,
        )
        amend_record(self.store, self.record, lambda record: self._ended(record, state, complete))
        return self.summary

    def publish_measured(self) -> None:
        """Publish the results so far."""
        self.tracker.measured(self.outcome.models)

    def publish_scores(self, complete: bool) -> None:
        """Publish all results at the end. `complete` means that nothing of the run is missing."""
        self.publish_measured()

    def remember(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Add a finished artifact to the record, so that `gc` keeps it even if the run is killed."""
        if artifact is None or artifact.key in self._noted:
            return
        self._noted.add(artifact.key)
        made = (artifact.stage, artifact.key)

        def with_it(record: RunRecord | None) -> RunRecord:
            record = record or self._begun(None)
            return replace(record, artifacts=tuple(dict.fromkeys((*record.artifacts, made))))

        amend_record(self.store, self.record, with_it)

    def _show_scores(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Publish the results so far, because training may take days before the next ones."""
        if event == "end" and call.request.stage in _MEASURED_BEFORE:
            self.publish_measured()

    def leave_untold(self, state: str, message: str) -> None:
        """Keep the end of this attempt in the record, because Prefect cannot be told. The next attempt tells it."""
        if self.flow_run is None:
            return
        untold = untold_of(self.flow_run, state, message)

        def with_it(record: RunRecord | None) -> RunRecord:
            record = record or self._begun(None)
            facts = {**record.facts, "untold": {**record.facts.get("untold", {}), **untold}}
            return replace(record, facts=facts)

        amend_record(self.store, self.record, with_it)

    def _untold(self, record: RunRecord | None) -> dict[str, Any]:
        """Ends of attempts that Prefect still has to be told."""
        untold = record.facts.get("untold", {}) if record else {}
        left = {flow_run: end for flow_run, end in untold.items() if flow_run not in self._told}
        return {"untold": left} if left else {}

    @property
    def _own(self) -> str:
        """The name of this attempt in the record."""
        return self.flow_run or f"{host_name()}:{os.getpid()}"

    def _begun(self, before: RunRecord | None) -> RunRecord:
        process = ProcessId.current().to_dict()
        processes = at_work(before.processes if before else {}) | {self._own: process}
        earlier = [one for one in (before.attempts if before else ()) if one != self.flow_run]
        attempts = (*earlier, *([self.flow_run] if self.flow_run else []))
        artifacts = before.artifacts if before else ()
        facts = {"processes": processes, **self._untold(before)}
        return RunRecord(self.record, self.title, self.config, artifacts, attempts, "running", facts)

    def _ended(self, record: RunRecord | None, state: str, complete: bool) -> RunRecord:
        """The record at the end of this attempt.

        If the attempt was complete and no other one is at work, artifacts that no longer belong to the run are removed.
        """
        record = record or self._begun(None)
        made = {(artifact.stage, artifact.key) for artifact in self.builder.artifacts.values()}
        others = {name: one for name, one in at_work(record.processes).items() if name != self._own}
        artifacts = made if complete and not others else {*record.artifacts, *made}
        facts = {"processes": others, **self._untold(record)}
        return replace(
            record,
            artifacts=tuple(sorted(artifacts)),
            state="running" if others else state,
            facts=facts,
        )
