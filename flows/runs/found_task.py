"""A stage that is found in the store, as a task run of Prefect: one event that tells its end.

Prefect's engine for tasks tells three events of a task, each of which the server records, and a run waits until it has. A
stage that is only looked up takes less than that. The page shows it as it shows any other task.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from prefect._internal.uuid7 import uuid7
from prefect.client.schemas.objects import State, StateDetails, TaskRun
from prefect.context import FlowRunContext
from prefect.states import Completed, Crashed, Failed, Running
from prefect.types._datetime import now
from prefect.utilities.engine import emit_task_run_state_change_event

from storage.secrets import without_secrets


def begun(task: Any, name: str) -> TaskRun | None:
    """A task run that begins now, which Prefect is not told of yet; None outside a flow run."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return None
    moment = now("UTC")
    return TaskRun(
        id=uuid7(),  # as the engine's
        name=name,
        flow_run_id=context.flow_run.id,
        task_key=task.task_key,
        dynamic_key=str(uuid4()),
        task_version=task.version,
        tags=list(task.tags),
        run_count=1,
        flow_run_run_count=context.flow_run.run_count,
        expected_start_time=moment,
        start_time=moment,
        created=moment,
        updated=moment,
    )


def ended(run: TaskRun, state: State[Any]) -> None:
    """Tell Prefect that the task run has ended in this state. Returns at once."""
    assert run.start_time is not None
    state.state_details = StateDetails(task_run_id=run.id, flow_run_id=run.flow_run_id)
    end: Any = state.timestamp
    run.end_time, run.total_run_time = end, max(timedelta(0), end - run.start_time)
    run.state, run.state_id, run.state_type, run.state_name = state, state.id, state.type, state.name
    emit_task_run_state_change_event(run, Running(), state)


def found(reference: str) -> State[str]:
    """The state of a stage that was found in the store."""
    return Completed(name="Cached", message=f"found in the store: {reference}", data=reference)


def made(reference: str, seconds: float) -> State[str]:
    """The state of a stage that was made."""
    return Completed(message=f"made in {seconds:.1f} s: {reference}", data=reference)


def failed(error: BaseException) -> State[Any]:
    """The state of a stage that an error ended; of a `BaseException` that is no `Exception`, a stop."""
    message = without_secrets(str(error)) or type(error).__name__
    state: Any = Failed(message=message) if isinstance(error, Exception) else Crashed(message=message)
    return state
