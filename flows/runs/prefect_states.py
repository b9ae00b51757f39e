"""Correct states in Prefect: for a run's tasks at its end, and for what earlier attempts left Running.

Prefect learns of task runs from events, with a small delay. A server that was killed in between has missed some. Before
a run ends, it checks which ends the server knows, and sends the others again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import State, StateType, TaskRun
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.logging.handlers import APILogWorker
from prefect.states import Completed, Crashed, Failed, Running
from prefect.utilities.engine import emit_task_run_state_change_event

from flows.dag.call import Call
from flows.machine.processes import at_work
from flows.runs.ending import lost_ending, ways_of_lost
from flows.ui.client import impatient
from flows.ui.publish import ending_page, published
from storage.runs import RunRecord
from storage.secrets import without_secrets
from storage.store import Store

LOST = "the process was killed; a later attempt goes on from what it finished"
_PAGE = 200
"""Task runs in one answer: the server's maximum."""


def settle(seconds: float = 10.0) -> bool:
    """Send all logs and events that wait in this process. Returns False if not all could be sent in this time."""
    left = [worker.drain_all(timeout=seconds) for worker in (APILogWorker, EventsWorker)]
    return not any(waiting for _, waiting in left)  # type: ignore[misc]


def set_true_states(flow_run: str | None, calls: Sequence[Call], seconds: float = 10.0) -> None:
    """Before a run ends, wait until Prefect knows the ends of its tasks, and send those that it missed again.

    Waits at most twice `seconds`: once for events on their way, once for those that were sent again.
    """
    if flow_run is not None and calls:
        published(lambda: _set_true_states(calls, seconds))


def _set_true_states(calls: Sequence[Call], seconds: float) -> None:
    ended = {call.task_run.id: call for call in calls if call.task_run and call.state != "running"}
    with get_client(sync_client=True) as client:
        unheard = _unheard(client, ended, seconds)
        if not unheard:
            return
        for one in unheard:
            _tell_again(ended[one])
        for one in _unheard(client, unheard, seconds):
            with contextlib.suppress(ObjectNotFound):
                client.set_task_run_state(one, _state_of(ended[one]), force=True)


def _unheard(client: SyncPrefectClient, runs: Iterable[UUID], seconds: float) -> list[UUID]:
    """The task runs whose end Prefect does not know. Waits up to `seconds` for them."""
    left, until = list(runs), time.monotonic() + seconds
    while True:
        pages = [left[start : start + _PAGE] for start in range(0, len(left), _PAGE)]
        known = {one for page in pages for one in _ended(client, page)}
        left = [one for one in left if one not in known]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def _ended(client: SyncPrefectClient, runs: Sequence[UUID]) -> set[UUID]:
    chosen = TaskRunFilter.model_validate({"id": {"any_": list(runs)}})
    found = client.read_task_runs(task_run_filter=chosen, limit=_PAGE)
    return {run.id for run in found if run.state is not None and run.state.is_final()}


def _tell_again(call: Call) -> None:
    """Send the event of a task run's end again, with its name and times. If Prefect knows it already, nothing changes."""
    run: TaskRun | None = call.task_run
    if run is not None and run.state is not None and run.state.is_final():
        emit_task_run_state_change_event(run, Running(), run.state)


def _state_of(call: Call) -> Any:
    if call.state == "failed":
        message = without_secrets(str(call.error))
        return Failed(message=message) if isinstance(call.error, Exception) else Crashed(message=message)
    return Completed(name="Cached" if call.state == "cached" else "Completed")


def is_cancelling(flow_run: str) -> bool:
    """Whether somebody has asked Prefect to cancel the flow run. Does not wait for a server that is away."""
    try:
        with impatient() as client:
            state = client.read_flow_run(UUID(flow_run)).state
    except Exception:  # it is only a name for how the run ends
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def set_stopped(flow_run: str, ended: str, message: str) -> bool:
    """Set the state of a flow run that was `cancelled` or `interrupted`. Returns whether Prefect has it.

    Prefect's engine would say "Crashed" of it, and that it was aborted by a signal.
    """
    kind = StateType.CANCELLED if ended == "cancelled" else StateType.CRASHED
    state: Any = State(type=kind, name=ended.capitalize(), message=without_secrets(message))

    def tell() -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run), state, force=True)
        context = FlowRunContext.get()
        if context is not None and context.flow_run is not None:
            context.flow_run.state = state  # the engine sets none where it is final
        told.append(flow_run)

    told: list[str] = []
    published(tell)
    return bool(told)


def crash_lost_attempts(store: Store, before: RunRecord | None, flow_run: str | None) -> None:
    """Set flow runs and tasks that killed attempts left Running to Crashed, and publish how those runs go on.

    This includes tasks of an earlier attempt at this same flow run. Call it before the first task of this attempt.
    """
    begun = before.processes if before else {}
    there = at_work(begun)
    lost = [UUID(one) for one in (before.attempts if before else ()) if one in begun and one not in there]
    own = UUID(flow_run) if flow_run else None
    published(lambda: _crash(store, before, [one for one in lost if one != own], own))


def _crash(store: Store, before: RunRecord | None, attempts: Sequence[UUID], own: UUID | None) -> None:
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
                ending = lost_ending(store, before, ways_of_lost(deployed=run.deployment_id is not None))
                ending_page(str(run.id), ending.title, ending.page)
        for attempt in (*attempts, *([own] if own and again else [])):
            for task_run in _open_tasks(client, attempt):
                client.set_task_run_state(task_run.id, state, force=True)


def _open_tasks(client: SyncPrefectClient, flow_run: UUID) -> list[TaskRun]:
    """The flow run's task runs that are running or pending according to Prefect."""
    states = TaskRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}}})
    runs = FlowRunFilter.model_validate({"id": {"any_": [flow_run]}})
    found: list[TaskRun] = []
    while page := client.read_task_runs(
        flow_run_filter=runs, task_run_filter=states, limit=_PAGE, offset=len(found)
    ):
        found += page
    return found
