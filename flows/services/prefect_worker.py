"""Prefect's process worker, changed so that it never ends or judges a later attempt.

Usage: `python -m flows.services.prefect_worker --pool …`, with the options of `prefect worker start`.

Prefect's worker follows the flow run, not the attempt. This harms a run that is retried soon after it was stopped:

- It listens for `Cancelling` events from a minute before an attempt began (`PrefectEventSubscriber` asks for events that
  it may have missed). So the request that ended one attempt can arrive again during the next one and end that too.
- It reports a process that ended badly twice, seconds apart. The second report sets an attempt that began in between
  to Crashed while it works.

Here, both check the flow run first. And a run that has said itself that it was cancelled, with what is kept, is left so.
"""

from __future__ import annotations

import sys
from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.runner._cancellation_manager import CancellationManager
from prefect.workers.process import ProcessWorker

_cancel = CancellationManager.cancel
_finalize = CancellationManager._finalize_cancelled_state
_report = ProcessWorker._propose_crashed_state


async def cancel_if_asked(manager: CancellationManager, flow_run_id: UUID) -> None:
    """Cancel the flow run only if it is Cancelling now, whatever events arrived."""
    flow_run = await manager._client.read_flow_run(flow_run_id)
    if flow_run.state is not None and flow_run.state.is_cancelling():
        await _cancel(manager, flow_run)
    else:
        manager._logger.info("Passed over an old request to cancel '%s'", flow_run.name)


async def leave_cancelled(
    manager: CancellationManager, flow_run: FlowRun, state_updates: dict[str, Any] | None = None
) -> bool:
    """Set the flow run Cancelled, unless it is, or was retried since. Returns whether the attempt was Cancelled."""
    now = await manager._client.read_flow_run(flow_run.id)
    if (now.state is not None and now.state.is_cancelled()) or was_retried(flow_run, now):
        return True
    return await _finalize(manager, flow_run, state_updates)


async def report_own_attempt(
    worker: ProcessWorker, flow_run: FlowRun, message: str, client: PrefectClient | None = None
) -> None:
    """Report a crash only if the flow run is still at the attempt that this worker was given."""
    now = await (client or worker.client).read_flow_run(flow_run.id)
    if is_attempt(flow_run, now):
        await _report(worker, flow_run, message, client=client)


def was_retried(cancelled: FlowRun, now: FlowRun) -> bool:
    """Whether an attempt follows, or will, the one that was `cancelled`, as the flow run was read when it was."""
    waits = now.state is not None and (now.state.is_scheduled() or now.state.is_pending())
    return waits or now.run_count > cancelled.run_count


def is_attempt(given: FlowRun, now: FlowRun) -> bool:
    """Whether the flow run at `now` is still at the attempt that the worker was `given`.

    An attempt begins with the run count that the worker was given, and increases it by one when it is Running.
    """
    if now.state is None or now.state.is_final():
        return False
    begun = now.run_count - given.run_count
    return begun == 0 or (begun == 1 and not (now.state.is_scheduled() or now.state.is_pending()))


def guard() -> None:
    """Install the checks in the worker of this process."""
    own: Any = CancellationManager
    own.cancel_by_id = cancel_if_asked
    own._finalize_cancelled_state = leave_cancelled
    own = ProcessWorker
    own._propose_crashed_state = report_own_attempt


def main(arguments: list[str]) -> None:
    """Run the worker. Exits like `prefect worker start`."""
    from prefect.cli import app

    guard()
    sys.argv = ["prefect", "worker", "start", "--type", "process", *arguments]
    app()


if __name__ == "__main__":
    main(sys.argv[1:])
