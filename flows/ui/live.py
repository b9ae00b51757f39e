"""What the Prefect UI shows during a run: a table of its stages, a progress bar for each longer stage, and links.

One thread writes all of it in place, at most every ten seconds. No stage waits for it, and no error here fails a run,
because the store holds everything that is shown. Only the current attempt is shown. A retry of a flow run continues in
the same artifacts.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from flows.dag.call import Call, named
from flows.quote.table import hours_text
from flows.ui.curve import Segment, training_page
from flows.ui.whole import Ahead, At, Forecast
from storage.artifact import Artifact
from storage.errors import said
from storage.manifest import Manifest
from storage.secrets import without_secrets
from storage.store import Request
from tasks import stages
from tasks.models.heldout import measured, sources_of
from tasks.models.progress import last_row, newest_checkpoint
from tasks.training.state.heldout import PREFIX

PERIOD_SECONDS = 10.0
CURVE_SECONDS = 60.0
"""Between two drawings of the training curve."""
SHOWN_AFTER_SECONDS = 4.0
"""A stage that ends within this time gets no progress bar."""
_WINDOW_SECONDS = 120.0
_PASSES = {
    "dedup": ("sketches", "documents"),
    "decontaminate": ("matches", "overlaps", "documents"),
}
"""The shards that a stage makes, in order, for stages that process their documents more than once."""
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
class StageProgress:
    """The present knowledge about one stage. `samples` are (time, share done, units done) of the current pass."""

    call: Call
    began: float
    why: str | None = None
    done: int = 0
    total: int | None = None
    unit: str = ""
    note: str = ""
    share: float = 0.0
    samples: deque[tuple[float, float, int]] = field(default_factory=deque)
    stats: Mapping[str, Any] = field(default_factory=dict)
    shown: bool = False
    """Whether its bar is shown with a state from before its end."""
    over: bool = False
    ended: float = 0.0
    settled: bool = False
    """Whether its bar shows its end or is not needed."""


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
    forecast: Forecast | None = None
    beside: Callable[[], str] | None = None
    """What was promised beside what it took, in Markdown."""
    _stages: list[StageProgress] = field(default_factory=list)
    _links: dict[str, tuple[str, str]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _wake: threading.Event = field(default_factory=threading.Event)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _table: Any = None
    _curve: str | None = None
    _drawn: float = 0.0
    _lost: bool = False
    _run: tuple[float, str] = (0.0, "")
    _beside: tuple[float, str] = (0.0, "")
    _segments: dict[str, Artifact] = field(default_factory=dict)
    _complained: bool = False

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

    def listen(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Record that a stage began, ended or failed."""
        with self._guard:
            if event == "begin":  # or begins another try
                self._stages = [stage for stage in self._stages if stage.call is not call]
                self._stages.append(StageProgress(call, time.monotonic()))
            elif (stage := self._find(call)) is not None:
                stage.stats = artifact.stats if artifact else {}
                stage.over, stage.ended = True, time.monotonic()
                if artifact is not None and call.request.stage in stages.TRAINING:
                    self._segments[artifact.key] = artifact
                    self._drawn = 0.0
        self._wake.set()

    def follow(self, call: Call, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Record how far a stage is, or what it waits for."""
        now = time.monotonic()
        with self._guard:
            stage = self._find(call)
            if stage is None:
                return
            if unit != stage.unit or done < stage.done:
                stage.samples.clear()
            stage.done, stage.total, stage.unit, stage.note = done, total, unit, note
            stage.share = _share(call.request.stage, done, total, unit)
            if unit and (not stage.samples or now - stage.samples[-1][0] >= 1):
                stage.samples.append((now, stage.share, done))
                while now - stage.samples[0][0] > _WINDOW_SECONDS and len(stage.samples) > 2:
                    stage.samples.popleft()

    def link(self, key: str, address: str, text: str) -> None:
        """Add a link to the flow run's page."""
        with self._guard:
            self._links[key] = (address, text)
        self._wake.set()

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
            stages, links = list(self._stages), dict(self._links)
        for key, (address, text) in links.items():
            self.pages.put(key, "markdown", f"[{text}]({address})", text)
            with self._guard:
                self._links.pop(key, None)
        under_way = [stage for stage in stages if _state(stage) not in ("built", "cached")]
        done = [stage for stage in stages if _state(stage) in ("built", "cached")]
        ahead = self._whole(stages, closing)
        rows = [*(self._row(stage) for stage in (*reversed(under_way), *done)), *map(_to_come, ahead)]
        if rows and rows != self._table:
            about = "Stages of this attempt: what is under way first, then in order"
            self.pages.put("stages", "table", rows, about)
            self._table = rows
        self._training(stages, closing)
        now = time.monotonic()
        for stage in stages:
            key = slug(f"{self.name} {stage.call.name}")
            if stage.over and not stage.settled:
                if stage.shown or self.pages.has(key):
                    self._bar(key, stage)
                stage.settled = True
            elif not stage.over and (stage.shown or now - stage.began >= self.shown_after):
                self._bar(key, stage)
                stage.shown = True

    def _whole(self, stages: list[StageProgress], closing: bool) -> Sequence[Ahead]:
        """Show how far the whole run is. Returns what is still to come; none once the run has ended."""
        if self.forecast is None or self._lost:
            return ()
        try:
            whole = self.forecast.now([_at(stage) for stage in stages], closing)
        except Exception as error:  # what is foreseen is no reason to show less of what is
            self._lost = True
            _LOG.info("what is left of the run cannot be foreseen: %s", error)
            return ()
        if whole is None:
            return ()
        spent = sum(_at(stage).elapsed for stage in stages if stage.call.state != "cached")
        share = 1.0 if not whole.ahead else spent / max(spent + whole.seconds, 1e-9)
        if closing and any(_reported(stage) for stage in stages):
            share, whole = 1.0, replace(whole, done=whole.total, ahead=(), price=None)
        told = self._promised(closing)
        text = f"**The whole run**  \n{whole.text(datetime.now())}" + (f"\n\n{told}" if told else "")
        if (share, text) != self._run:
            self.pages.put("run", "progress", round(100 * share, 1), text)
            self._run = (share, text)
        return () if closing else [one for one in whole.ahead if one.to_do > _at_work(stages, one.stage)]

    def _promised(self, closing: bool) -> str:
        """What was promised beside what it took, read once a minute and at the end."""
        now = time.monotonic()
        if self.beside is not None and (closing or now - self._beside[0] >= CURVE_SECONDS):
            self._beside = (now, self.beside())
        return self._beside[1]

    def _training(self, stages: list[StageProgress], closing: bool) -> None:
        """Draw the training curve, once a minute and whenever a segment ends."""
        now = time.monotonic()
        if now - self._drawn < CURVE_SECONDS and not closing:
            return
        trained = [stage for stage in stages if _is_training(stage)]
        if all(
            stage.call.state == "cached" for stage in trained
        ):  # the report shows it; drawing takes a second
            return
        segments = [self._segment(stage.call) for stage in trained]
        self._drawn = now
        text = training_page(segments)
        if text is not None and text != self._curve:
            self.pages.put("training", "markdown", text, "Training so far: loss over steps and tokens")
            self._curve = text

    def _segment(self, call: Call) -> Segment:
        request = call.request
        peak = getattr(getattr(request.config, "schedule", None), "peak", None)
        work = self.work_of(request.stage, request.key)
        return Segment(call.item or call.name, request.stage, work, self._segments.get(request.key), peak)

    def _row(self, stage: StageProgress) -> dict[str, Any]:
        call = stage.call
        seconds = call.seconds if stage.over else max(0.0, time.time() - call.began)
        return {
            "stage": call.request.stage,
            "of": " · ".join(named(call.slice, call.round, call.item)),
            "state": _state(stage),
            "time": duration(seconds) if call.state != "cached" else "",
            "why": self._why(stage),
            "documents": _documents(stage.stats),
            "tokens": f"{stage.stats['tokens']:,}" if stage.stats.get("tokens") is not None else "",
            "key": call.request.key[:12],
        }

    def _why(self, stage: StageProgress) -> str:
        """Why the stage is made. Determined when it is first shown, because then it is not in the store yet."""
        call = stage.call
        if call.state == "cached":
            return "reproduced" if call.request.stage in self.forced else ""
        if stage.why is None:
            reason = "forced" if call.request.stage in self.forced else self.why(call.request)
            reason = "forced: other bytes than before" if call.differs else reason
            stage.why = "; ".join(["begun before", reason] if call.resumed else [reason])
        return stage.why

    def _bar(self, key: str, stage: StageProgress) -> None:
        percent = round(100 * (1.0 if stage.over and stage.call.state != "failed" else stage.share), 1)
        run = stage.call.task_run
        self.pages.put(key, "progress", percent, self.description(stage), run.id if run else None)

    def description(self, stage: StageProgress) -> str:
        """The text beside a progress bar, in Markdown."""
        call = stage.call
        lines = [f"**{call.label}**"]
        if stage.over and call.state == "failed":
            lines.append(_failure(call))
        elif stage.over:
            lines.append(" · ".join([f"{call.state} in {duration(call.seconds)}", *_ended_with(stage)]))
        elif stage.note:
            lines.append(stage.note)
        else:
            lines.append(" · ".join(word for word in (_amount(stage), _rate(stage), _left(stage)) if word))
        if call.request.stage in stages.TRAINING and not stage.over:
            lines.append(_training(self.work_of(call.request.stage, call.request.key)))
        return "  \n".join(line for line in lines if line)


def own_artifacts(flow_run: str | None, known: set[str]) -> Callable[[Manifest], bool]:
    """A test whether an artifact was made by this flow run or by an earlier attempt at the same run."""
    return lambda manifest: manifest.provenance.get("flow_run") == flow_run or manifest.key in known


def slug(text: str) -> str:
    """An artifact key: `[a-z0-9-]`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _share(stage: str, done: int, total: int | None, unit: str) -> float:
    """Share of the whole stage. Each pass over the documents counts the same."""
    share = min(1.0, done / total) if total else 0.0
    passes = _PASSES.get(stage, ())
    name = unit.removeprefix("shards of ")
    return (passes.index(name) + share) / len(passes) if name in passes else share


def _amount(stage: StageProgress) -> str:
    """`1,200 of 4,000 documents (pass 1 of 2)`. Shards are converted to their content if that is known."""
    if not stage.unit:
        return ""
    done, total, unit = _in_units(stage)
    text = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
    passes = _PASSES.get(stage.call.request.stage, ())
    name = stage.unit.removeprefix("shards of ")
    return f"{text} (pass {passes.index(name) + 1} of {len(passes)})" if name in passes else text


def _in_units(stage: StageProgress) -> tuple[int, int | None, str]:
    """Convert shards to documents or bytes. Shards have about equal size, so the shares are about equal."""
    if not stage.unit.startswith("shards") or not stage.total:
        return stage.done, stage.total, stage.unit
    whole, unit = _whole(stage.call.request)
    if not whole:
        return stage.done, stage.total, "shards"
    return whole * stage.done // stage.total, whole, unit


def _whole(request: Request) -> tuple[int, str]:
    documents = getattr(request.inputs, "documents", None)
    if documents is not None and documents.stats.get("documents_out"):
        return int(documents.stats["documents_out"]), "documents"
    return int(getattr(request.config, "slice_bytes", 0)), "bytes"


def _rate(stage: StageProgress) -> str:
    if len(stage.samples) < 2:
        return ""
    (began, _, first), (ended, _, last) = stage.samples[0], stage.samples[-1]
    done, _, unit = _in_units(stage)
    scale = done / stage.done if stage.done else 0.0
    rate = scale * (last - first) / max(ended - began, 1e-6)
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else (f"{rate:,.1f} {unit}/s" if rate > 0 else "")


def _left(stage: StageProgress) -> str:
    left = _seconds_left(stage)
    return "" if left is None else f"about {duration(left)} left"


def _seconds_left(stage: StageProgress) -> float | None:
    """What a stage still takes at its present rate; None if that is not known."""
    if len(stage.samples) < 2:
        return None
    (began, first, _), (ended, last, _) = stage.samples[0], stage.samples[-1]
    speed = (last - first) / max(ended - began, 1e-6)
    return max((1 - last) / speed - (time.monotonic() - ended), 0.0) if speed > 0 else None


def _ended_with(stage: StageProgress) -> list[str]:
    """The last loss of a training that has ended."""
    loss = (
        (stage.stats.get("result") or {}).get("loss") if stage.call.request.stage in stages.TRAINING else None
    )
    return [f"loss {loss:.3f} at the last step"] if isinstance(loss, int | float) else []


def _training(work: Path) -> str:
    words = []
    if (checkpoint := newest_checkpoint(work)) is not None:
        words.append(f"last checkpoint {duration(checkpoint.age_seconds)} ago, at step {checkpoint.step:,}")
    if (row := last_row(work / "journal.jsonl")) is not None:
        words.append(f"step {row['step']:,}, {row.get('tokens', 0):,} tokens seen by the model")
        if isinstance(row.get("loss"), int | float):
            words.append(f"loss {row['loss']:.3f}")
    if lines := measured(work):
        found = [(name, lines[-1].get(f"{PREFIX}{name}")) for name in sources_of(lines)]
        words += [f"held-out {name} {value:.3f}" for name, value in found if value is not None]
    return " · ".join(words)


def _state(stage: StageProgress) -> str:
    if stage.over:
        stopped = stage.call.error is not None and not isinstance(stage.call.error, Exception)
        return "stopped" if stopped else stage.call.state
    return "waiting" if stage.note else "running"


def _at(stage: StageProgress) -> At:
    """Where a stage is, for the whole."""
    now = time.monotonic()
    if stage.over:
        return At(stage.call.request.stage, 1.0, 0.0, stage.call.seconds, stage.ended)
    return At(stage.call.request.stage, stage.share, _seconds_left(stage), now - stage.began, None)


def _reported(stage: StageProgress) -> bool:
    """Whether this is a report that was made, with which a whole run ends."""
    return stage.call.request.stage == "report" and stage.over and stage.call.state != "failed"


def _at_work(found: list[StageProgress], name: str) -> int:
    return sum(not stage.over and stage.call.request.stage == name for stage in found)


def _to_come(ahead: Ahead) -> dict[str, Any]:
    """The row of what is still to come of one kind of stage."""
    took = "" if ahead.seconds is None else f"about {hours_text(ahead.seconds)}"
    return {
        "stage": ahead.stage,
        "of": f"{ahead.to_do:,} ×",
        "state": "to come",
        "time": took,
        "why": "by a rule of thumb" if ahead.assumed else "",
        "documents": "",
        "tokens": "",
        "key": "",
    }


def _is_training(stage: StageProgress) -> bool:
    """Whether its steps are of the run's own training: that of a new base is another one."""
    request = stage.call.request
    return request.stage in stages.TRAINING and getattr(request.config, "kind", "") != "pretrain"


def _failure(call: Call) -> str:
    if call.error is None or isinstance(call.error, Exception):
        reason = without_secrets(said(call.error) if call.error else "").splitlines()
        return f"failed after {duration(call.seconds)}{': ' + reason[0][:500] if reason else ''}"
    return f"stopped after {duration(call.seconds)}; the next attempt goes on from there"


def _documents(stats: Mapping[str, Any]) -> str:
    """Documents in → out."""
    came, went = stats.get("documents_in"), stats.get("documents_out")
    if came is not None and went is not None:
        return f"{came:,} → {went:,}"
    return f"{stats['documents']:,}" if stats.get("documents") is not None else ""
