"""Prefect's own process worker, that ends or judges no later attempt: `python -m flows.services.prefect_worker --pool …`.

Prefect's worker follows the flow run, not the attempt, which hits a run that is retried soon after it was stopped:

- It listens for `Cancelling` from a minute before an attempt began (`PrefectEventSubscriber` asks for what it may have
  missed), so that the request that ended one attempt can reach it again while the next one runs, and ends that too.
- It tells of a process that ended badly twice, seconds apart; the second time sets an attempt that began in between to
  Crashed while it works.

Here both look at the flow run first. Options are those of `prefect worker start`.
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
_report = ProcessWorker._propose_crashed_state


async def cancel_if_asked(manager: CancellationManager, flow_run_id: UUID) -> None:
    """Cancel the flow run where it is Cancelling now, whatever was heard of it."""
    flow_run = await manager._client.read_flow_run(flow_run_id)
    if flow_run.state is not None and flow_run.state.is_cancelling():
        await _cancel(manager, flow_run)
    else:
        manager._logger.info("Passed over an old request to cancel '%s'", flow_run.name)


async def report_own_attempt(
    worker: ProcessWorker, flow_run: FlowRun, message: str, client: PrefectClient | None = None
) -> None:
    """Report a crash where the attempt is still the one that this worker was given."""
    now = await (client or worker.client).read_flow_run(flow_run.id)
    if is_attempt(flow_run, now):
        await _report(worker, flow_run, message, client=client)


def is_attempt(given: FlowRun, now: FlowRun) -> bool:
    """Whether the attempt that a worker was given, `given`, is what the flow run is at `now`.

    An attempt begins with the flow run's count of runs as it was given, and raises it by one when it is Running.
    """
    if now.state is None or now.state.is_final():
        return False
    begun = now.run_count - given.run_count
    return begun == 0 or (begun == 1 and not (now.state.is_scheduled() or now.state.is_pending()))


def guard() -> None:
    """Let the worker of this process look first."""
    own: Any = CancellationManager
    own.cancel_by_id = cancel_if_asked
    own = ProcessWorker
    own._propose_crashed_state = report_own_attempt


def main(arguments: list[str]) -> None:
    """Ends as `prefect worker start` does."""
    from prefect.cli import app

    guard()
    sys.argv = ["prefect", "worker", "start", "--type", "process", *arguments]
    app()


if __name__ == "__main__":
    main(sys.argv[1:])
