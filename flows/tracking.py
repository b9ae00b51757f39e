"""MLflow: a parent run for each flow run, a child for each stage key, written by one thread off the flow's path.

Everything published here can be made again from the store, so a tracking server that is down costs nothing but the
delay: what was missed is published by the next run. A child is made once per stage key and linked by later parents; a
metric's step is tokens seen, and steps already there are never written again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.secrets import without_secrets
from flows.stage import Call
from storage.artifact import Artifact

_TRAINING = ("train", "decay")
_POLL_SECONDS = 3.0
_FLUSH_SECONDS = 60.0
_BATCH = 1000
_PARAM_CHARACTERS = 500
_NOTE = "mlflow.note.content"


@dataclass(frozen=True)
class Tracked:
    """What identifies a flow run in MLflow."""

    experiment: str
    run: str
    name: str
    uri: str
    artifacts: Path | None
    """Where MLflow keeps files, for a local database; None where the server decides."""
    params: dict[str, str]
    tags: dict[str, str]
    note: str = ""
    """What the run's page says of it, in Markdown."""


@dataclass
class Tracker:
    """Publishes what happens, in order, from one thread. No method of it waits for the server, but `close`."""

    tracked: Tracked
    work_of: Callable[[str, str], Path]
    warn: Callable[[str], None]
    parent: str | None = None
    _queue: queue.SimpleQueue[tuple[str, Any] | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None
    _client: Any = None
    _experiment: str = ""
    _children: dict[str, str] = field(default_factory=dict)
    _complete: set[str] = field(default_factory=set)
    _followed: dict[str, Call] = field(default_factory=dict)
    _sent: dict[str, int] = field(default_factory=dict)
    _error: str | None = None
    _again: bool = False
    _tell_parent: Callable[[str, str], None] | None = None

    def start(self) -> None:
        """Begin publishing."""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def listen(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """A stage began, ended or failed."""
        self._queue.put((event, (call, artifact)))

    def call_with_parent(self, tell: Callable[[str, str], None]) -> None:
        """Call with (run id, experiment id) of the parent, once the server has it."""
        self._tell_parent = tell

    def score(self, model_key: str | None, tokens: int, metrics: Mapping[str, float]) -> None:
        """Scores of a model at its tokens: on the parent, and on the child of the stage that made the model."""
        self._queue.put(("score", (model_key, tokens, dict(metrics))))

    def line(self, model_key: str, journals: list[Path]) -> None:
        """The whole training line of a model, trunk and branch, on the model's own child."""
        self._queue.put(("line", (model_key, journals)))

    def files(self, paths: list[Path]) -> None:
        """Small files to be looked at in MLflow, on the parent."""
        self._queue.put(("files", paths))

    def close(self, state: str, seconds: float = _FLUSH_SECONDS) -> None:
        """End the parent run (`FINISHED`, `FAILED` or `KILLED`) once all is written, or `seconds` have passed."""
        if self._thread is None:
            return
        self._queue.put(("close", state))
        self._queue.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive() or self._error:
            why = self._error or f"still writing after {seconds:.0f} s"
            self.warn(
                f"MLflow at {without_secrets(self.tracked.uri)} has not got everything ({why}); the next run adds it"
            )

    def _work(self) -> None:
        handlers: dict[str, Callable[[Any], None]] = {
            "begin": self._begin,
            "end": self._end,
            "failed": self._failed,
            "score": self._score,
            "line": self._line,
            "files": self._files,
            "close": self._close,
        }
        waiting: list[tuple[str, Any]] = []
        ended = False
        while not (ended and (not waiting or self._error)):
            item: tuple[str, Any] | None = ("poll", None)
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=0.01 if ended else _POLL_SECONDS)
            if item is None:
                ended = True
            elif item[0] != "poll":
                waiting.append(item)
            try:
                self._connect()
                while waiting:
                    event, payload = waiting[0]
                    handlers[event](payload)
                    waiting.pop(0)
                self._follow()
                self._announce()
                self._error = None
            except Exception as error:  # whatever the server or its client does, training goes on
                self._error = (
                    f"{type(error).__name__}: {without_secrets(str(error).partition(chr(10))[0])[:200]}"
                )

    def _connect(self) -> None:
        if self._client is not None:
            return
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow import MlflowClient

        client = MlflowClient(self.tracked.uri)
        known = client.get_experiment_by_name(self.tracked.experiment)
        location = self.tracked.artifacts.as_uri() if self.tracked.artifacts else None
        self._experiment = (
            known.experiment_id if known else client.create_experiment(self.tracked.experiment, location)
        )
        self._adopt(client)
        tags = {**self.tracked.tags, **_owner(), "kind": "flow run", _NOTE: self.tracked.note}
        if self.parent is None:
            parent = client.create_run(self._experiment, run_name=self.tracked.name, tags=tags)
            self.parent = parent.info.run_id
        else:  # the same flow run, retried
            self._again = True
            client.update_run(self.parent, status="RUNNING")
            for name, value in tags.items():
                client.set_tag(self.parent, name, value)
        self._client = client
        self._log(self.parent, params=self.tracked.params)

    def _announce(self) -> None:
        tell, parent = self._tell_parent, self.parent
        if tell is not None and parent is not None and self._client is not None:
            self._tell_parent = None
            tell(parent, self._experiment)

    def _adopt(self, client: Any) -> None:
        """Learn the children that are there, and the run of an earlier attempt; end runs whose process is gone."""
        token = None
        flow_run = self.tracked.tags.get("prefect.flow_run")
        while True:
            page = client.search_runs([self._experiment], "", max_results=1000, page_token=token)
            for run in page:
                if key := run.data.tags.get("stage_key"):
                    self._children[key] = run.info.run_id
                    if run.info.status == "FINISHED":
                        self._complete.add(key)
                elif flow_run and run.data.tags.get("prefect.flow_run") == flow_run:
                    self.parent = run.info.run_id
                if run.info.status == "RUNNING" and _gone(run.data.tags):
                    client.set_terminated(run.info.run_id, "KILLED")
            token = page.token
            if not token:
                return

    def _begin(self, payload: Any) -> None:
        call, _ = payload
        if call.request.stage in _TRAINING:
            self._followed[call.request.key] = call

    def _failed(self, payload: Any) -> None:
        call, _ = payload
        self._followed.pop(call.request.key, None)
        if (child := self._children.get(call.request.key)) is not None:
            self._client.set_terminated(child, "FAILED")

    def _end(self, payload: Any) -> None:
        call, artifact = payload
        self._followed.pop(call.request.key, None)
        child = self._child(call, artifact)
        if artifact.key not in self._complete:
            stats = {name: value for name, value in _numbers(artifact.stats) if not name.startswith("result")}
            self._log(
                child, metrics=[(name, value, 0) for name, value in stats.items()], params=_params(artifact)
            )
            if artifact.has("journal"):
                self._journal(child, artifact.part("journal").only())
            self._client.set_terminated(child, "FINISHED", _milliseconds(artifact, "ended"))
            self._complete.add(artifact.key)
        link = ".".join(
            str(part) for part in (call.request.stage, call.slice, call.round, call.item) if part is not None
        )
        self._client.set_tag(self.parent, f"child.{link}", child)

    def _child(self, call: Call, artifact: Artifact | None = None) -> str:
        key = call.request.key
        if key not in self._children:
            tags = {
                "mlflow.parentRunId": self.parent,
                "stage": call.request.stage,
                "stage_key": key,
                _NOTE: self._note(call),
                **_owner(),
            }
            began = _milliseconds(artifact, "started") if artifact else int(call.began * 1000) or None
            run = self._client.create_run(self._experiment, began, run_name=call.label, tags=tags)
            self._children[key] = run.info.run_id
        return self._children[key]

    def _note(self, call: Call) -> str:
        """What the page of a stage says of it."""
        key, url = call.request.key, self.tracked.tags.get("prefect.url")
        lines = [f"**{call.name}**", f"Stage key `{key}`", f"In the store: `{call.request.stage}/{key[:16]}`"]
        lines += [f"First made by [this flow run in Prefect]({url})"] if url else []
        return "\n\n".join(lines)

    def _score(self, payload: Any) -> None:
        key, tokens, metrics = payload
        rows = [(name, value, tokens) for name, value in metrics.items()]
        if self.parent is not None:
            known = {name for name in metrics if self._again and self._has(self.parent, name, tokens)}
            self._log(self.parent, metrics=[row for row in rows if row[0] not in known])
        if key in self._children:
            child = self._children[key]
            there = self._client.get_run(child).data.metrics
            self._log(child, metrics=[row for row in rows if row[0] not in there])

    def _has(self, run: str, metric: str, step: int) -> bool:
        history = self._client.get_metric_history(run, _metric_name(metric))
        return any(point.step == step for point in history)

    def _line(self, payload: Any) -> None:
        key, journals = payload
        child = self._children.get(key)
        for journal in journals if child is not None else ():
            self._journal(str(child), journal, prefix="line")

    def _files(self, paths: list[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self.parent, str(path), "report")

    def _close(self, state: str) -> None:
        self._client.set_terminated(self.parent, state)

    def _follow(self) -> None:
        """Publish a running trainer's journal, up to its newest durable checkpoint."""
        for key, call in list(self._followed.items()):
            work = self.work_of(call.request.stage, key)
            steps = [int(path.name.removeprefix("step-")) for path in (work / "checkpoints").glob("step-*")]
            if not steps or not (work / "journal.jsonl").exists():
                continue
            known = key in self._children
            child = self._child(call)
            if known and key not in self._sent:
                self._client.update_run(child, status="RUNNING")
            self._journal(child, work / "journal.jsonl", until=max(steps))
            self._sent[key] = max(steps)

    def _journal(self, run: str, journal: Path, until: int | None = None, prefix: str = "train") -> None:
        last = self._last(run, f"{prefix}/loss")
        rows = [
            (f"{prefix}/{name}", value, int(row["tokens"]))
            for row in _journal_rows(journal)
            if int(row["tokens"]) > last and (until is None or int(row["step"]) <= until)
            for name, value in row.items()
            if name not in ("step", "tokens")
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        ]
        self._log(run, metrics=rows)

    def _last(self, run: str, metric: str) -> int:
        history = self._client.get_metric_history(run, metric)
        return max((point.step for point in history), default=-1)

    def _log(
        self,
        run: str,
        metrics: list[tuple[str, float, int]] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        now = int(time.time() * 1000)
        entries = [Metric(_metric_name(name), float(value), now, step) for name, value, step in metrics or []]
        for start in range(0, len(entries), _BATCH):
            self._client.log_batch(run, metrics=entries[start : start + _BATCH])
        pairs = [Param(name, value) for name, value in (params or {}).items()]
        for start in range(0, len(pairs), 100):
            self._client.log_batch(run, params=pairs[start : start + 100])


def public_address(uri: str) -> str | None:
    """Where people look at MLflow: `ONWARD_MLFLOW_URL`, else the tracking address where that is a web address."""
    public = os.environ.get("ONWARD_MLFLOW_URL") or (uri if uri.startswith(("http://", "https://")) else None)
    return without_secrets(public).rstrip("/") if public else None


def describe_run(name: str, url: str | None, store: Path, summary: Mapping[str, str]) -> str:
    """The description of a flow run in MLflow: a way back, and its configuration in short."""
    link = f"[This run in Prefect]({url}): its stages, log and artifacts." if url else ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in summary.items())
    table = f"| | |\n| --- | --- |\n{rows}"
    return "\n\n".join(part for part in (f"**{name}**", link, table, f"Store: `{store}`") if part)


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested plain data as (dotted name, text), cut to what MLflow's pages show well."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from flat(item, f"{prefix}.{name}" if prefix else str(name))
    elif prefix:
        text = value if isinstance(value, str) else json.dumps(value)
        yield prefix, text[:_PARAM_CHARACTERS]


def _params(artifact: Artifact) -> dict[str, str]:
    return {_metric_name(name): value for name, value in flat(artifact.manifest.config)}


def _numbers(value: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield prefix, float(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, f"{prefix}/{name}" if prefix else str(name))


def _journal_rows(journal: Path) -> list[dict[str, Any]]:
    if journal.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_table(journal).to_pylist())
    lines = journal.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines if line.strip()]


def _milliseconds(artifact: Artifact, moment: str) -> int | None:
    """When the artifact's making `started` or `ended`, since 1970."""
    text = artifact.manifest.provenance.get(moment)
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else None


def _metric_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)[:250]


def _owner() -> dict[str, str]:
    return {
        "onward.pid": str(os.getpid()),
        "onward.host": os.uname().nodename,
        "onward.started": _started(os.getpid()),
    }


def _started(pid: int) -> str:
    """The process's start time in clock ticks since boot: with the pid it names one process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _gone(tags: Mapping[str, str]) -> bool:
    if tags.get("onward.host") != os.uname().nodename or "onward.pid" not in tags:
        return False
    return _started(int(tags["onward.pid"])) != tags.get("onward.started")
