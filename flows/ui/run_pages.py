"""How far a whole run is, and its training curve: two pages of a run in Prefect, each made anew now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from flows.dag.call import Call
from flows.ui.curve import Segment, training_page
from flows.ui.stage_progress import StageProgress
from flows.ui.whole import Ahead, Forecast
from storage.artifact import Artifact

MINUTE = 60.0
"""Between two drawings of the training curve, and two readings of what was promised."""
_LOG = logging.getLogger("onward")


@dataclass
class WholePage:
    """Stages done and to come, the time left, and what was promised beside what it took."""

    forecast: Forecast | None = None
    beside: Callable[[], str] | None = None
    """What was promised beside what it took, in Markdown."""
    ahead: Sequence[Ahead] = ()
    """What is still to come, of the last look; none once the run has ended."""
    shown: tuple[float, str] | None = None
    """The page that is shown; whoever has published one sets it."""
    _lost: bool = False
    _promised: tuple[float, str] = (0.0, "")

    def news(self, found: Sequence[StageProgress], closing: bool) -> tuple[float, str] | None:
        """(percent, Markdown) of the page, if it is not the one that is shown."""
        self.ahead = ()
        if self.forecast is None or self._lost:
            return None
        try:
            whole = self.forecast.now([stage.at for stage in found], closing)
        except Exception as error:  # what is foreseen is no reason to show less of what is
            self._lost = True
            _LOG.info("what is left of the run cannot be foreseen: %s", error)
            return None
        if whole is None:
            return None
        spent = sum(stage.at.elapsed for stage in found if stage.call.state != "cached")
        share = 1.0 if not whole.ahead else spent / max(spent + whole.seconds, 1e-9)
        if closing and any(stage.is_report for stage in found):
            share, whole = 1.0, replace(whole, done=whole.total, ahead=(), price=None)
        if not closing:
            self.ahead = [one for one in whole.ahead if one.to_do > _at_work(found, one.stage)]
        told = self._read_promised(closing)
        text = f"**The whole run**  \n{whole.text(datetime.now())}" + (f"\n\n{told}" if told else "")
        page = round(100 * share, 1), text
        return None if page == self.shown else page

    def _read_promised(self, closing: bool) -> str:
        """Read once a minute and at the end."""
        now = time.monotonic()
        if self.beside is not None and (closing or now - self._promised[0] >= MINUTE):
            self._promised = (now, self.beside())
        return self._promised[1]


def _at_work(found: Sequence[StageProgress], name: str) -> int:
    return sum(not stage.over and stage.call.request.stage == name for stage in found)


@dataclass
class CurvePage:
    """The training so far, drawn once a minute and whenever a segment ends."""

    work_of: Callable[[str, str], Path]
    shown: str | None = None
    """The page that is shown; whoever has published one sets it."""
    _segments: dict[str, Artifact] = field(default_factory=dict)
    _drawn: float = 0.0

    def ended(self, segment: Artifact) -> None:
        """Take in that a training segment has ended."""
        self._segments[segment.key] = segment
        self._drawn = 0.0

    def news(self, found: Sequence[StageProgress], closing: bool) -> str | None:
        """The page in Markdown, if it is due and not the one that is shown."""
        now = time.monotonic()
        if now - self._drawn < MINUTE and not closing:
            return None
        trained = [stage.call for stage in found if stage.is_training]
        if all(call.state == "cached" for call in trained):  # the report shows it; drawing takes a second
            return None
        self._drawn = now
        text = training_page([self._segment(call) for call in trained])
        return None if text == self.shown else text

    def _segment(self, call: Call) -> Segment:
        request = call.request
        peak = getattr(getattr(request.config, "schedule", None), "peak", None)
        work = self.work_of(request.stage, request.key)
        return Segment(call.item or call.name, request.stage, work, self._segments.get(request.key), peak)
