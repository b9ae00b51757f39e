"""The saved view of an experiment in MLflow: its flow runs with their scores as columns, and charts of training and scores.

MLflow's page keeps its views as tags of the experiment: `mlflow.sharedViewState.<key>` holds a name, two times and the
state of the page, as JSON. It lists them under `Views`, and an address with `viewStateShareKey=<key>` opens one. Ours is
written anew where the configuration's sources or benchmarks have changed, and left alone once a person has saved it: then
its two times differ.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

KEY = "onward"
TAG = f"mlflow.sharedViewState.{KEY}"
NAME = "Runs, their scores and their training"
AS_TRAINING = "workflowType=machine_learning"
"""MLflow's pages for applications have no charts to compare."""
_MOST = 24
"""Sources, and benchmarks, that get columns and charts: MLflow refuses a tag of more than 20,000 characters."""
_DEFLATED = "deflate;"
"""What MLflow puts before a state that is compressed."""
_FLOW_RUNS = "tags.kind = 'flow run'"
_TRAINING, _SCORES = "Training, by tokens seen", "Scores, by tokens seen"
_CLOSED = ("train", "decay", "mean", "perplexity", "bits_per_byte", "Model metrics", "System metrics")
"""Sections that MLflow makes of the other metrics, as closed ones."""


@dataclass(frozen=True)
class View:
    """What there is to be seen: names of sources, the domain's first, and (name, main metric) of benchmarks."""

    sources: tuple[str, ...]
    benchmarks: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, roles: Mapping[str, str], benchmarks: Iterable[str]) -> View:
        """The view of a configuration's sources (name to role) and benchmarks (names)."""
        from tasks.evaluation.catalog import BENCHMARKS, OWN_MAIN

        sources = sorted(roles, key=lambda name: roles[name] != "domain")
        mains = [(name, BENCHMARKS[name].main if name in BENCHMARKS else OWN_MAIN) for name in benchmarks]
        return cls(tuple(sources[:_MOST]), tuple(mains[:_MOST]))

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> View:
        """The view from JSON, as `to_json` wrote it."""
        return cls(tuple(found["sources"]), tuple((name, main) for name, main in found["benchmarks"]))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, for an account."""
        return {"sources": list(self.sources), "benchmarks": [list(one) for one in self.benchmarks]}

    def state(self) -> dict[str, Any]:
        """The state of MLflow's page: which runs, which columns, which charts in which sections."""
        from tasks.training.state.heldout import PREFIX

        training = [
            _line("loss", ["train/loss", "decay/loss"], _TRAINING),
            _line(
                "loss on held-out text",
                [f"{part}/{PREFIX}{name}" for name in self.sources for part in ("train", "decay")],
                _TRAINING,
            ),
            _line("learning rate", ["train/lr", "decay/lr"], _TRAINING),
            _line("tokens per second", ["train/tokens_per_second", "decay/tokens_per_second"], _TRAINING),
            _line("gradient norm", ["train/grad_norm", "decay/grad_norm"], _TRAINING),
        ]
        scores = [
            _line("mean of domain benchmarks", ["mean/domain"], _SCORES),
            _line("mean of general benchmarks", ["mean/general"], _SCORES),
            *(_line(f"perplexity, {name}", [f"perplexity/{name}"], _SCORES) for name in self.sources),
            *(_line(name, [f"eval/{name}/{main}"], _SCORES) for name, main in self.benchmarks),
        ]
        closed = [*_CLOSED, *(f"eval/{name}" for name, _ in self.benchmarks)]
        return {
            "searchFilter": _FLOW_RUNS,
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(self._columns()),
            "columnOrder": [],
            "columnWidths": {},
            "runsHiddenMode": "FIRST_10_RUNS",
            "compareRunCharts": [*training, *scores],
            "compareRunSections": [
                *(_section(name, display=True) for name in (_TRAINING, _SCORES)),
                *(_section(name, display=False) for name in closed),
            ],
            "viewMaximized": False,
            "runListHidden": False,
            "isAccordionReordered": True,
            "groupBy": None,
            "groupsExpanded": {},
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        }

    def _columns(self) -> Iterable[str]:
        named: list[tuple[str, str]] = [("attributes", "Created"), ("attributes", "Duration")]
        named += [("tags", "onward.ended"), ("tags", "onward.differs")]
        named += [("metrics", "mean/domain"), ("metrics", "mean/general")]
        named += [("metrics", f"perplexity/{name}") for name in self.sources]
        named += [("metrics", f"eval/{name}/{main}") for name, main in self.benchmarks]
        named += [("metrics", "train/loss"), ("params", "training.learning_rate")]
        named += [("params", "training.token_budgets"), ("params", "seed")]
        return (f"{kind}.`{name}`" for kind, name in named)


def _line(title: str, metrics: Sequence[str], section: str) -> dict[str, Any]:
    """A line chart by steps, which are tokens here."""
    return {
        "uuid": f"{section}/{title}",
        "type": "LINE",
        "runsCountToCompare": 10,
        "metricSectionId": section,
        "deleted": False,
        "isGenerated": False,
        "displayName": title,
        "metricKey": metrics[0] if metrics else "",
        "selectedMetricKeys": list(metrics),
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _section(name: str, *, display: bool) -> dict[str, Any]:
    return {
        "uuid": name,
        "name": name,
        "display": display,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }


def outdated(there: str | None, view: View) -> bool:
    """Whether the tag of an experiment has to be written: it is missing, or ours and of another configuration."""
    if there is None:
        return True
    try:
        known = json.loads(there)
        saved_by_a_person = known["updatedAt"] != known["createdAt"]
        return not saved_by_a_person and state_in(there) != view.state()
    except (ValueError, KeyError, TypeError, zlib.error):  # of another release of MLflow
        return False


def state_in(tag: str) -> Any:
    """The state of the page in a tag. Raises ValueError, KeyError or zlib.error if it is none."""
    state = str(json.loads(tag)["state"])
    if state.startswith(_DEFLATED):
        state = zlib.decompress(base64.b64decode(state.removeprefix(_DEFLATED))).decode()
    return json.loads(state)


def tag_of(view: View, milliseconds: int) -> str:
    """The tag's value, with the time since 1970 at which it is written."""
    state = zlib.compress(json.dumps(view.state(), ensure_ascii=False).encode(), 9)
    text = f"{_DEFLATED}{base64.b64encode(state).decode()}"
    return json.dumps({"name": NAME, "createdAt": milliseconds, "updatedAt": milliseconds, "state": text})


def address(experiment: str, base: str = "") -> str:
    """The view's address below MLflow's for browsers; without one, for a link on a page of MLflow."""
    query = f"{AS_TRAINING}&viewStateShareKey={KEY}&compareRunsMode=CHART"
    return f"{base and base + '/'}#/experiments/{quote(experiment, safe='')}/runs?{query}"
