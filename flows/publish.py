"""What a run leaves in Prefect besides its own tasks and states: artifacts, its log, and states that are true.

Publishing never fails a run: the store and the run record hold everything shown here. Prefect hears of task runs a
little late, and a server that was restarted in between may not have heard of all: before a run ends, it sees to it that
none of its tasks is left Running.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, TaskRunFilter
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, PREFECT_UI_URL, temporary_settings
from prefect.states import Completed, Crashed, Failed

from flows.logbook import Logbook
from flows.plan import Row
from flows.processes import at_work
from flows.secrets import without_secrets
from flows.stage import Call, named
from flows.story import Story
from storage.artifact import Input
from storage.errors import OnwardError
from storage.runs import RunRecord

LAST_WORD_SECONDS = 4.0
"""For each server, where a run is asked to stop: whoever asked waits half a minute in all."""
PATIENCE_SECONDS = 60.0
"""For a Prefect server that is just being restarted when the run ends."""
_LOG = logging.getLogger("onward")
_PREFECT_LOGS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
_OF_EACH_TASK = ("Finished in state", "Crash detected", "Created task run")
LOST = "the process was killed; a later attempt goes on from what it finished"


class Pages:
    """The artifacts of one flow run: each is created once and then changed in place, by every attempt at it.

    A call does not wait for a server that is away: it raises.
    """

    def __init__(self, flow_run: str) -> None:
        self._flow_run = UUID(flow_run)
        self._known: dict[str, UUID] | None = None

    def put(
        self, key: str, kind: str, data: Any, description: str | None = None, task_run: str | None = None
    ) -> None:
        """Create the artifact of that key, or change it in place."""
        text = _as_prefect_wants(kind, data)
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            known = self._ids(client)
            if key in known:
                with contextlib.suppress(ObjectNotFound):
                    client.update_artifact(known[key], ArtifactUpdate(data=text, description=description))
                    return
            created = client.create_artifact(
                ArtifactCreate(
                    key=key,
                    type=kind,
                    data=text,
                    description=description,
                    flow_run_id=self._flow_run,
                    task_run_id=UUID(task_run) if task_run else None,
                )
            )
            known[key] = created.id

    def has(self, key: str) -> bool:
        """Whether there is one of that key: made by this attempt or, once anything was put, by one before."""
        return self._known is not None and key in self._known

    def _ids(self, client: SyncPrefectClient) -> dict[str, UUID]:
        if self._known is None:
            chosen = ArtifactFilter.model_validate({"flow_run_id": {"any_": [self._flow_run]}})
            found = client.read_artifacts(artifact_filter=chosen, limit=200)
            self._known = {artifact.key: artifact.id for artifact in found if artifact.key}
        return self._known


def _as_prefect_wants(kind: str, data: Any) -> Any:
    return json.dumps(data) if kind == "table" else data


def report_page(pages: Pages | None, report: Input | None) -> None:
    """The report, as a Markdown page of the flow run."""
    if pages is None or report is None:
        return
    for path in report.paths:
        if path.suffix == ".md":
            _published(partial(pages.put, "report", "markdown", path.read_text(), "The run's report"))


def plan_page(pages: Pages, rows: Sequence[Row], text: str) -> None:
    """What a run would do: a table, and the same as text."""
    table = [
        {
            "stage": row.stage,
            "of": " · ".join(named(row.slice, row.round, row.item)),
            "state": row.state,
            "key": (row.key or "")[:12],
            "why": "; ".join(row.why),
        }
        for row in rows
    ]
    _published(lambda: pages.put("plan", "table", table, "What a run would do; nothing was built"))
    _published(lambda: pages.put("plan-text", "markdown", f"```\n{text}```", "The plan as text"))


@contextlib.contextmanager
def told_in_prefect(story: Story) -> Iterator[None]:
    """Send the story's lines to the flow run's log, and keep Prefect's own lines for each task, and tracebacks of
    errors that say themselves what happened, out of it."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    book = Logbook(str(context.flow_run.id))
    book.start()
    before, story.tell = story.tell, book.write
    for name in _PREFECT_LOGS:  # for good: what ends the run is logged after this block
        logging.getLogger(name).addFilter(_told_already)
    patience = LAST_WORD_SECONDS
    try:
        yield
        patience = PATIENCE_SECONDS
    except Exception:
        patience = PATIENCE_SECONDS
        raise
    finally:
        story.flush()
        story.tell = before
        book.close(patience)


def _told_already(record: logging.LogRecord) -> bool:
    if record.name == "prefect.task_runs" and record.getMessage().startswith(_OF_EACH_TASK):
        return False
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, OnwardError | OSError)


def flow_run_url(flow_run: str | None) -> str | None:
    """Where people look at the flow run; None where no server shows it (one that is gone with its run)."""
    base = PREFECT_UI_URL.value()
    if flow_run is None or not base or os.environ.get("ONWARD_OWN_SERVER"):
        return None
    return f"{base.rstrip('/')}/runs/flow-run/{flow_run}"


def announce_process(flow_run: str | None) -> None:
    """Say in Prefect which process this run is, so that it can be told when it is gone. A worker has said so itself."""
    context = FlowRunContext.get()
    if flow_run is None or context is None or context.flow_run is None:
        return
    if context.flow_run.deployment_id is not None:
        return
    pid = f"{os.uname().nodename}:{os.getpid()}"

    def update() -> None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run), infrastructure_pid=pid)

    _published(update)


def settle(flow_run: str | None, tasks: int, seconds: float = 10.0) -> None:
    """Return when Prefect has recorded the end of a flow run's tasks, and its logs; it does both a little later."""
    APILogWorker.drain_all(timeout=seconds)
    EventsWorker.drain_all(timeout=seconds)
    if flow_run is not None:
        _published(lambda: _wait_recorded(UUID(flow_run), tasks, time.monotonic() + seconds))


def _wait_recorded(flow_run: UUID, tasks: int, until: float) -> None:
    with get_client(sync_client=True) as client:
        while time.monotonic() < until:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [flow_run]}), limit=200)
            ended = sum(run.state is not None and run.state.is_final() for run in found)
            if ended >= min(tasks, 200):
                return
            time.sleep(0.1)


def make_true(flow_run: str | None, calls: Sequence[Call], seconds: float = 10.0) -> None:
    """Before a run ends: wait until Prefect knows the ends of its tasks, and tell it those that it has not heard."""
    if flow_run is not None and calls:
        _published(lambda: _make_true(UUID(flow_run), calls, time.monotonic() + seconds))


def _make_true(flow_run: UUID, calls: Sequence[Call], until: float) -> None:
    ended = {call.task_run: call for call in calls if call.task_run and call.state != "running"}
    with get_client(sync_client=True) as client:
        while unheard := [run for run in _open_tasks(client, flow_run) if str(run.id) in ended]:
            if time.monotonic() > until:
                break
            time.sleep(0.1)
        for run in unheard:
            client.set_task_run_state(run.id, _state_of(ended[str(run.id)]), force=True)


def _state_of(call: Call) -> Any:
    if call.state == "failed":
        message = without_secrets(str(call.error))
        return Failed(message=message) if isinstance(call.error, Exception) else Crashed(message=message)
    return Completed(name="Cached" if call.state == "cached" else "Completed")


def _open_tasks(client: SyncPrefectClient, flow_run: UUID) -> list[Any]:
    """The flow run's task runs that Prefect takes for running, or about to."""
    states = TaskRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}})
    runs = FlowRunFilter.model_validate({"id": {"any_": [flow_run]}})
    return list(client.read_task_runs(flow_run_filter=runs, task_run_filter=states, limit=200))


def crash_lost_attempts(before: RunRecord | None, flow_run: str | None) -> None:
    """Set what earlier attempts left Running, since they were killed, to Crashed: their flow runs, and their tasks.

    Tasks of an earlier attempt at this same flow run too; called before this attempt's first task.
    """
    begun = before.processes if before else {}
    there = at_work(begun)
    lost = [UUID(one) for one in (before.attempts if before else ()) if one in begun and one not in there]
    own = UUID(flow_run) if flow_run else None
    _published(lambda: _crash([one for one in lost if one != own], own))


def _crash(attempts: Sequence[UUID], own: UUID | None) -> None:
    state: Any = Crashed(message=LOST)
    context = FlowRunContext.get()
    again = context is not None and context.flow_run is not None and context.flow_run.run_count > 1
    if not attempts and not again:
        return
    with get_client(sync_client=True) as client:
        runs = FlowRunFilter.model_validate({"id": {"any_": list(attempts)}})
        for run in client.read_flow_runs(flow_run_filter=runs) if attempts else ():
            if run.state is not None and run.state.is_running():
                client.set_flow_run_state(run.id, state, force=True)
        for attempt in (*attempts, *([own] if own and again else [])):
            for task_run in _open_tasks(client, attempt):
                client.set_task_run_state(task_run.id, state, force=True)


def _published(act: Callable[[], object]) -> None:
    try:
        act()
    except Exception as error:  # Prefect's API may be away: what it would show is in the store
        _LOG.warning("not shown in Prefect: %s", error)
