"""How far a whole run is: stages of the plan that are done, the time that is left, when it ends, what it costs.

The quote of the plan (`flows.quote`) says what is left; what has happened since it was made is taken off it. It is made
anew from time to time, because the store and its rates have grown.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from flows.quote.quote import ASSUMED, Line, Quote
from flows.quote.table import hours_text

FIRST_SECONDS = 20.0
"""A run that finds nearly everything in the store is over before."""
AGAIN_SECONDS = 600.0
"""Between two quotes, each of which takes about two seconds of a core."""
_SURE = 0.05
"""Share of a stage after which its own rate counts for others of its kind, where only a rule of thumb was known."""


@dataclass(frozen=True)
class At:
    """Where one stage of this attempt is: `share` (0 to 1) done, and about how many seconds it still takes, if it says so.

    `since`: seconds (monotonic) at which it ended, None while it is at work.
    """

    stage: str
    share: float
    left: float | None
    elapsed: float
    since: float | None


@dataclass(frozen=True)
class Ahead:
    """What is left of one kind of stage."""

    stage: str
    to_do: int
    seconds: float | None
    assumed: bool


@dataclass(frozen=True)
class Whole:
    """`done` of `total` stages, the seconds left (None if of some stages no time is known), and what is ahead."""

    done: int
    total: int
    seconds: float
    whole: bool
    ahead: tuple[Ahead, ...]
    price: float | None

    def text(self, now: datetime) -> str:
        """`stage 31 of 42 · about 2 h 05 min left, until 14:55`."""
        words = [f"{self.done} of {self.total} stages"]
        if self.ahead:
            more = "" if self.whole else "more than "
            end = datetime.fromtimestamp(now.timestamp() + self.seconds)
            day = "%H:%M" if end.date() == now.date() else "%d %b %H:%M"
            words.append(f"{more or 'about '}{hours_text(self.seconds)} left, until {end.strftime(day)}")
        if self.price is not None:
            words.append(f"about {self.price:,.2f} more for the machine")
        if any(one.assumed for one in self.ahead):
            words.append("rules of thumb, in part; `onward rehearse` measures")
        return " · ".join(words)


@dataclass
class Forecast:
    """The newest quote of a run, and when it was made. `make` gives it; it may raise."""

    make: Callable[[], Quote]
    first: float = FIRST_SECONDS
    again: float = AGAIN_SECONDS
    _quote: Quote | None = None
    _made: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def now(self, stages: Sequence[At], last: bool = False) -> Whole | None:
        """Where the run is; None before the first quote. `last`: the run has ended, and nothing is quoted any more."""
        moment = time.monotonic()
        due = self._began + self.first if self._quote is None else self._made + self.again
        if moment >= due and not last:
            self._quote, self._made = self.make(), moment
        return None if self._quote is None else whole_of(self._quote, stages, self._made)


def whole_of(quote: Quote, stages: Sequence[At], made: float) -> Whole:
    """A quote of the moment `made`, less what the stages of this attempt have done since."""
    running: dict[str, list[At]] = defaultdict(list)
    ended: dict[str, int] = defaultdict(int)
    for at in stages:
        if at.since is None:
            running[at.stage].append(at)
        elif at.since >= made:
            ended[at.stage] += 1
    ahead = tuple(
        one
        for line in quote.lines
        if (one := _ahead(line, ended[line.stage], running[line.stage])) is not None
    )
    known = [one.seconds for one in ahead if one.seconds is not None]
    per_second = quote.price / quote.seconds if quote.price is not None and quote.seconds else None
    return Whole(
        done=sum(line.done for line in quote.lines)
        + sum(min(ended[line.stage], line.to_do) for line in quote.lines),
        total=sum(line.done + line.to_do for line in quote.lines),
        seconds=sum(known),
        whole=len(known) == len(ahead),
        ahead=ahead,
        price=None if per_second is None else per_second * sum(known),
    )


def _ahead(line: Line, ended: int, running: Sequence[At]) -> Ahead | None:
    """What is left of a line of the quote: those at work by their own rate, the others as quoted."""
    left = max(0, line.to_do - ended)
    if not left:
        return None
    each = None if line.seconds is None else line.seconds / line.to_do
    assumed = line.rate == ASSUMED
    for at in running:
        if at.share >= _SURE and at.left is not None and (each is None or assumed):
            each, assumed = at.elapsed + at.left, False
    if each is None:
        return Ahead(line.stage, left, None, False)
    at_work = running[:left]
    seconds = sum(at.left if at.left is not None else each * (1 - at.share) for at in at_work)
    return Ahead(line.stage, left, seconds + each * (left - len(at_work)), assumed)
