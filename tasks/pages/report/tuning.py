"""The page of a tuning: short trials of one configuration, what each gained on the domain and lost elsewhere.

A trial's gain is the change of held-out perplexity from the base, as nats per token (the change of its logarithm), a mean
over the sources of a role. A trial is on the front if no other is better in both. The choice is by one number: the domain's
change plus `forgetting` times what was lost on general text. Intervals are over held-out documents, not over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.pages.blocks import Block, Cell, Heading, Picture, Quote, Table, Text
from tasks.pages.canvas import COLOURS, GREY, Tips
from tasks.pages.plain import plain
from tasks.pages.report.facts import Results, Within, change_of, within

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Z95 = 1.959964


@dataclass(frozen=True)
class Standing:
    """A trial at one budget: changes from the base in nats per token, the lower the better; None: no such source."""

    domain: Within | None
    general: Within | None

    def score(self, forgetting: float) -> float:
        """The domain's change plus `forgetting` times the loss on general text; a gain there does not count."""
        lost = max(0.0, self.general.value) if self.general else 0.0
        return (self.domain.value if self.domain else 0.0) + forgetting * lost


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial. `standings` by tokens seen: a trial that was dropped has fewer."""

    name: str
    values: Mapping[str, str]
    run: str
    report: str
    standings: Mapping[int, Standing] = field(default_factory=dict)
    kept: bool = True
    """Whether it reached the last budget."""

    @property
    def tokens(self) -> int:
        """Of its last budget."""
        return max(self.standings)

    @property
    def last(self) -> Standing:
        """At its last budget."""
        return self.standings[self.tokens]


@dataclass(frozen=True, kw_only=True)
class TuningFacts:
    """All trials, the best first; the next command, and what it finds in the store."""

    trials: tuple[TrialRow, ...]
    forgetting: float
    front: tuple[str, ...]
    """Names of the trials of the last budget that no other one beats in both."""
    runner_up: str
    """What separates the best from the second, in a sentence; empty for one trial."""
    command: str
    found: str
    """What of the next command's training is in the store."""

    @property
    def best(self) -> TrialRow:
        """The trial that was chosen."""
        return self.trials[0]

    def to_json(self) -> dict[str, Any]:
        """The content of tune.json."""
        return dict(plain(self))


def standing_of(results: Results, roles: Mapping[str, str]) -> Standing:
    """The last model of a report against its base, by role: `domain` and `replay`."""
    base, last = results.names[0], results.names[-1]
    found: dict[str, list[tuple[float, float, float | None, float | None]]] = {}
    for row in results.perplexity:
        change = change_of(row, base, last)
        if change is None:
            continue
        relative = 1 + change.value
        ends = [None if end is None else math.log1p(end) for end in (change.low, change.high)]
        # the error of a logarithm is that of the value, as a share of it
        entry = (math.log(relative), change.stderr / relative, ends[0], ends[1])
        found.setdefault(roles.get(row.source, "replay"), []).append(entry)
    return Standing(_mean(found.get("domain")), _mean(found.get("replay")))


def _mean(changes: Sequence[tuple[float, float, float | None, float | None]] | None) -> Within | None:
    """The mean over sources; its interval is that of a normal distribution where there are several."""
    if not changes:
        return None
    if len(changes) == 1:
        value, _, low, high = changes[0]
        return Within(value, low, high)
    value = sum(change[0] for change in changes) / len(changes)
    error = math.sqrt(sum(change[1] ** 2 for change in changes)) / len(changes)
    return Within(value, value - _Z95 * error, value + _Z95 * error)


def ranked(trials: Sequence[TrialRow], forgetting: float) -> list[TrialRow]:
    """Those that came furthest first, and of these the best; ties stay in order."""
    return sorted(trials, key=lambda trial: (-trial.tokens, trial.last.score(forgetting)))


def front_of(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """Those of the last budget that no other one equals or beats in both changes, and beats in one."""
    furthest = max(trial.tokens for trial in trials)
    here = [trial for trial in trials if trial.tokens == furthest]
    names = unbeaten({str(place): trial.last for place, trial in enumerate(here)})
    return [one for place, one in enumerate(here) if str(place) in names]


def unbeaten(standings: Mapping[str, Standing]) -> list[str]:
    """The names that no other one equals or beats in both changes, and beats in one."""
    return [
        name
        for name, one in standings.items()
        if not any(_beats(_point(other), _point(one)) for other in standings.values() if other is not one)
    ]


def _point(standing: Standing) -> tuple[float, float]:
    return (
        standing.domain.value if standing.domain else 0.0,
        standing.general.value if standing.general else 0.0,
    )


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def tuning_blocks(facts: TuningFacts, name: str, pictures: Sequence[Picture]) -> list[Block]:
    """The page: what was chosen and the next command, the figure, every trial."""
    told = f"Best of {len(facts.trials)}: {facts.best.name}. {facts.runner_up}".strip()
    rows = [_row(trial, facts) for trial in facts.trials]
    note = (
        "Changes of held-out perplexity from the base, in nats per token: −0.10 is a perplexity lower by a tenth. In "
        "brackets 95 % intervals over documents; another training seed moves them too. Score: the domain's change"
        + (f" plus {facts.forgetting:g} times the loss on general text." if facts.forgetting else " alone.")
        + " Front: no other trial of the last budget is better on both."
    )
    head = ("trial", "tokens", "domain", "general", "score", "front", "run")
    return [
        Heading(1, f"{name}: {len(facts.trials)} trials"),
        Text(told, "findings"),
        Quote("To go on with it", facts.command),
        Text(facts.found, "note"),
        *pictures,
        Heading(2, "Trials"),
        Table(head, tuple(rows), 1, 2),
        Text(note, "note"),
    ]


def _row(trial: TrialRow, facts: TuningFacts) -> tuple[Cell | str, ...]:
    last = trial.last
    return (
        Cell(trial.name),
        Cell(f"{trial.tokens:,}"),
        Cell(within(last.domain, 1, 3) if last.domain else "–"),
        Cell(within(last.general, 1, 3) if last.general else "–"),
        Cell(f"{last.score(facts.forgetting):.3f}".replace("-", "−")),
        Cell("yes" if trial.name in facts.front else ""),
        Cell(trial.run),
    )


def pareto_figure(facts: TuningFacts, tips: Tips) -> Figure:
    """Every trial of the last budget: gain on the domain (across), loss on general text (up), and the front."""
    furthest = facts.best.tokens
    here = {trial.name: trial.last for trial in facts.trials if trial.tokens == furthest}
    return pareto(here, facts.front, facts.best.name, tips)


def pareto(shown: Mapping[str, Standing], front: Sequence[str], best: str | None, tips: Tips) -> Figure:
    """Changes from the base by name: of the domain (across), of general text (up), both better where lower.

    `front`: the names on it; `best`: the one that was chosen.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color="#9ca3af", linewidth=1)
    on_front = sorted(_point(one) for name, one in shown.items() if name in front)
    axes.step(
        *zip(*on_front, strict=True),
        where="post",
        color=GREY,
        linewidth=1.2,
        linestyle=(0, (4, 2)),
        label="front",
    )
    for name, one in shown.items():
        colour = COLOURS[0] if name == best else (COLOURS[1] if name in front else GREY)
        x, y = _point(one)
        for value, along in ((one.domain, True), (one.general, False)):
            if value is not None and value.low is not None and value.high is not None:
                draw = axes.hlines if along else axes.vlines
                draw(y if along else x, value.low, value.high, color=colour, linewidth=1.0, alpha=0.5)
        tips.point(axes, x, y, f"{name}: domain {x:+.3f}, general {y:+.3f}", colour)
        axes.annotate(name, (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7.5, color=colour)
    axes.set_xlabel("domain: change of held-out loss from the base (nats per token; left is better)")
    axes.set_ylabel("general text: the same change (down is better)")
    axes.legend()
    return figure
