"""What the Prefect UI shows during a run: a table of its stages, a progress bar for each longer stage, and links.

One thread writes all of it in place, at most every ten seconds. No stage waits for it, and no error here fails a run,
because the store holds everything that is shown. Only the current attempt is shown. A retry of a flow run continues in
the same artifacts. What is shown is made elsewhere: stage_table.py, stage_bar.py, run_pages.py.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from flows.dag.call import Call
from flows.ui.run_pages import CurvePage, WholePage
from flows.ui.stage_bar import description, percent
from flows.ui.stage_progress import StageProgress
from flows.ui.stage_table import rows_of
from storage.artifact import Artifact
from storage.manifest import Manifest
from storage.store import Request
from tasks import stages

PERIOD_SECONDS = 10.0
SHOWN_AFTER_SECONDS = 4.0
"""A stage that ends within this time gets no progress bar."""
_LOG = logging.getLogger("onward")


class Publishes(Protocol):
    """Where pages are published: `flows.ui.publish.PrefectPages` in the UI."""

    def put(
        self, key: str, kind: str, data: Any, description: str | None = None, task_run: UUID | None = None
    ) -> None:
        """Create the page with this key, or change it in place."""

    def has(self, key: str) -> bool:
        """Whether there is a page with this key, from this or an earlier attempt."""


@dataclass
class Live:
    """Publishes what the Builder reports. `listen` and `follow` return at once."""

    pages: Publishes
    name: str
    work_of: Callable[[str, str], Path]
    why: Callable[[Request], str]
    forced: frozenset[str] = frozenset()
    period: float = PERIOD_SECONDS
    shown_after: float = SHOWN_AFTER_SECONDS
    whole: WholePage = field(default_factory=WholePage)
    _stages: list[StageProgress] = field(default_factory=list)
    _links: dict[str, tuple[str, str]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _wake: threading.Event = field(default_factory=threading.Event)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _table: Any = None
    _complained: bool = False
    _over: bool = False

    def __post_init__(self) -> None:
        self._curve = CurvePage(self.work_of)

    def start(self) -> None:
        """Begin publishing."""
        self._thread = threading.Thread(target=self._work, name="prefect-pages", daemon=True)
        self._thread.start()

    def close(self, seconds: float) -> None:
        """Publish the final state. Returns when it is sent or `seconds` have passed."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)
        with self._guard:
            self._over, left = True, dict(self._links)
            self._links.clear()
        for key, (address, text) in left.items():  # it came while the thread ended
            self._put_late(key, address, text)

    def listen(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Record that a stage began, ended or failed."""
        with self._guard:
            if event == "begin":  # or begins another try
                self._stages = [stage for stage in self._stages if stage.call is not call]
                self._stages.append(StageProgress(call, time.monotonic()))
            elif (stage := self._find(call)) is not None:
                stage.end(artifact.stats if artifact else {})
                if artifact is not None and call.request.stage in stages.TRAINING:
                    self._curve.ended(artifact)
        self._wake.set()

    def follow(self, call: Call, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Record how far a stage is, or what it waits for."""
        with self._guard:
            if (stage := self._find(call)) is not None:
                stage.follow(done, total, unit, note)

    def link(self, key: str, address: str, text: str) -> None:
        """Add a link to the flow run's page. Returns at once, until `close` has returned."""
        with self._guard:
            if not (over := self._over):
                self._links[key] = (address, text)
        self._wake.set()
        if over:  # MLflow was known only after the last stage: all of them were found
            self._put_late(key, address, text)

    def _put_late(self, key: str, address: str, text: str) -> None:
        try:
            self._put_link(key, address, text)
        except Exception as error:  # Prefect may be away by then
            _LOG.warning("Prefect's pages lack a link to MLflow: %s", error)

    def _put_link(self, key: str, address: str, text: str) -> None:
        self.pages.put(key, "markdown", f"[{text}]({address})", text)

    def _find(self, call: Call) -> StageProgress | None:
        return next((stage for stage in reversed(self._stages) if stage.call is call), None)

    def _work(self) -> None:
        last = -self.period
        while True:
            self._wake.wait(self.period)
            self._wake.clear()
            self._closing.wait(max(0.0, last + self.period - time.monotonic()))
            closing, last = self._closing.is_set(), time.monotonic()
            try:
                self._publish(closing)
                self._complained = False
            except Exception as error:  # the run continues after any error of Prefect's server or client
                if not self._complained:
                    _LOG.warning("Prefect's pages are not up to date: %s", error)
                self._complained = True
            if closing and not self._complained:
                return
            if closing:
                time.sleep(1)  # the caller of `close` limits the time
                self._wake.set()

    def _publish(self, closing: bool) -> None:
        with self._guard:
            found, links = list(self._stages), dict(self._links)
        for key, (address, text) in links.items():
            self._put_link(key, address, text)
            with self._guard:
                self._links.pop(key, None)
        if (run := self.whole.news(found, closing)) is not None:
            self.pages.put("run", "progress", *run)
            self.whole.shown = run
        rows = rows_of(found, self.whole.ahead, self.why, self.forced)
        if rows and rows != self._table:
            about = "Stages of this attempt: what is under way first, then in order"
            self.pages.put("stages", "table", rows, about)
            self._table = rows
        if (curve := self._curve.news(found, closing)) is not None:
            self.pages.put("training", "markdown", curve, "Training so far: loss over steps and tokens")
            self._curve.shown = curve
        for stage in found:
            self._show_bar(stage)

    def _show_bar(self, stage: StageProgress) -> None:
        """Show the bar of a stage that takes longer, and its end once."""
        key, long = slug(f"{self.name} {stage.call.name}"), time.monotonic() - stage.began >= self.shown_after
        if stage.over and not stage.settled:
            if stage.shown or self.pages.has(key):
                self._bar(key, stage)
            stage.settled = True
        elif not stage.over and (stage.shown or long):
            self._bar(key, stage)
            stage.shown = True

    def _bar(self, key: str, stage: StageProgress) -> None:
        request, run = stage.call.request, stage.call.task_run
        text = description(stage, self.work_of(request.stage, request.key))
        self.pages.put(key, "progress", percent(stage), text, run.id if run else None)


def own_artifacts(flow_run: str | None, known: set[str]) -> Callable[[Manifest], bool]:
    """A test whether an artifact was made by this flow run or by an earlier attempt at the same run."""
    return lambda manifest: manifest.provenance.get("flow_run") == flow_run or manifest.key in known


def slug(text: str) -> str:
    """An artifact key: `[a-z0-9-]`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
