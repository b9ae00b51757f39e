"""Publishes the events of one attempt at a run to MLflow. Each event may be published again, now or by a later attempt.

An event names things in the store by their key. Their content is read from the store when the event is published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

from flows.tracking.account import Event
from flows.tracking.champion import Candidate, Standing, results_text, standings
from flows.tracking.client import is_answer
from flows.tracking.data import inputs_of
from flows.tracking.machine import PREFIX
from flows.tracking.models import Exported, Models
from flows.tracking.report_pages import with_head
from flows.tracking.runs import FORMAT, NOTE, PUBLISHED, Point, Runs, outputs_of, owner
from flows.tracking.values import (
    anchored,
    curve_of,
    facts_of,
    flat,
    journal_of,
    moment,
    numbers,
    rows_of,
    scores_of,
)
from flows.tracking.view import TAG, View, address, outdated, tag_of
from storage.artifact import Artifact
from storage.errors import OnwardError
from storage.store import Store
from tasks import stages
from tasks.pages.report.cost import page_of

READERS = frozenset({*stages.TRAINING, "evaluate", "perplexity"})
"""Stages whose datasets are also shown on the parent run."""
ENDED = "onward.ended"
"""Tag of a parent run: `running`, `completed`, `failed`, `cancelled`, `interrupted` or `killed`."""
_BEGAN = "onward.began"
"""Tag of a parent run: the start of the attempt that now continues in it, in milliseconds since 1970."""


_KILLED = (
    "## Killed\n\nThe process of this run was killed, or its machine was restarted. Every finished stage is kept, and "
    "training up to its newest checkpoint.\n\n**What helps**\n\nRetry the run in Prefect; one that was started in a "
    "terminal goes on by the same command."
)


class Publisher:
    """Publishes to the experiment of `head`, the first line of an account. Methods raise MLflow's exceptions."""

    def __init__(self, client: Any, store: Store, head: Event) -> None:
        self.client = client
        self.store = store
        self.head = head
        self.parent = ""
        self.began = 0
        """When the parent run began, in milliseconds since 1970."""
        self._views: dict[str, str] = {}
        """Tags of the experiment; the saved views are among them."""
        self.experiment = self._experiment()
        self.runs = Runs(client, self.experiment, str(head["attempt"]))
        self.models = Models(client, self.experiment)
        self._steps: dict[str, set[int]] = {}
        self._scored: set[tuple[str, str]] = set()
        self._there = False
        self._curves: dict[str, int] = {}
        self._shown: set[tuple[tuple[str, str], str]] = set()
        """Datasets that the parent already shows."""
        self._read: dict[tuple[str, str], Artifact | None] = {}
        self._owned = float("-inf")
        """When the parent run was last seen to be this attempt's, in monotonic seconds."""

    def _experiment(self) -> str:
        known = self.client.get_experiment_by_name(self.head["experiment"])
        if known is not None:
            self._views = dict(known.tags)
            return str(known.experiment_id)
        return str(self.client.create_experiment(self.head["experiment"], self.head.get("artifacts")))

    def begin(self, at_work: bool) -> None:
        """Find or create the parent run. It becomes RUNNING if the attempt is at work now."""
        self.runs.read()
        head = self.head
        if at_work:
            self._keep_view()
        tags = {**head["tags"], "onward.attempt": head["attempt"], "kind": "flow run", NOTE: self._note()}
        tags |= {ENDED: "running"}
        tags |= {_BEGAN: str(head["began"])}
        tags |= owner() if at_work else {}
        self.parent, there = self.runs.parent(head["flow_run"], head["name"], int(head["began"]), tags)
        self._there = there
        known: Mapping[str, str] = {}
        self.began = int(head["began"])
        if there:
            run = self.client.get_run(self.parent)
            known, self.began = run.data.params, run.info.start_time or self.began
            named = (name for name in run.data.metrics if not name.startswith(PREFIX))
            self._steps = {name: self._steps_of(name) for name in named}
            if at_work:
                self.client.update_run(self.parent, status="RUNNING")
                self.runs.tag(self.parent, tags)
            elif self._later(run.data.tags):
                self.runs.tag(self.parent, tags)
        self.runs.params(self.parent, head["params"], known)

    def _keep_view(self) -> None:
        """Write the experiment's saved view, unless it is there, or a person has saved it."""
        from mlflow.exceptions import MlflowException

        if (found := self.head.get("view")) and outdated(self._views.get(TAG), wanted := View.read(found)):
            try:
                self.client.set_experiment_tag(self.experiment, TAG, tag_of(wanted, int(time.time() * 1000)))
            except MlflowException as error:
                if not is_answer(error):  # a server that lets nobody change an experiment has no view
                    raise

    def _note(self, above: str = "") -> str:
        """The description on the run's page, and what stands above it."""
        link = f"[All runs of this experiment, with their scores and curves]({address(self.experiment)})"
        return "\n\n".join(part for part in (above, self.head["note"], link) if part)

    def _later(self, tags: Mapping[str, str]) -> bool:
        """Whether this attempt began after the one that owns the run now. The last attempt decides how the run ended."""
        other, began = tags.get("onward.attempt"), tags.get(_BEGAN, "")
        return other != self.head["attempt"] and began.isdigit() and int(began) < int(self.head["began"])

    def _steps_of(self, metric: str) -> set[int]:
        return {point.step for point in self.client.get_metric_history(self.parent, metric)}

    def alive(self, runs: list[str]) -> None:
        """Update the sign of life on the parent and on `runs`."""
        mark = {"onward.alive": owner()["onward.alive"]}
        for run in (self.parent, *runs):
            self.runs.tag(run, mark)

    def publish(self, event: Event) -> None:
        """Publish an event of any kind."""
        handlers: dict[str, Callable[[Event], None]] = {
            "end": self._end,
            "failed": self._failed,
            "model": self._model,
            "champion": self._champion,
            "files": self._files,
            "ended": self._ended,
            "close": self._close,
        }
        if (handler := handlers.get(event["event"])) is not None:
            handler(event)

    def ended(self, events: list[Event]) -> None:
        """Set the final state of an attempt whose process is gone, unless another attempt has continued in its run."""
        if self.client.get_run(self.parent).data.tags.get("onward.attempt") != self.head["attempt"]:
            return
        if not any(event["event"] == "close" for event in events):  # it was killed
            self.runs.tag(self.parent, {ENDED: "killed", NOTE: self._note(_KILLED)})
            at = max((int(event["at"]) for event in events), default=int(self.head["began"]))
            self.client.set_terminated(self.parent, "KILLED", at)

    # ---- stages -----------------------------------------------------------------------------------------------

    def child(self, event: Event, artifact: Artifact | None = None) -> tuple[str, bool]:
        """(run id, whether it existed before) of a stage's run. Its page describes the stage."""
        key, url = event["key"], self.head["tags"].get("prefect.url")
        lines = [f"**{event['name']}**", f"Stage key `{key}`", f"In the store: `{event['stage']}/{key[:16]}`"]
        lines += [f"First made by [this flow run in Prefect]({url})"] if url else []
        tags = {"stage": event["stage"], NOTE: "\n\n".join(lines), **owner()}
        if artifact is not None:
            tags |= {PUBLISHED: FORMAT, **facts_of(artifact)}
        began = moment(artifact, "started") if artifact else None
        return self.runs.child(key, event["label"], began or event.get("began"), tags, self.parent)

    def _end(self, event: Event) -> None:
        artifact = self._artifact(event["stage"], event["key"])
        if artifact is None:
            return
        child, there = self.child(event, artifact)
        data = inputs_of(artifact, self.store, event.get("item")) if self._wanted(artifact) else []
        if artifact.key not in self.runs.complete:
            self._fill(child, there, artifact, data)
        if artifact.stage in READERS:
            new = [one for one in data if (one.reference, one.use) not in self._shown]
            if new:
                self.runs.inputs(self.parent, [one.entity() for one in new])
            self._shown |= {(one.reference, one.use) for one in new}
        if artifact.has("journal") and artifact.stage in stages.TRAINING:
            (rows, anchor), *_ = anchored([artifact])
            self.curve(artifact.manifest.config, rows, anchor)
        self.runs.link(self.parent, f"child.{event['link']}", child)

    def curve(
        self, segment: Mapping[str, Any], rows: list[dict[str, Any]], anchor: int, until: int | None = None
    ) -> None:
        """Show a segment's training on the flow run, up to the step `until`. What is there already stays."""
        points = list(curve_of(segment, rows, anchor, self._last_of_curve, until))
        self.runs.later(self.parent, points)
        for row in points:
            for point in row:
                self._curves[point.name] = max(point.step, self._curves.get(point.name, -1))

    def _last_of_curve(self, name: str) -> int:
        """The last tokens that a metric of the parent's curve has. A parent that is new has none."""
        if name not in self._curves:
            self._curves[name] = self.runs.last_step(self.parent, name) if self._there else -1
        return self._curves[name]

    def _wanted(self, artifact: Artifact) -> bool:
        return artifact.stage in READERS or artifact.key not in self.runs.complete

    def _fill(self, child: str, there: bool, artifact: Artifact, data: list[Any]) -> None:
        """Publish everything of a finished stage. Its run becomes FINISHED once all is there."""
        run = self.client.get_run(child) if there else None
        known = run.data.metrics if run else {}
        at = moment(artifact, "ended") or 0
        rows: Iterable[list[Point]] = (
            [Point(name, value, 0, at)]
            for name, value in numbers(artifact.stats)
            if not name.startswith("result") and name not in known
        )
        if artifact.has("journal"):
            anchor = run.info.start_time if run else moment(artifact, "started") or at
            last = self.runs.last_step(child, "train/loss") if run else -1
            rows = chain(rows, rows_of(journal_of(artifact), "train", anchor, after=last))
        self.runs.fill(child, dict(flat(artifact.manifest.config)), run.data.params if run else {}, rows)
        if data:
            self.client.log_inputs(child, [one.entity() for one in data])
        if there:
            self.runs.tag(child, {PUBLISHED: FORMAT, **facts_of(artifact)})
        self.client.set_terminated(child, "FINISHED", at or None)
        self.runs.complete.add(artifact.key)

    def _failed(self, event: Event) -> None:
        key = event["key"]
        if (child := self.runs.children.get(key)) is not None and key not in self.runs.complete:
            self.client.set_terminated(child, event["state"], event["at"])

    # ---- models -----------------------------------------------------------------------------------------------

    def _model(self, event: Event) -> None:
        """Publish a model with its results so far."""
        export = self._artifact(event["stage"], event["key"])
        if export is None:
            return
        made = {"name": export.stage, "label": f"{export.stage} · {export.key[:6]}", "item": None}
        child, _ = self.child({**made, "stage": export.stage, "key": export.key}, export)
        if export.key not in self.runs.complete:  # no task of this flow run made or found it
            self._fill(child, True, export, inputs_of(export, self.store))
        model = self._exported(event, export, child)
        there = self.runs.run(child)
        told = outputs_of(there)
        model_id = self.models.logged(model, told)
        if ("", export.key) not in self._scored:
            self._line(child, event)
            self._register(event, model, whole=bool(told))
            self.runs.output(self.parent, model_id, event["tokens"])
            if not told:  # the last of it: a model that its run names is whole
                self.runs.output(child, model_id, event["tokens"])
                self.runs.flush()
            self._scored.add(("", export.key))
        self._register(event, model, whole=True)
        new = [
            (item, score)
            for kind, item, key in event["scores"]
            if (export.key, key) not in self._scored and (score := self._artifact(kind, key)) is not None
        ]
        if not new:
            return
        self.runs.later(self.parent, (self._of_parent(score, item, event) for item, score in new))
        for item, score in new:
            self._score(score, item, event, model_id, child, there.data.metrics)
            self._scored.add((export.key, score.key))

    def _register(self, event: Event, model: Exported, *, whole: bool) -> None:
        """The model's version with its alias, once. Whether a merged model gets one is only known at the end of a run."""
        alias, registered = event.get("alias"), self.head.get("registered")
        if registered and alias and (alias, model.key) not in self._scored:
            version = self.models.version(registered, model, self._origin(), whole=whole)
            self.models.alias(registered, alias, version)
            self._scored.add((alias, model.key))

    def _exported(self, event: Event, export: Artifact, child: str) -> Exported:
        params = dict(flat(export.manifest.config))
        return Exported(export, child, event["name"], int(event["tokens"]), self.store.root, params)

    def _origin(self) -> dict[str, str]:
        """Tags that name the flow run that registered a version."""
        tags = self.head["tags"]
        found = {
            name: tags[name] for name in ("onward.run", "prefect.flow_run", "prefect.url") if tags.get(name)
        }
        return {"source_run": self.parent, **found}

    def _of_parent(self, score: Artifact, item: str, event: Event) -> list[Point]:
        """A score as the parent shows it; nothing of what it has at this number of tokens."""
        at, tokens = moment(score, "ended") or 0, event["tokens"]
        named = {f"{event.get('prefix', '')}{name}": value for name, value in scores_of(score, item).items()}
        return [
            Point(name, value, tokens, at)
            for name, value in named.items()
            if tokens not in self._steps.get(name, ())
        ]

    def _score(
        self, score: Artifact, item: str, event: Event, model_id: str, child: str, there: Mapping[str, float]
    ) -> None:
        """Log a score on its own run, tied to model and dataset, and then on the run that made the model."""
        at, tokens = moment(score, "ended") or 0, event["tokens"]
        values = scores_of(score, item)
        absent = {name: value for name, value in values.items() if name not in there}
        if not absent:  # an earlier run has told it, and its own run first
            return
        own = self.runs.children.get(score.key)
        data = inputs_of(score, self.store, item)
        if own is not None and data:
            self.models.input(own, model_id)
            tied = data[0].reference
            self.runs.points(own, [[Point(n, v, tokens, at, model_id, tied) for n, v in values.items()]])
        self.runs.points(child, [[Point(n, v, tokens, at) for n, v in absent.items()]])

    def _line(self, child: str, event: Event) -> None:
        """Log the whole training history of a model, trunk and branch, on the model's own run."""
        last = self.runs.last_step(child, "line/loss")
        found = [self._artifact(stage, key) for stage, key in event["journals"]]
        for rows, anchor in anchored([one for one in found if one is not None and one.has("journal")]):
            self.runs.points(child, rows_of(rows, "line", anchor, after=last))

    def _champion(self, event: Event) -> None:
        """Publish the standing of each model of the run, and the champion."""
        models = [self._measured(entry) for entry in event["models"]]
        for measured in models:
            self._means(measured, event["groups"])
        if not (registered := self.head.get("registered")):
            return
        places = standings(models, event["groups"], event["roles"])
        by_version: dict[str, Standing] = {}
        for entry in event["models"]:
            place, key = places[entry["name"]], entry["key"]
            export, child = self._artifact(entry["stage"], key), self.runs.children.get(key)
            if place is not None and export is not None and child is not None and entry.get("alias"):
                model = self._exported(entry, export, child)
                version = self.models.version(registered, model, self._origin())
                by_version[version] = place
                results = results_text(models, entry["name"], place, self.head["tags"].get("onward.differs"))
                self.models.describe(registered, version, model, results, self._origin())
        if champion := self.models.crown(registered, by_version):
            self.runs.tag(self.parent, {"onward.champion": f"{registered}/{champion}"})

    def _measured(self, entry: Event) -> Candidate:
        scores: dict[str, dict[str, Artifact]] = {"evaluate": {}, "perplexity": {}}
        for kind, item, key in entry["scores"]:
            if (score := self._artifact(kind, key)) is not None:
                scores[kind][item] = score
        return Candidate(entry["name"], int(entry["tokens"]), scores["evaluate"], scores["perplexity"])

    def _means(self, measured: Candidate, groups: Mapping[str, str]) -> None:
        """Log the means of the main metrics over the domain benchmarks and the general ones, on the parent."""
        points, tokens = [], measured.tokens
        for group in ("domain", "general"):
            of = [one for name, one in measured.scores.items() if groups.get(name) == group]
            name = f"mean/{group}"
            if of and tokens not in self._steps.get(name, ()):
                value = sum(one.stats["metrics"][one.stats["main"]] for one in of) / len(of)
                points.append(Point(name, value, tokens, max(moment(one, "ended") or 0 for one in of)))
        self.runs.later(self.parent, [points])

    # ---- the run ----------------------------------------------------------------------------------------------

    def _files(self, event: Event) -> None:
        """Publish pages for reading on the parent run."""
        artifact = self._artifact(event["stage"], event["key"])
        with_cost = page_of(self.store.root, artifact) if artifact else None
        for part in ("report", "page"):
            for path in artifact.part(part).paths if artifact and artifact.has(part) else ():
                if path.suffix in (".html", ".md"):
                    published = with_cost / path.name if with_cost and part == "report" else path
                    shown = published if published.is_file() else path
                    with self._headed(shown, part) as file:
                        self.client.log_artifact(self.parent, str(file), part)

    def _headed(self, page: Path, part: str) -> AbstractContextManager[Path]:
        """The report with this run in its head; another page as it is."""
        rows = self.head.get("rows")
        return with_head(page, self.head["name"], rows) if rows and part == "report" else nullcontext(page)

    def _ended(self, event: Event) -> None:
        """Say how the attempt ended, and above all else on its page how it goes on."""
        if self._is_own():
            self.runs.tag(self.parent, {ENDED: event["state"], NOTE: self._note(event["page"])})

    def _close(self, event: Event) -> None:
        self.runs.flush()
        if self._is_own():
            self.client.set_terminated(self.parent, event["state"], event["at"])

    def _is_own(self) -> bool:
        """Whether no later attempt has continued in the parent run; asked once a second at most."""
        if time.monotonic() - self._owned > 1.0:
            tags = self.client.get_run(self.parent).data.tags
            if tags.get("onward.attempt") != self.head["attempt"]:
                return False
            self._owned = time.monotonic()
        return True

    def _artifact(self, stage: str, key: str) -> Artifact | None:
        """The artifact from the store; None if it is gone or damaged."""
        if self._read.get((stage, key)) is None:
            try:
                self._read[stage, key] = self.store.look(stage, key, fully=True)
            except OnwardError:
                self._read[stage, key] = None
        return self._read[stage, key]
