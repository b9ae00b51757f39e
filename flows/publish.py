"""What a run shows in the Prefect UI besides its tasks: the table of stages, the report, links; and true states.

Publishing never fails a run: the store and the run record hold everything shown here.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.states import Crashed

from flows.stage import Record
from storage.artifact import Input
from storage.runs import RunRecord

_LOG = logging.getLogger("onward")


def stage_table(records: Sequence[Record]) -> None:
    """The stages of this attempt, as a table on the flow run's page."""
    if FlowRunContext.get() is None or not records:
        return
    rows = [
        {
            "stage": record.stage,
            "slice": record.slice if record.slice is not None else "",
            "round": record.round if record.round is not None else "",
            "item": record.item or "",
            "state": record.state,
            "seconds": record.seconds,
            "documents in": record.documents_in if record.documents_in is not None else "",
            "documents out": record.documents_out if record.documents_out is not None else "",
            "tokens": record.tokens if record.tokens is not None else "",
            "key": record.key[:12],
        }
        for record in records
    ]
    _published(lambda: create_table_artifact(rows, key="stages", description="Stages of this attempt"))


def report_page(report: Input | None) -> None:
    """The report, as a Markdown page on the flow run's page."""
    if FlowRunContext.get() is None or report is None:
        return
    for path in report.paths:
        if path.suffix == ".md":
            text = path.read_text()
            _published(partial(create_markdown_artifact, text, key="report", description="The run's report"))


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


def crash_lost_attempts(before: RunRecord | None, warn: Callable[[str], None]) -> None:
    """Set flow and task runs of earlier attempts that were killed from Running to Crashed."""
    if before is None or not before.attempts or _alive(before):
        return
    current = FlowRunContext.get()
    own = str(current.flow_run.id) if current and current.flow_run else None
    lost = [attempt for attempt in before.attempts[-20:] if attempt != own]
    _published(lambda: _crash(lost))


def _crash(attempts: Sequence[str]) -> None:
    with get_client(sync_client=True) as client:
        ids = [UUID(attempt) for attempt in attempts]
        if not ids:
            return
        lost: Any = Crashed(message="the process was killed; a later attempt goes on from what it finished")
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id={"any_": ids})):
            if run.state is None or not run.state.is_running():
                continue
            client.set_flow_run_state(run.id, lost, force=True)
            tasks = client.read_task_runs(
                flow_run_filter=FlowRunFilter(id={"any_": [run.id]}),
                task_run_filter=TaskRunFilter(state={"type": {"any_": ["RUNNING"]}}),
            )
            for task_run in tasks:
                client.set_task_run_state(task_run.id, lost, force=True)


def _alive(record: RunRecord) -> bool:
    pid = record.facts.get("pid")
    if record.facts.get("host") != os.uname().nodename or not isinstance(pid, int):
        return True  # another machine's run is not ours to judge
    try:
        return b"onward" in Path(f"/proc/{pid}/cmdline").read_bytes() and pid != os.getpid()
    except OSError:
        return False


def _published(act: Callable[[], object]) -> None:
    try:
        act()
    except Exception as error:  # Prefect's API may be away: what it would show is in the store
        _LOG.warning("not shown in Prefect: %s", error)
