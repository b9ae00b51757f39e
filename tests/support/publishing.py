"""`python publishing.py`: a flow that publishes as a run does, for test_publish. Prints its flow run's id."""

from __future__ import annotations

import sys
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.states import Completed, Running
from prefect.types._datetime import now

from flows.dag.call import Call
from flows.runs.failure import RunFailed
from flows.runs.prefect_states import set_true_states
from flows.runs.session import current_flow_run, in_flow_run
from flows.ui import publish
from flows.ui.console import Console


@flow(name="publishing", persist_result=False)
def publishing(fails: bool) -> Any:
    return in_flow_run(Console(quiet=True), lambda: act(fails, Console(quiet=True)))


def act(fails: bool, console: Console) -> str:
    flow_run = str(current_flow_run())
    publish.announce_process(flow_run)
    for number in (1, 2):  # as two attempts at a run would
        pages = publish.PrefectPages(flow_run)
        pages.put("stages", "table", [{"stage": "ingest", "attempt": number}], "Stages")
        pages.put("bar", "progress", 50.0 * number, f"attempt {number}")
    with publish.logged_in_prefect(console):
        console.line("a line with http://me:hunter2@host in it")
        console.warn("a warning")
    calls = [
        Call(SimpleNamespace(stage=stage, key="00"), 1, None, None, state="cached", task_run=run)  # type: ignore[arg-type]
        for stage, run in (("ingest", lost(flow_run)), ("dedup", never_heard_of(flow_run)))
    ]
    set_true_states(flow_run, calls, seconds=5)
    if fails:
        raise RunFailed("ingest failed: no text\nKept: nothing.\nTo go on: try again")
    return flow_run


def lost(flow_run: str) -> TaskRun:
    """A task run that Prefect takes for running, since nobody could tell it of the end."""
    with get_client(sync_client=True) as client:
        response = client.request(
            "POST",
            "/task_runs/",
            json={"flow_run_id": flow_run, "task_key": "ingest", "dynamic_key": "0", "name": "ingest"},
        )
        run = TaskRun.model_validate(response.json())
        client.set_task_run_state(run.id, Running(), force=True)
    return run


def never_heard_of(flow_run: str) -> TaskRun:
    """A task run that ended an hour ago, of which no event has come to Prefect."""
    ended: Any = Completed(name="Cached", timestamp=now("UTC") - timedelta(hours=1))
    return TaskRun(
        id=uuid4(),
        name="dedup · slice 1",
        flow_run_id=UUID(flow_run),
        task_key="dedup",
        dynamic_key="1",
        run_count=1,
        start_time=ended.timestamp - timedelta(seconds=7),
        end_time=ended.timestamp,
        total_run_time=timedelta(seconds=7),
        state_id=ended.id,
        state=ended,
    )


if __name__ == "__main__":
    state = publishing(sys.argv[1:] == ["fails"], return_state=True)
    sys.stdout.write(f"{state.state_details.flow_run_id}\n")
