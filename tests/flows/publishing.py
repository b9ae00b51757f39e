"""`python publishing.py`: a flow that publishes as a run does, for test_publish. Prints its flow run's id."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running

from flows import publish
from flows.failure import RunFailed
from flows.session import current_flow_run, in_flow_run
from flows.stage import Call
from flows.story import Story


@flow(name="publishing", persist_result=False)
def publishing(fails: bool) -> Any:
    return in_flow_run(Story(quiet=True), lambda: act(fails, Story(quiet=True)))


def act(fails: bool, story: Story) -> str:
    flow_run = str(current_flow_run())
    publish.announce_process(flow_run)
    for number in (1, 2):  # as two attempts at a run would
        pages = publish.Pages(flow_run)
        pages.put("stages", "table", [{"stage": "ingest", "attempt": number}], "Stages")
        pages.put("bar", "progress", 50.0 * number, f"attempt {number}")
    with publish.told_in_prefect(story):
        story.line("a line with http://me:hunter2@host in it")
        story.warn("a warning")
    call = Call(
        SimpleNamespace(stage="ingest", key="00"), 1, None, None, state="cached", task_run=lost(flow_run)
    )  # type: ignore[arg-type]
    publish.make_true(flow_run, [call], seconds=1)
    if fails:
        raise RunFailed("ingest failed: no text\nKept: nothing.\nTo go on: try again")
    return flow_run


def lost(flow_run: str) -> str:
    """A task run that Prefect takes for running, since nobody could tell it of the end."""
    with get_client(sync_client=True) as client:
        response = client.request(
            "POST",
            "/task_runs/",
            json={"flow_run_id": flow_run, "task_key": "ingest", "dynamic_key": "0", "name": "ingest"},
        )
        run: str = response.json()["id"]
        client.set_task_run_state(run, Running(), force=True)  # type: ignore[arg-type]
    return run


if __name__ == "__main__":
    state = publishing(sys.argv[1:] == ["fails"], return_state=True)
    sys.stdout.write(f"{state.state_details.flow_run_id}\n")
