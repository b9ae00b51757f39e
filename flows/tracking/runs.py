"""The runs of one MLflow experiment: a parent for each flow run, a child for each stage key, nothing twice.

Whatever is written here may be written again: a request that timed out may have been carried out all the same. So a run is
looked for before it is made, one that was made twice is deleted once it is seen, and each metric has the time at which it
was measured rather than at which it is sent: MLflow keeps one of two that are the same in name, step, time and value.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flows.machine.processes import ProcessId

NOTE = "mlflow.note.content"
PUBLISHED = "onward.published"
FORMAT = "2"
"""Of what a finished stage's run holds; one of before is completed."""
_PAGE = 1000
_ENTITIES = 1000
"""Metrics and params that a request may carry."""
_PARAMS = 100
_PARAM_CHARACTERS = 6000
_LOST_SECONDS = 900.0


@dataclass(frozen=True)
class Point:
    """A value of a metric: `step` in tokens seen, `time` in milliseconds since 1970, when it was measured.

    `model` and `dataset` (name, digest) tie it to a LoggedModel and to what it was measured on.
    """

    name: str
    value: float
    step: int
    time: int
    model: str | None = None
    dataset: tuple[str, str] | None = None


@dataclass
class Runs:
    """What the experiment has, as far as it was read (`read`), and how it is added to. Raises MLflow's exceptions."""

    client: Any
    experiment: str
    attempt: str
    children: dict[str, str] = field(default_factory=dict)
    """Stage key → run id."""
    complete: set[str] = field(default_factory=set)
    """Stage keys whose run holds everything."""
    _parents: dict[str, str] = field(default_factory=dict)
    _links: dict[tuple[str, str], str] = field(default_factory=dict)

    def read(self) -> None:
        """Read what is there; delete a stage's second run, and lead its parents' links to the first."""
        self.children, self.complete, self._parents = {}, set(), {}
        instead: dict[str, str] = {}
        runs = sorted(self._all(), key=lambda run: (run.info.start_time or 0, run.info.run_id))
        for run in runs:
            tags, own = run.data.tags, run.info.run_id
            if key := tags.get("stage_key"):
                if (first := self.children.setdefault(key, own)) != own:
                    instead[own] = first
                elif run.info.status == "FINISHED" and tags.get(PUBLISHED) == FORMAT:
                    self.complete.add(key)
            else:
                for name in ("prefect.flow_run", "onward.attempt"):
                    if tags.get(name):
                        self._parents.setdefault(tags[name], own)
        for second, first in instead.items():
            for run in runs:
                for name, value in run.data.tags.items():
                    if name.startswith("child.") and value == second:
                        self.client.set_tag(run.info.run_id, name, first)
            self.client.delete_run(second)

    def _all(self) -> Iterable[Any]:
        token = None
        while True:
            page = self.client.search_runs([self.experiment], "", max_results=_PAGE, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def end_lost(self) -> None:
        """Set runs that are RUNNING, and whose process is gone, to KILLED: of every experiment that may be written."""
        from mlflow.exceptions import MlflowException

        experiments = [one.experiment_id for one in self.client.search_experiments()]
        for start in range(0, len(experiments), 100):
            for run in self.client.search_runs(
                experiments[start : start + 100], "attributes.status = 'RUNNING'", max_results=_PAGE
            ):
                if gone(run.data.tags):
                    try:
                        self.client.set_terminated(run.info.run_id, "KILLED")
                    except MlflowException as error:
                        if error.get_http_status_code() not in (403, 404):
                            raise

    def parent(self, flow_run: str, name: str, began: int, tags: Mapping[str, str]) -> tuple[str, bool]:
        """(run id, whether it was there before) of this attempt's flow run."""
        known = self._parents.get(flow_run) or self._parents.get(self.attempt)
        if known is not None:
            return known, True
        run = self.client.create_run(self.experiment, began, run_name=name, tags=dict(tags))
        self._parents[flow_run or self.attempt] = run.info.run_id
        return str(run.info.run_id), False

    def child(
        self, key: str, name: str, began: int | None, tags: Mapping[str, str], parent: str
    ) -> tuple[str, bool]:
        """(run id, whether it was there before) of a stage key."""
        if key in self.children:
            return self.children[key], True
        found = self.client.search_runs([self.experiment], f"tags.stage_key = '{key}'", max_results=1)
        if found:  # another process has just made it
            self.children[key] = found[0].info.run_id
            return self.children[key], True
        all_tags = {"mlflow.parentRunId": parent, "stage_key": key, **tags}
        run = self.client.create_run(self.experiment, began, run_name=name, tags=all_tags)
        self.children[key] = run.info.run_id
        return self.children[key], False

    def link(self, parent: str, name: str, child: str) -> None:
        """Tag the parent with a child; written with the next `flush`."""
        self._links[parent, name] = child

    def flush(self) -> None:
        """Write the links that wait."""
        from mlflow.entities import RunTag

        for parent in {parent for parent, _ in self._links}:
            tags = [RunTag(name, child) for (of, name), child in self._links.items() if of == parent]
            for start in range(0, len(tags), _PARAMS):
                self.client.log_batch(parent, tags=tags[start : start + _PARAMS])
        self._links.clear()

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags in one request."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])

    def params(self, run: str, params: Mapping[str, str], there: Mapping[str, str]) -> None:
        """Log those that are not there: a value that was logged cannot be another."""
        self.fill(run, params, there, ())

    def points(self, run: str, rows: Iterable[Iterable[Point]]) -> None:
        """Log metrics; the points of one row come in one request, which is carried out as a whole."""
        self.fill(run, {}, {}, rows)

    def fill(
        self, run: str, params: Mapping[str, str], there: Mapping[str, str], rows: Iterable[Iterable[Point]]
    ) -> None:
        """`params` and `points` in as few requests as they fit in: each costs more than what it carries."""
        from mlflow.entities import Param

        new = [Param(metric_name(n), _cut(v)) for n, v in params.items() if metric_name(n) not in there]
        batch: list[Point] = []
        for row in rows:
            points = list(row)
            if len(batch) + len(points) + min(len(new), _PARAMS) > _ENTITIES:
                self._send(run, batch, new[:_PARAMS])
                batch, new = [], new[_PARAMS:]
            batch += points
        while batch or new:
            self._send(run, batch, new[:_PARAMS])
            batch, new = [], new[_PARAMS:]

    def _send(self, run: str, points: list[Point], params: list[Any]) -> None:
        """The client sends them as one request, as far as the server takes one."""
        from mlflow.entities import Metric

        entries = [
            Metric(
                metric_name(point.name),
                float(point.value),
                point.time,
                point.step,
                model_id=point.model,
                dataset_name=point.dataset[0] if point.dataset else None,
                dataset_digest=point.dataset[1] if point.dataset else None,
                run_id=run if point.model else None,
            )
            for point in points
        ]
        self.client.log_batch(run, metrics=entries, params=params)

    def last_step(self, run: str, metric: str) -> int:
        """The greatest step of a metric; −1 where it has none."""
        history = self.client.get_metric_history(run, metric)
        return max((point.step for point in history), default=-1)


def metric_name(name: str) -> str:
    """The name as MLflow takes it; it refuses commas, for one."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:250]


def _cut(text: str) -> str:
    """MLflow would cut a long value silently, so that two that differ at the end would look the same."""
    if len(text) <= _PARAM_CHARACTERS:
        return text
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: _PARAM_CHARACTERS - 40]}… (sha256 {digest})"


def owner() -> dict[str, str]:
    """Tags that name this process, by which another tells that it is gone."""
    process = {f"onward.{name}": str(value) for name, value in ProcessId.current().to_dict().items()}
    return {**process, "onward.alive": str(int(time.time()))}


def gone(tags: Mapping[str, str]) -> bool:
    """Whether the process that owns a run is gone; one of another machine, by a sign of life that is old."""
    if "onward.pid" not in tags:
        return False
    names = ("pid", "host", "started", "boot", "namespace", "machine")
    state = ProcessId.from_dict({name: tags.get(f"onward.{name}", "") for name in names}).state()
    if state != "elsewhere":
        return state == "gone"
    alive = tags.get("onward.alive", "")
    return alive.isdigit() and time.time() - int(alive) > _LOST_SECONDS
