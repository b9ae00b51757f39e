"""The runs of one MLflow experiment: a parent for each flow run, a child for each stage key, and no duplicates.

Every write may be repeated, because a request that timed out may still have succeeded. Therefore a run is looked up
before it is created, and a duplicate is deleted when it is seen. Each metric carries the time of its measurement, not of
its sending: MLflow keeps only one of two metrics with the same name, step, time and value.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from flows.machine.processes import ProcessId

NOTE = "mlflow.note.content"
PUBLISHED = "onward.published"
FORMAT = "2"
"""Format of a finished stage's run. A run of an older format is completed."""
_PAGE = 1000
_ENTITIES = 1000
"""The most metrics and params in one request."""
_PARAMS = 100
_PARAM_CHARACTERS = 6000
_LOST_SECONDS = 900.0


@dataclass(frozen=True)
class Point:
    """A value of a metric. `step` is in tokens seen; `time` is when it was measured, in milliseconds since 1970.

    `model` and `dataset` (name, digest) tie it to a LoggedModel and to the data it was measured on.
    """

    name: str
    value: float
    step: int
    time: int
    model: str | None = None
    dataset: tuple[str, str] | None = None


@dataclass
class Runs:
    """The experiment's runs as of the last `read`, and the methods that add to them. They raise MLflow's exceptions."""

    client: Any
    experiment: str
    attempt: str
    children: dict[str, str] = field(default_factory=dict)
    """Stage key → run id."""
    complete: set[str] = field(default_factory=set)
    """Stage keys whose run is complete."""
    _parents: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, Any] = field(default_factory=dict)
    """Runs of stages as `read` found them, while nothing was written to them since."""
    _links: dict[tuple[str, str], str] = field(default_factory=dict)
    _inputs: dict[str, list[Any]] = field(default_factory=dict)
    _outputs: dict[str, dict[str, int]] = field(default_factory=dict)
    _points: dict[str, list[Point]] = field(default_factory=dict)

    def read(self) -> None:
        """Read the existing runs. Delete a stage's second run, and redirect its parents' links to the first."""
        self.children, self.complete, self._parents, self._seen = {}, set(), {}, {}
        instead: dict[str, str] = {}
        runs = sorted(
            self._all([self.experiment]), key=lambda run: (run.info.start_time or 0, run.info.run_id)
        )
        for run in runs:
            tags, own = run.data.tags, run.info.run_id
            if key := tags.get("stage_key"):
                if (first := self.children.setdefault(key, own)) != own:
                    instead[own] = first
                    continue
                self._seen[own] = run
                if run.info.status == "FINISHED" and tags.get(PUBLISHED) == FORMAT:
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

    def run(self, run: str) -> Any:
        """A stage's run with its metrics and outputs: as `read` found it, unless it was written to since."""
        return self._seen.get(run) or self.client.get_run(run)

    def _all(self, experiments: list[str], which: str = "") -> Iterable[Any]:
        token = None
        while True:
            page = self.client.search_runs(experiments, which, max_results=_PAGE, page_token=token)
            yield from page
            if not (token := page.token):
                return

    def end_lost(self) -> None:
        """Set RUNNING runs whose process is gone to KILLED, in every experiment that may be written."""
        from mlflow.exceptions import MlflowException

        experiments = [one.experiment_id for one in self.client.search_experiments()]
        for start in range(0, len(experiments), 100):
            running = "attributes.status = 'RUNNING'"
            for run in list(self._all(experiments[start : start + 100], running)):
                if gone(run.data.tags):
                    try:
                        self.client.set_terminated(run.info.run_id, "KILLED")
                    except MlflowException as error:
                        if error.get_http_status_code() not in (403, 404):
                            raise

    def parent(self, flow_run: str, name: str, began: int, tags: Mapping[str, str]) -> tuple[str, bool]:
        """(run id, whether it existed before) of the parent for this attempt's flow run."""
        known = self._parents.get(flow_run) or self._parents.get(self.attempt)
        if known is not None:
            return known, True
        run = self.client.create_run(self.experiment, began, run_name=name, tags=dict(tags))
        self._parents[flow_run or self.attempt] = run.info.run_id
        return str(run.info.run_id), False

    def child(
        self, key: str, name: str, began: int | None, tags: Mapping[str, str], parent: str
    ) -> tuple[str, bool]:
        """(run id, whether it existed before) of a stage key's run."""
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
        """Link a child from its parent by a tag. The next `flush` writes it."""
        self._links[parent, name] = child

    def inputs(self, run: str, datasets: list[Any]) -> None:
        """Record that a run read datasets. The next `flush` writes it."""
        self._inputs.setdefault(run, []).extend(datasets)

    def output(self, run: str, model: str, step: int) -> None:
        """Record that a run produced a model, unless it is there. The next `flush` writes it."""
        self._outputs.setdefault(run, {})[model] = step

    def later(self, run: str, rows: Iterable[Iterable[Point]]) -> None:
        """Log metrics with the next `flush`."""
        self._points.setdefault(run, []).extend(point for row in rows for point in row)

    def flush(self) -> None:
        """Write the pending metrics, links, datasets and models."""
        from mlflow.entities import LoggedModelOutput

        for run in {*self._points, *(parent for parent, _ in self._links)}:
            tags = {name: child for (of, name), child in self._links.items() if of == run}
            self.fill(run, {}, {}, ([point] for point in self._points.get(run, ())), tags)
        self._points.clear()
        self._links.clear()

        for run, datasets in self._inputs.items():
            for start in range(0, len(datasets), _PARAMS):
                self.client.log_inputs(run, datasets[start : start + _PARAMS])
        self._inputs.clear()

        for run, models in self._outputs.items():
            # read anew: what an earlier attempt left untold is told on the same run, by a publisher of its own
            known = outputs_of(self.client.get_run(run))
            new = [LoggedModelOutput(model, step) for model, step in models.items() if model not in known]
            if new:
                self._seen.pop(run, None)
                self.client.log_outputs(run, new)
        self._outputs.clear()

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags in one request."""
        self.fill(run, {}, {}, (), tags)

    def params(self, run: str, params: Mapping[str, str], there: Mapping[str, str]) -> None:
        """Log the params that do not exist yet. MLflow does not allow changing a logged value."""
        self.fill(run, params, there, ())

    def points(self, run: str, rows: Iterable[Iterable[Point]]) -> None:
        """Log metrics. The points of one row go into one request, which succeeds or fails as a whole."""
        self.fill(run, {}, {}, rows)

    def fill(
        self,
        run: str,
        params: Mapping[str, str],
        there: Mapping[str, str],
        rows: Iterable[Iterable[Point]],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Log all of it in as few requests as possible, because a request costs more than its content."""
        from mlflow.entities import Param, RunTag

        marks = [RunTag(name, value) for name, value in tags.items()]
        new = [Param(metric_name(n), _cut(v)) for n, v in params.items() if metric_name(n) not in there]
        batch: list[Point] = []
        for row in rows:
            points = list(row)
            if len(batch) + len(points) + min(len(new), _PARAMS) + min(len(marks), _PARAMS) > _ENTITIES:
                self._send(run, batch, new[:_PARAMS], marks[:_PARAMS])
                batch, new, marks = [], new[_PARAMS:], marks[_PARAMS:]
            batch += points
        while batch or new or marks:
            self._send(run, batch, new[:_PARAMS], marks[:_PARAMS])
            batch, new, marks = [], new[_PARAMS:], marks[_PARAMS:]

    def _send(self, run: str, points: list[Point], params: list[Any], tags: list[Any]) -> None:
        """Send one batch. The client makes it one request, within the server's limits."""
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
        self._seen.pop(run, None)
        self.client.log_batch(run, metrics=entries, params=params, tags=tags)

    def last_step(self, run: str, metric: str) -> int:
        """The greatest step of a metric; −1 where it has none."""
        if (seen := self._seen.get(run)) is not None:
            latest = seen.data.to_proto().metrics  # of each metric the point with the greatest step
            return max((int(point.step) for point in latest if point.key == metric), default=-1)
        history = self.client.get_metric_history(run, metric)
        return max((point.step for point in history), default=-1)


def outputs_of(run: Any) -> list[str]:
    """Ids of the models that a run of MLflow's produced."""
    return [str(one.model_id) for one in (run.outputs.model_outputs if run.outputs else ())]


def metric_name(name: str) -> str:
    """The name as MLflow takes it; it refuses commas, for one."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:250]


def _cut(text: str) -> str:
    """Shorten a long value and add its digest. MLflow would cut it silently, which hides differences at the end."""
    if len(text) <= _PARAM_CHARACTERS:
        return text
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[: _PARAM_CHARACTERS - 40]}… (sha256 {digest})"


def owner() -> dict[str, str]:
    """Tags that identify this process, so that another process can tell when it is gone."""
    process = {f"onward.{name}": str(value) for name, value in ProcessId.current().to_dict().items()}
    return {**process, "onward.alive": str(int(time.time()))}


def gone(tags: Mapping[str, str]) -> bool:
    """Whether the process that owns a run is gone. On another machine, an old sign of life decides."""
    if "onward.pid" not in tags:
        return False
    names = ("pid", "host", "started", "boot", "namespace", "machine")
    state = ProcessId.from_dict({name: tags.get(f"onward.{name}", "") for name in names}).state()
    if state != "elsewhere":
        return state == "gone"
    alive = tags.get("onward.alive", "")
    return alive.isdigit() and time.time() - int(alive) > _LOST_SECONDS
