"""`python -m tests.support.ending failed|interrupted|cancelled STORE`: a flow that ends as a run does, for test_publish.

Prints its flow run's id.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from flows.runs.session import current_flow_run, failure_explained, in_flow_run
from flows.ui import publish
from flows.ui.console import Console
from flows.ui.publish import ending_page
from storage.errors import StageFailed
from storage.store import Store


@flow(name="ending", persist_result=False)
def ending(how: str, store: str) -> Any:
    return in_flow_run(Console(quiet=True), lambda: act(how, Store(Path(store))))


def act(how: str, store: Store) -> None:
    flow_run = str(current_flow_run())
    sys.stdout.write(f"{flow_run}\n")
    sys.stdout.flush()
    publish.ending_page = lambda run, title, text, seconds=0.0: ending_page(run, title, text, 120)  # type: ignore[assignment]
    with failure_explained(store, lambda: None, lambda line: None):
        publish.ending_page(flow_run, "Failed: before", "before")  # as an earlier attempt
        pages = publish.PrefectPages(flow_run)
        for number in range(5):
            pages.put(f"page-{number}", "table", [], "Stages")
        if how == "failed":
            raise StageFailed("no <text> in a_file*", passing=True)
        if how == "cancelled":
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(flow_run), Cancelling(), force=True)
        signal.raise_signal(signal.SIGINT if how == "interrupted" else signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        ending(*sys.argv[1:], return_state=True)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}\n")
