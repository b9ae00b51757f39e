"""Prefect's worker with the flow run looked at first: on a real server, with a real process to be spared or ended."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Pending, Running

from flows.services.prefect_worker import is_attempt, was_retried

SCRIPT = """
import asyncio, json, logging, subprocess, sys
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runner import _cancellation_manager
from prefect.runner._flow_run_executor import FlowRunExecutorContext
from prefect.runner._process_manager import ProcessHandle
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Running
from flows.services import prefect_worker

heard = []
cancel = prefect_worker.cancel_if_asked
async def listening(manager, flow_run_id):
    heard.append(flow_run_id)
    await cancel(manager, flow_run_id)
prefect_worker.cancel_if_asked = listening
if sys.argv[1:] == ["guarded"]:
    prefect_worker.guard()

@flow(name="stopped")
def stopped():
    pass

async def main():
    async with get_client() as client:
        run = await client.create_flow_run(stopped)
        for state in (Running(), Cancelling(), Cancelled(), AwaitingRetry(), Running()):
            await client.set_flow_run_state(run.id, state, force=True)
        asked = {
            "event": {"name": ["prefect.flow-run.Cancelling"]},
            "resource": {"id": [f"prefect.flow-run.{run.id}"]},
        }
        while not (await client._client.post("/events/filter", json={"filter": asked})).json()["events"]:
            await asyncio.sleep(0.3)  # until the server has stored what it would repeat
        process = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
        try:
            async with FlowRunExecutorContext() as context:
                await context.process_manager.add(run.id, ProcessHandle(process))
                for _ in range(300):
                    if heard or process.returncode is not None:
                        break
                    await asyncio.sleep(0.2)
                await asyncio.sleep(2)  # for an end to come after it
                spared, replayed = process.returncode is None, len(heard)
                await client.set_flow_run_state(run.id, Cancelling(), force=True)
                code = await asyncio.wait_for(process.wait(), 30)
        finally:
            if process.returncode is None:
                process.kill()
        print(json.dumps({"spared": spared, "replayed": replayed, "code": code}))

asyncio.run(main())
"""


@pytest.mark.slow
def test_an_old_request_to_cancel_spares_the_attempt_that_began_since_and_a_new_one_ends_it(prefect_server):
    found = {}
    for how in ("guarded", "as it is"):
        answer = subprocess.run(
            [sys.executable, "-c", SCRIPT, how],
            env=prefect_server.environment(),
            cwd=prefect_server.home,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert answer.returncode == 0, answer.stderr
        found[how] = json.loads(answer.stdout.splitlines()[-1])
    assert found["guarded"]["replayed"] >= 1, "Prefect no longer repeats old requests: the guard can go"
    assert found["guarded"]["spared"] and found["guarded"]["code"] == -15
    assert not found["as it is"]["spared"], "Prefect looks at the flow run itself: the guard can go"


@pytest.mark.parametrize(
    ("counts", "state", "own"),
    [
        ((0, 0), Pending(), True),  # it could not be started
        ((0, 1), Running(), True),
        ((0, 1), Cancelling(), True),
        ((0, 1), Crashed(), False),  # told already
        ((0, 1), Completed(), False),
        ((0, 1), Cancelled(), False),
        ((0, 1), AwaitingRetry(), False),  # a person pressed Retry
        ((0, 1), Pending(), False),
        ((0, 2), Running(), False),
        ((1, 1), AwaitingRetry(), True),
        ((1, 2), Running(), True),
        ((1, 3), Running(), False),
    ],
)
def test_an_attempt_is_told_from_a_later_one(counts, state, own):
    given, now = (
        FlowRun(flow_id="4f4b1a6e-4c1c-4f0e-9d5b-0a8c5b1f0f0e", run_count=count) for count in counts
    )
    now.state = state
    assert is_attempt(given, now) is own


@pytest.mark.parametrize(
    ("counts", "state", "retried"),
    [
        ((1, 1), Cancelling(), False),
        ((1, 1), Cancelled(), False),
        ((1, 1), Crashed(), False),  # its process told of the signal first
        ((1, 1), Running(), False),
        ((1, 1), AwaitingRetry(), True),  # a person pressed Retry before the process was gone
        ((1, 1), Pending(), True),
        ((1, 2), Running(), True),
        ((1, 2), Crashed(), True),
    ],
)
def test_a_run_that_was_retried_is_not_set_cancelled_by_the_end_of_the_attempt_before(counts, state, retried):
    then, now = (FlowRun(flow_id="4f4b1a6e-4c1c-4f0e-9d5b-0a8c5b1f0f0e", run_count=count) for count in counts)
    now.state = state
    assert was_retried(then, now) is retried
