"""MLflow: a parent run for each flow run, a child for each stage key. One thread writes, so the flow never waits.

Events are first recorded in an account beside the store, and published from there. A tracking server that is down costs
only delay. The next run in the store publishes what the server missed, with the original times. Each stage key has one
child, and later parents link to it. A metric's step is in tokens seen, and no step is written twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flows.dag.call import Call
from flows.tracking.account import Account, Event
from flows.tracking.addresses import note_address, registry_of
from flows.tracking.client import TRIES, connect, is_answer, said
from flows.tracking.database import damage_told, if_it_stays
from flows.tracking.machine import Sampler
from flows.tracking.models import alias_of
from flows.tracking.publisher import READERS, Publisher
from flows.tracking.replay import replay
from flows.tracking.runs import Point, owner
from flows.tracking.values import flat, lines_of, rows_of
from flows.tracking.view import View
from storage.artifact import Artifact
from storage.secrets import without_secrets
from storage.store import Store

_POLL_SECONDS = 3.0
_GATHER_SECONDS = 0.5
"""Events that come within this time of the first one are published together."""
_FLUSH_SECONDS = 60.0
_ALIVE_SECONDS = 60.0
_STUBBORN = 10
"""Tries of an event that fails without a refusal (such as a full disk behind the server) while the server can be read.

While the server cannot be read, no event is given up.
"""


@dataclass(frozen=True)
class Tracked:
    """What identifies a flow run in MLflow."""

    experiment: str
    run: str
    name: str
    uri: str
    artifacts: Path | None
    """The directory of MLflow's files for a local database; None if the server decides."""
    params: dict[str, str]
    tags: dict[str, str]
    note: str = ""
    """The description on the run's page, in Markdown."""
    registered: str | None = None
    """The registered model that gets the versions."""
    view: View | None = None
    """What the experiment's saved view shows."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """Which run this is, for the head of its report."""

    def head(self, attempt: str) -> Event:
        """The first line of the attempt's account. It holds no secret."""
        return {
            "attempt": attempt,
            "uri": without_secrets(self.uri),
            "experiment": self.experiment,
            "artifacts": self.artifacts.as_uri() if self.artifacts else None,
            "name": self.name,
            "flow_run": self.tags.get("prefect.flow_run", ""),
            "params": self.params,
            "tags": self.tags,
            "note": self.note,
            "registered": self.registered,
            "view": self.view.to_json() if self.view else None,
            "rows": dict(self.rows),
            "began": int(time.time() * 1000),
        }


class MeasuredModel(Protocol):
    """A model of a run with its results so far."""

    name: str
    tokens: int
    export: Artifact
    scores: dict[str, Artifact]
    perplexity: dict[str, Artifact]
    journals: list[Artifact]


@dataclass
class Tracker:
    """Publishes events in order, from one thread. Only `close` waits for the server."""

    tracked: Tracked
    store: Store
    warn: Callable[[str], None]
    parent: str | None = None
    _queue: queue.SimpleQueue[Event | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None
    _account: Account | None = None
    _attempt: Publisher | None = None
    _stale: bool = False
    _replayed: bool = False
    _followed: dict[str, Event] = field(default_factory=dict)
    _sampler: Sampler = field(default_factory=Sampler)
    _sent: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    _told: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    _alive: float = 0.0
    _error: str | None = None
    _away: bool = False
    _refused: str | None = None
    _set_aside: list[Event] = field(default_factory=list)
    _tell_parent: Callable[[str, str], None] | None = None

    def start(self) -> None:
        """Begin publishing."""
        head = self.tracked.head(uuid.uuid4().hex)
        try:
            note_address(self.store.root, registry_of(self.tracked.uri))
            self._account = Account.begin(self.store.root, head)
        except (
            OSError
        ) as error:  # such as a full disk: what cannot be published now is lost to MLflow, not to the store
            self._account = None
            self.warn(f"the account for MLflow cannot be written in {self.store.root}: {error.strerror}")
        self._thread = threading.Thread(target=self._work, args=(head,), name="mlflow", daemon=True)
        self._thread.start()

    def listen(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Record that a stage began, ended or failed."""
        request = call.request
        facts = {"stage": request.stage, "key": request.key}
        if event == "begin":
            if request.stage in READERS:
                self._queue.put({"event": "begin", **facts, **_of(call)})
        elif event == "end":
            self._note("end", **facts, **_of(call))
        elif event == "failed":
            self._note("failed", **facts, state="FAILED" if isinstance(call.error, Exception) else "KILLED")

    def call_with_parent(self, tell: Callable[[str, str], None]) -> None:
        """Call `tell` with (run id, experiment id) of the parent, once the server has it."""
        self._tell_parent = tell

    def measured(
        self, models: Sequence[MeasuredModel], registered: Sequence[str] = (), prefix: str = ""
    ) -> None:
        """Publish models and their results so far. Further calls publish what is new.

        Models with a name in `registered` become versions of the registered model. The parent's metric names start with
        `prefix`.
        """
        for model in list(models):
            entry = _entry(model, registered)
            told = (len(entry["scores"]), entry["alias"])
            if self._told.get(model.export.key) != told:
                self._told[model.export.key] = told
                journals = [[one.stage, one.key] for one in model.journals]
                self._note("model", **entry, journals=journals, prefix=prefix)

    def champion(
        self,
        models: Sequence[MeasuredModel],
        registered: Sequence[str],
        groups: Mapping[str, str],
        roles: Mapping[str, str],
    ) -> None:
        """Publish standings and champion after all models are measured. The first model is the base.

        `groups` maps benchmarks to domain or general, `roles` maps sources to domain or replay.
        """
        entries = [_entry(model, registered) for model in models]
        self._note("champion", models=entries, groups=dict(groups), roles=dict(roles))

    def files(self, report: Artifact) -> None:
        """Publish the report on the parent, for reading in MLflow."""
        self._note("files", stage=report.stage, key=report.key)

    def ended(self, state: str, page: str = "") -> None:
        """Publish how the run ended: `completed`, `failed`, `cancelled` or `interrupted`.

        `page`: why, and how it goes on, in Markdown.
        """
        self._note("ended", state=state, page=page)

    def close(self, state: str, seconds: float = _FLUSH_SECONDS) -> None:
        """End the parent run (`FINISHED`, `FAILED` or `KILLED`) once all is written, or after `seconds`."""
        if self._thread is None:
            return
        self._note("close", state=state)
        self._queue.put(None)
        self._thread.join(seconds)
        where, later = without_secrets(self.tracked.uri), if_it_stays(self.tracked.uri)
        if self._thread.is_alive() or self._error:
            why = self._error or f"still writing after {seconds:.0f} s"
            damaged = damage_told(self.tracked.uri, why) if self._error else None
            self.warn(
                f"MLflow at {where} has not got everything: {damaged}"
                if damaged
                else f"MLflow at {where} has not got everything ({why}); the next run adds it{later}"
            )
        elif self._refused and (damaged := damage_told(self.tracked.uri, self._refused)):
            self.warn(f"MLflow at {where} has not got everything: {damaged}")
        elif self._refused:
            self.warn(f"MLflow at {where} refused something; the next runs try again: {self._refused}{later}")

    def _note(self, event: str, **facts: Any) -> None:
        if self._account is not None:
            self._queue.put(self._account.add(event, **facts))
        else:
            self._queue.put({"event": event, "at": int(time.time() * 1000), **facts})

    # ---- the thread -------------------------------------------------------------------------------------------

    def _work(self, head: Event) -> None:
        waiting: deque[tuple[Event, int]] = deque()
        ended, patience = False, 0.01  # at first there is a server to be found
        while not (ended and (not waiting or self._away)):
            ended = self._gather(waiting, 0.01 if ended or waiting else patience) or ended
            patience = _POLL_SECONDS
            try:
                attempt = self._connected(head)
                waiting = newest_of_each(waiting)
                while waiting:
                    self._publish(attempt, waiting)
                attempt.runs.flush()
                self._follow(attempt)
                self._watch(attempt)
                self._error = None
            except Exception as error:  # training continues after any error of the server or its client
                self._stale = True
                self._error = said(error)
                if not (ended and self._away):
                    time.sleep(0.5)
        if self._account is not None:
            if not (self._error or waiting) and not self._set_aside:
                self._account.settle()
            elif not (self._error or waiting):
                self._account.keep(self._set_aside)
            self._account.leave()

    def _gather(self, waiting: deque[tuple[Event, int]], seconds: float) -> bool:
        """Add the events that come within `seconds`, and those that come soon after. Returns whether it was the last."""
        until = time.monotonic() + seconds
        came = False
        with contextlib.suppress(queue.Empty):
            while (item := self._queue.get(timeout=max(0.0, until - time.monotonic()))) is not None:
                waiting.append((item, 0))
                if not came:
                    came, until = True, time.monotonic() + min(seconds, _GATHER_SECONDS)
            return True
        return False

    def _publish(self, attempt: Publisher, waiting: deque[tuple[Event, int]]) -> None:
        event, tries = waiting[0]
        if event["event"] == "begin":
            self._followed[event["key"]] = event
        else:
            if event["event"] in ("end", "failed"):
                self._followed.pop(event["key"], None)
            try:
                attempt.publish(event)
            except Exception as error:
                attempt.runs.read()  # raises if the server is away; what was read before may be outdated
                waiting[0] = (event, tries + 1)
                if tries + 1 < (TRIES if is_answer(error) else _STUBBORN):
                    if not is_answer(error):
                        raise
                    return
                self._refused = f"{event['event']} {event.get('stage', '')}: {said(error)}"
                self._set_aside.append(event)
        waiting.popleft()

    def _connected(self, head: Event) -> Publisher:
        """The attempt on the server. After an error, the existing runs are read again. `_away` is set without an answer."""
        self._away = True
        if self._attempt is None:
            client = connect(self.tracked.uri)
            attempt = Publisher(client, self.store, head)
            attempt.begin(at_work=True)
            self._attempt, self.parent, self._stale = attempt, attempt.parent, False
            self._alive = time.monotonic()  # `begin` has told it
        if self._stale:
            self._attempt.runs.read()
            self._sent.clear()
            self._stale = False
        tell, self._tell_parent = self._tell_parent, None
        if tell is not None:
            tell(self._attempt.parent, self._attempt.experiment)
        if not self._replayed:
            told, refused = replay(self._attempt, self.store, head)
            self._refused = refused or self._refused
            self._attempt.runs.end_lost()
            if told:
                self._attempt.runs.read()
            self._replayed = True
        if time.monotonic() - self._alive > _ALIVE_SECONDS:
            self._attempt.alive(
                [run for key in self._followed if (run := self._attempt.runs.children.get(key))]
            )
            self._alive = time.monotonic()
        self._away = False
        return self._attempt

    def _follow(self, attempt: Publisher) -> None:
        """Publish a running trainer's journal, up to its newest durable checkpoint."""
        for key, event in self._followed.items():
            work = self.store.work_of(event["stage"], key)
            steps = [int(path.name.removeprefix("step-")) for path in (work / "checkpoints").glob("step-*")]
            journal = work / "journal.jsonl"
            if not steps or not journal.exists() or self._sent.get(key, (0, 0, 0))[0] == max(steps):
                continue
            child, there = attempt.child(event)
            if key not in self._sent:
                run = attempt.client.get_run(child)
                if there:
                    attempt.client.update_run(child, status="RUNNING")
                    attempt.runs.tag(child, owner())
                self._sent[key] = (0, attempt.runs.last_step(child, "train/loss"), run.info.start_time)
            _, last, anchor = self._sent[key]
            lines = lines_of(journal)
            rows = list(rows_of(lines, "train", anchor, after=last, until=max(steps)))
            attempt.runs.points(child, rows)
            if (segment := _segment_of(work)) is not None:
                attempt.curve(segment, lines, anchor, max(steps))
            self._sent[key] = (
                max(steps),
                max((points[0].step for points in rows if points), default=last),
                anchor,
            )

    def _watch(self, attempt: Publisher) -> None:
        """Publish how the machine is while a stage trains or measures, by the seconds since the flow run began."""
        if not self._followed:
            return
        works = [self.store.work_of(event["stage"], key) for key, event in self._followed.items()]
        if found := self._sampler.read(works):
            now = int(time.time() * 1000)
            step = max(0, now - attempt.began) // 1000
            attempt.runs.points(
                attempt.parent, [[Point(name, value, step, now) for name, value in found.items()]]
            )


def newest_of_each(waiting: deque[tuple[Event, int]]) -> deque[tuple[Event, int]]:
    """The events without those of a model that a later one in the queue repeats with more scores. The order stays."""
    last = {_model(event): number for number, (event, _) in enumerate(waiting) if event["event"] == "model"}
    return deque(
        one
        for number, one in enumerate(waiting)
        if one[0]["event"] != "model" or last[_model(one[0])] == number
    )


def _model(event: Event) -> tuple[str, str, str]:
    return event["stage"], event["key"], event.get("prefix", "")


def _segment_of(work: Path) -> dict[str, Any] | None:
    """The configuration of the segment that is trained in this work directory."""
    try:
        found: dict[str, Any] = json.loads((work / "spec.json").read_bytes())["identity"]
    except (OSError, ValueError, KeyError):
        return None
    return found


def _of(call: Call) -> dict[str, Any]:
    link = ".".join(
        str(part) for part in (call.request.stage, call.slice, call.round, call.item) if part is not None
    )
    return {
        "name": call.name,
        "label": call.label,
        "link": link,
        "item": call.item,
        "began": int(call.began * 1000) or None,
    }


def _entry(model: MeasuredModel, registered: Sequence[str]) -> dict[str, Any]:
    scores = [["perplexity", name, one.key] for name, one in list(model.perplexity.items())]
    scores += [["evaluate", name, one.key] for name, one in list(model.scores.items())]
    return {
        "stage": model.export.stage,
        "key": model.export.key,
        "name": model.name,
        "tokens": model.tokens,
        "alias": alias_of(model.name) if model.name in registered else None,
        "scores": scores,
    }


def public_address(uri: str) -> str | None:
    """MLflow's address for browsers: `ONWARD_MLFLOW_URL`, else the tracking address if it is a web address."""
    public = os.environ.get("ONWARD_MLFLOW_URL") or (uri if uri.startswith(("http://", "https://")) else None)
    return without_secrets(public).rstrip("/") if public else None


def describe_run(name: str, url: str | None, store: Path, summary: Mapping[str, str]) -> str:
    """The description of a flow run in MLflow: a link back, and a short configuration."""
    link = f"[This run in Prefect]({url}): its stages, log and artifacts." if url else ""
    return "\n\n".join(part for part in (head_text(name, summary), link, f"Store: `{store}`") if part)


def head_text(name: str, summary: Mapping[str, str]) -> str:
    """Which run this is, in Markdown: its name above a table."""
    rows = "\n".join(f"| {name} | {value.replace('|', '/')} |" for name, value in summary.items())
    return f"**{name}**\n\n| | |\n| --- | --- |\n{rows}"


def scores_text(models: Sequence[Mapping[str, Any]]) -> str:
    """The scores of models (as `describe` gives them) side by side, in Markdown; empty where nothing was measured."""
    rows: dict[str, list[str]] = {}
    for at, model in enumerate(models):
        values = {f"perplexity {source}": f"{value:.2f}" for source, value in model["perplexity"].items()}
        for benchmark, metrics in model["scores"].items():
            values |= {f"{benchmark} {metric}": f"{value:.4f}" for metric, value in metrics.items()}
        for name, value in values.items():
            rows.setdefault(name, [""] * len(models))[at] = value
    if not rows:
        return ""
    head = ["scores", *(str(model["name"]) for model in models)]
    lines = [head, ["---", *["---:"] * len(models)], *([name, *values] for name, values in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = [
    "Tracked",
    "Tracker",
    "describe_run",
    "flat",
    "head_text",
    "public_address",
    "scores_text",
    "without_secrets",
]
