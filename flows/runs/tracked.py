"""The MLflow run of an attempt: its server, and its state while the attempt is at work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.tracking.tracker import Tracker
from flows.ui import publish
from storage.paths import mlflow_database, mlflow_files


def experiment(configured: str | None, name: str) -> tuple[str, Path | None]:
    """MLflow's address, and the directory of an experiment's files (None if the server decides).

    Without an address, a run is published to this home's database, which `onward up` serves.
    """
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI")
    if uri and (configured or os.environ.get("ONWARD_MLFLOW_LOCAL") != "1"):
        return uri, None
    files = mlflow_files(name)
    files.mkdir(parents=True, exist_ok=True)
    return uri or mlflow_database(), files


@contextmanager
def open_tracker(tracker: Tracker) -> Iterator[Tracker]:
    """Publish while the block runs. End the run in MLflow when the block ends."""
    tracker.start()
    try:
        yield tracker
    except Exception:
        tracker.close("FAILED")
        raise
    except BaseException:
        tracker.close("KILLED", seconds=publish.LAST_WORD_SECONDS)
        raise
    tracker.close("FINISHED")
