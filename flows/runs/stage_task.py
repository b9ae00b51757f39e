"""How a stage becomes a Prefect task. This is the only @task. It asks the store and reports `Cached` or `Completed`.

Prefect's own cache is off, because the store is the only cache. What is in the store passes by Prefect's engine
(found_task.py). `Builder.records` keeps what a stage made, its time and
what it dropped; the table, the JSON line and the run record are made from it. Listeners are called when a stage begins,
progresses, waits, ends or fails. They must return at once.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext

from flows.dag.call import Call, Follower, Listener, StageRecord
from flows.dag.healing import handed_out, healed
from flows.machine.gpu import Gpu
from flows.runs import found_task
from flows.ui.console import Console
from storage.artifact import Artifact
from storage.errors import Interrupted, OnwardError, said
from storage.store import Ensured, Making, Request, Store
from storage.workers import Workers
from tasks import stages
from tasks.models.progress import last_row, newest_checkpoint


@dataclass
class Builder:
    """Makes stages for a flow run, as Prefect tasks, and keeps their records."""

    store: Store
    workers: Workers
    console: Console
    force: frozenset[str] = frozenset()
    facts: dict[str, Any] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    gpu: Gpu | None = None
    listeners: list[Listener] = field(default_factory=list)
    followers: list[Follower] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    records: list[StageRecord] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def __call__(
        self, request: Request, *, slice: int | None = None, round: int | None = None, item: str | None = None
    ) -> Artifact:
        """Run the stage as a task of the current flow."""
        if self.stop.is_set():
            raise Interrupted("asked to stop")
        call = Call(request, slice, round, item)
        known = call.request.stage not in self.force and self._known(request)
        name = call.label + (" (cached)" if known else "")
        task: Any = stage.with_options(name=request.stage, task_run_name=name)
        if not (known and self._find(call, task, name)):
            task(_Opaque(self, call))
        assert call.artifact is not None
        return call.artifact

    def _find(self, call: Call, task: Any, name: str) -> bool:
        """Find what is in the store, without Prefect's engine. Returns whether that was enough.

        An error of the machine is worth the tries of a task.
        """
        run = call.task_run = found_task.begun(task, name)
        if run is None:
            return False
        try:
            call.artifact = self.make(call)
        except BaseException as error:
            if passing(error):
                return False
            found_task.ended(run, found_task.failed(error))
            raise
        found_task.ended(run, end_of(call))
        return True

    def halt(self) -> None:
        """Start nothing more, and end what runs beside the main thread. An ended stage later resumes from its shards."""
        self.stop.set()
        self.workers.abandon()

    def make(self, call: Call) -> Artifact:
        """Find or make the artifact, report to the console and keep the record."""
        began, call.began = time.monotonic(), time.time()
        if (context := TaskRunContext.get()) is not None:
            call.task_run = context.task_run
        call.resumed = self.store.work_of(call.request.stage, call.request.key).exists()
        self._begin(call)
        try:
            outcome = self._ensure(call)
        except BaseException as error:
            call.state, call.seconds, call.error = "failed", time.monotonic() - began, error
            self.records.append(self._record(call, None))
            self._tell("failed", call, None)
            if isinstance(error, Exception):
                self.console.failed(call.label, said(error))
            raise
        call.state = "cached" if outcome.state != "built" else "built"
        call.differs = outcome.differs
        call.seconds = time.monotonic() - began
        self.records.append(self._record(call, outcome.artifact))
        self.artifacts[outcome.artifact.key] = outcome.artifact
        self._tell("end", call, outcome.artifact)
        self.console.done(call.label, outcome.state, call.seconds, outcome.artifact.stats)
        return outcome.artifact

    def _begin(self, call: Call) -> None:
        """Record the start of a stage. If Prefect retries a task, it stays one stage, and the last try counts."""
        if any(one is call for one in self.calls):
            self.records.remove(self._record(call, None))
            call.state, call.error = "running", None
        else:
            self.calls.append(call)
        self._tell("begin", call, None)

    def _ensure(self, call: Call) -> Ensured:
        """Ask the store. What turns out to be damaged on the way is made again first."""

        def warn(line: str) -> None:
            self.console.warn(f"{call.label}: {line}")

        return healed(call, self._ask, lambda: list(self.calls), self.store, warn, self._made_again)

    def _made_again(self, call: Call, outcome: Ensured) -> None:
        """Correct the record of a stage that was found, and then made again."""
        if call.state == "cached":
            call.state, call.artifact = "built", outcome.artifact
            self.records = [
                replace(one, state="built") if one.key == call.request.key else one for one in self.records
            ]

    def _ask(self, call: Call) -> Ensured:
        """Ask the store. If something must be computed on a GPU, wait for the GPU first."""
        request, force = call.request, call.request.stage in self.force
        making = Making(
            workers=self.workers,
            progress=lambda done, total, unit: self._follow(call, done, total, unit),
            warn=lambda message: self.console.warn(f"{call.label}: {message}"),
            waiting=lambda path: self._wait(call, "another process is making it; waiting"),
            facts=self.facts,
        )
        if not force and self._known(request):
            return self.store.ensure(request, making, fully=handed_out(request))
        if request.stage in stages.TRAINING:
            before = newest_checkpoint(self.store.work_of(request.stage, request.key))
            self.console.begun(call.label, f"goes on from step {before.step:,}" if before else "")
        if self.gpu is None or request.stage not in stages.ON_DEVICE:
            return self.store.ensure(request, making, force=force)
        with self.gpu.held(waiting=lambda who: self._wait(call, f"waiting for the GPU ({who})")) as held:
            return self.store.ensure(request, replace(making, held=held), force=force)

    def _follow(self, call: Call, done: int, total: int | None, unit: str) -> None:
        self.console.progress(call.label, done, total, unit, loss=lambda: self._loss(call))
        for follower in self.followers:
            follower(call, done, total, unit)

    def _loss(self, call: Call) -> float | None:
        """The loss of a training's newest step."""
        request = call.request
        if request.stage not in stages.TRAINING:
            return None
        row = last_row(self.store.work_of(request.stage, request.key) / "journal.jsonl") or {}
        loss = row.get("loss")
        return float(loss) if isinstance(loss, int | float) else None

    def _wait(self, call: Call, what: str) -> None:
        self.console.warn(f"{call.label}: {what}")
        for follower in self.followers:
            follower(call, 0, None, "", note=what)

    def _known(self, request: Request) -> bool:
        try:
            return self.store.look(request.stage, request.key, fully=handed_out(request)) is not None
        except OnwardError:
            return False

    def _tell(self, event: str, call: Call, artifact: Artifact | None) -> None:
        for listener in self.listeners:
            listener(event, call, artifact)

    def _record(self, call: Call, artifact: Artifact | None) -> StageRecord:
        stats = artifact.stats if artifact else {}
        path = str(artifact.path.relative_to(self.store.root)) if artifact else None
        return StageRecord(
            call.request.stage,
            call.slice,
            call.round,
            call.item,
            call.request.key,
            call.state,
            path,
            round(call.seconds, 3),
            stats.get("documents_in"),
            stats.get("documents_out"),
            stats.get("tokens"),
        )


class _Opaque:
    """Holds a task's argument, so that Prefect neither copies nor traverses it."""

    __slots__ = ("builder", "call")

    def __init__(self, builder: Builder, call: Call) -> None:
        self.builder = builder
        self.call = call


def passing(error: BaseException) -> bool:
    """Whether it is an error of the machine (a lost connection, a file system problem), which may not come again."""
    return isinstance(error, OSError) and not isinstance(error, OnwardError)


def _worth_another_try(task: Any, run: Any, state: State) -> bool:
    try:
        state.result(raise_on_failure=True)
    except Exception as error:
        return passing(error)
    return False


def end_of(call: Call) -> State[str]:
    """The state of a stage that has its artifact."""
    assert call.artifact is not None
    reference = f"{call.artifact.path.parent.name}/{call.artifact.path.name}"
    return found_task.found(reference) if call.state == "cached" else found_task.made(reference, call.seconds)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=2,
    retry_delay_seconds=2,
    retry_condition_fn=_worth_another_try,
)
def stage(handle: Any) -> State[str]:
    """Ask the store for an artifact; make it if it does not exist."""
    handle.call.artifact = handle.builder.make(handle.call)
    return end_of(handle.call)
