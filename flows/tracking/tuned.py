"""A tuning in MLflow: one run above those of its trials, with the table of them as its note."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flows.tracking.client import connect, said
from flows.tracking.runs import NOTE

_TUNING, _PARENT, SCORE = "onward.tuning", "mlflow.parentRunId", "tune/score"
"""Tag that identifies a tuning; MLflow's own tag of a run's parent; a trial's score, the lower the better."""


def tell_tuning(
    uri: str,
    experiment: str,
    tuning: str,
    name: str,
    note: str,
    trials: Mapping[str, float],
    metrics: Mapping[str, float],
) -> str:
    """Create or renew the run of a tuning in the experiment of its trials, and put their runs below it.

    `trials`: the score of each trial by its run's id. Returns what went wrong, in a line; empty if nothing did. It may be
    called again.
    """
    try:
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return f"no experiment {experiment}"
        run = _run(client, str(found.experiment_id), tuning, name)
        client.set_tag(run, NOTE, note)
        for metric, value in metrics.items():
            client.log_metric(run, metric, value)
        for trial, score in trials.items():
            client.set_tag(trial, _PARENT, run)
            client.log_metric(trial, SCORE, score)
        client.set_terminated(run, "FINISHED")
    except Exception as error:  # whatever a server or its client does, the trials are made
        return said(error)
    return ""


def _run(client: Any, experiment: str, tuning: str, name: str) -> str:
    known = client.search_runs([experiment], f"tags.`{_TUNING}` = '{tuning}'", max_results=1)
    if known:
        return str(known[0].info.run_id)
    tags = {_TUNING: tuning, "kind": "tuning"}
    made = client.create_run(experiment, int(time.time() * 1000), run_name=name, tags=tags)
    return str(made.info.run_id)
