"""What a run leaves in Prefect besides its tasks and states: artifacts and its log.

Publishing never fails a run: the store and the run record hold everything shown here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_UI_URL

from flows.dag.call import named
from flows.dag.plan import PlanRow
from flows.machine.processes import ProcessId
from flows.ui.client import impatient
from flows.ui.console import Console
from flows.ui.curve import picture
from flows.ui.front import ENDING, FIRST_SECONDS, created_first
from flows.ui.logbook import Logbook
from storage.artifact import Input
from storage.errors import OnwardError
from storage.secrets import without_secrets

LAST_WORD_SECONDS = 4.0
"""Wait for each server if a run is asked to stop. The process that asked waits half a minute in total."""
PATIENCE_SECONDS = 60.0
"""Wait for a Prefect server that is being restarted when the run ends."""
_LOG = logging.getLogger("onward")
_PREFECT_LOGS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
_OF_EACH_TASK = ("Finished in state", "Crash detected", "Created task run")


class PrefectPages:
    """The artifacts of one flow run. Each is created once and then changed in place, by every attempt at the run.

    A call does not wait for a server that is away; it raises.
    """

    def __init__(self, flow_run: str) -> None:
        self._flow_run = UUID(flow_run)
        self._known: dict[str, UUID] | None = None
        self.mlflow_run: str | None = None
        """The address of the run in MLflow for browsers, once it is known."""

    def put(
        self, key: str, kind: str, data: Any, description: str | None = None, task_run: UUID | None = None
    ) -> None:
        """Create the artifact with this key, or change it in place."""
        text = _as_prefect_wants(kind, data)
        with impatient() as client:
            known = self._ids(client)
            if key in known:
                with contextlib.suppress(ObjectNotFound):
                    client.update_artifact(known[key], ArtifactUpdate(data=text, description=description))
                    return
            known[key] = self._create(client, key, kind, text, description, task_run)

    def put_first(self, key: str, kind: str, data: Any, description: str, seconds: float) -> None:
        """Create the artifact with this key, or create it anew, so that it is the first of the flow run's list."""
        text = _as_prefect_wants(kind, data)
        with get_client(sync_client=True) as client:
            known = self._ids(client)
            before = known.pop(key, None)
            known[key] = UUID(
                created_first(
                    lambda: str(self._create(client, key, kind, text, description)),
                    lambda one: client.delete_artifact(UUID(one)),
                    map(str, known.values()),
                    seconds,
                )
            )
            if before is not None:
                client.delete_artifact(before)

    def _create(
        self,
        client: SyncPrefectClient,
        key: str,
        kind: str,
        data: Any,
        description: str | None,
        task_run: UUID | None = None,
    ) -> UUID:
        wanted = ArtifactCreate(
            key=key,
            type=kind,
            data=data,
            description=description,
            flow_run_id=self._flow_run,
            task_run_id=task_run,
        )
        return client.create_artifact(wanted).id

    def drop(self, key: str) -> None:
        """Delete the artifact with this key, if there is one."""
        with impatient() as client:
            known = self._ids(client)
            if key in known:
                with contextlib.suppress(ObjectNotFound):
                    client.delete_artifact(known.pop(key))

    def has(self, key: str) -> bool:
        """Whether there is an artifact with this key from this attempt or, after the first `put`, from an earlier one."""
        return self._known is not None and key in self._known

    def _ids(self, client: SyncPrefectClient) -> dict[str, UUID]:
        if self._known is None:
            chosen = ArtifactFilter.model_validate({"flow_run_id": {"any_": [self._flow_run]}})
            found = client.read_artifacts(artifact_filter=chosen, limit=200)
            self._known = {artifact.key: artifact.id for artifact in found if artifact.key}
        return self._known


def _as_prefect_wants(kind: str, data: Any) -> Any:
    return json.dumps(data) if kind == "table" else data


def report_page(pages: PrefectPages | None, page: Path | None, head: str = "") -> None:
    """Publish the report as a Markdown page of the flow run, below the `head` that says which run this is.

    `page` is the directory of the report with its cost.
    """
    if pages is None or page is None:
        return
    text = with_pictures((page / "report.md").read_text(encoding="utf-8"), page)
    told = "\n\n".join(part for part in (head, as_html(page / "report.html", pages.mlflow_run), text) if part)
    published(lambda: pages.put("report", "markdown", told, "The run's report"))


def as_html(page: Path, mlflow_run: str | None) -> str:
    """Where the report opens as a page of its own: in MLflow, where the run has an address there, and as a file."""
    link = f"[in MLflow]({mlflow_run}/artifacts/report/{page.name}), or " if mlflow_run else ""
    return f"As HTML: {link}the file `{page}` of the machine that ran it."


def with_pictures(text: str, directory: Path) -> str:
    """The Markdown of a page with its pictures inside: Prefect shows no files. The report with its cost has those of the
    report. A picture that is not there leaves its caption."""

    def inside(found: re.Match[str]) -> str:
        path = directory / found[2]
        try:
            return f"![{found[1]}]({picture(path.suffix.removeprefix('.'), path.read_bytes())})"
        except OSError:
            return ""

    return re.sub(
        r"!\[([^\]\n]*)\]\(((?:\.\./\.\./report/\w+/)?figures/[\w.-]+\.(?:svg|png))\)", inside, text
    )


def ending_page(flow_run: str | None, title: str, text: str, seconds: float = FIRST_SECONDS) -> None:
    """Publish why a run ended early and how it goes on, as the first of its pages."""
    if flow_run is not None:
        published(lambda: PrefectPages(flow_run).put_first(ENDING, "markdown", text, title, seconds))


def data_page(pages: PrefectPages | None, page: Input | None) -> None:
    """Publish the data page as a Markdown page of the flow run."""
    if pages is None or page is None:
        return
    file = next(path for path in page.paths if path.name == "data.md")
    text = with_pictures(file.read_text(encoding="utf-8"), file.parent)
    published(lambda: pages.put("data", "markdown", text, "What was done to the data"))


def plan_page(pages: PrefectPages, rows: Sequence[PlanRow], text: str) -> None:
    """Publish what a run would do, as a table and as text."""
    table = [
        {
            "stage": row.stage,
            "of": " · ".join(named(row.slice, row.round, row.item)),
            "state": row.state,
            "key": (row.key or "")[:12],
            "why": "; ".join(row.why),
            "foreseen": row.training["line"] if row.training else "",
        }
        for row in rows
    ]
    published(lambda: pages.put("plan", "table", table, "What a run would do; nothing was built"))
    published(lambda: pages.put("plan-text", "markdown", f"```\n{text}```", "The plan as text"))


@contextlib.contextmanager
def logged_in_prefect(console: Console) -> Iterator[None]:
    """Send the console's lines to the flow run's log.

    Prefect's own lines for each task are kept out, and so are tracebacks of errors whose text is complete.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    book = Logbook(str(context.flow_run.id))
    book.start()
    before, console.tell = console.tell, book.write
    for name in _PREFECT_LOGS:  # permanently, because the end of the run is logged after this block
        logging.getLogger(name).addFilter(_logged_already)
    patience = LAST_WORD_SECONDS
    try:
        yield
        patience = PATIENCE_SECONDS
    except Exception:
        patience = PATIENCE_SECONDS
        raise
    finally:
        console.flush()
        console.tell = before
        book.close(patience)


def _logged_already(record: logging.LogRecord) -> bool:
    if record.name == "prefect.task_runs" and record.getMessage().startswith(_OF_EACH_TASK):
        return False
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, OnwardError | OSError)


def flow_run_url(flow_run: str | None) -> str | None:
    """The flow run's address for browsers, without secrets; None if no server shows it (one that ends with its run)."""
    base = PREFECT_UI_URL.value()
    if flow_run is None or not base or os.environ.get("ONWARD_OWN_SERVER"):
        return None
    return without_secrets(f"{base.rstrip('/')}/runs/flow-run/{flow_run}")


def announce_process(flow_run: str | None) -> None:
    """Tell Prefect which process this run is, so that its loss can be noticed. A worker reports its own process itself."""
    context = FlowRunContext.get()
    if flow_run is None or context is None or context.flow_run is None:
        return
    if context.flow_run.deployment_id is not None:
        return
    pid = ProcessId.current().to_text()

    def update() -> None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run), infrastructure_pid=pid)

    published(update)


def tag_run(flow_run: str | None, words: Sequence[str]) -> None:
    """Add tags to the flow run: what it has otherwise than its file."""
    context = FlowRunContext.get()
    if flow_run is None or context is None or context.flow_run is None:
        return
    tags = [*dict.fromkeys((*context.flow_run.tags, *words))]

    def update() -> None:
        with impatient() as client:
            client.update_flow_run(UUID(flow_run), tags=tags)

    published(update)


def published(act: Callable[[], object]) -> None:
    """Call `act`, which shows something in Prefect. If Prefect's API is away, only log a warning."""
    try:
        act()
    except Exception as error:  # Prefect's API may be away; the store holds what it would show
        _LOG.warning("not shown in Prefect: %s", error)
