"""What more tokens would bring: the law of the held-out loss on the trunk, and what it says of each later budget.

It reads the losses that were measured on held-out text while the segments trained (tasks/training/heldout.py). They lie
beside the journals, in files of no digest; so this is added when a report is published, as the cost is. A forecast after a
budget uses nothing measured later. Before the next budget is trained, it is for the budget's own tokens; afterwards for
those that were seen, which padding makes fewer. Nothing else of it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.counts import rounded_count
from tasks.evaluation.law import Expected, Law, Measured, outlook
from tasks.models.heldout import measured, sources_of
from tasks.pages.blocks import Block, Cell, Heading, Picture, Table, Text
from tasks.pages.canvas import COLOURS, GREY, Tips
from tasks.pages.plain import plain
from tasks.training.state.heldout import DOCUMENTS, PREFIX

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from storage.artifact import Artifact

Line = Mapping[str, Any]
NAME = "outlook"
"""Of the figure, and of the file of these facts."""
_MORE = (2, 4)
"""Without later budgets: times the tokens of the last."""


@dataclass(frozen=True)
class Segment:
    """One training segment: the model it is for, its kind, and the lines that were measured on the way."""

    name: str
    branch: bool
    lines: Sequence[Line]
    warmup: int = 0
    """Tokens of the warm-up."""

    @classmethod
    def of(cls, name: str, artifact: Artifact) -> Segment:
        """Of an artifact of `train` or `decay`."""
        config = artifact.manifest.config
        step = int(config.get("sequences_per_step", 0)) * int(config.get("sequence_length", 0))
        warmup = int(config.get("schedule", {}).get("warmup_steps") or 0) * step
        return cls(name, artifact.stage == "decay", measured(artifact.path), warmup)


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """What was to be expected of a budget after an earlier one, and what it came to; None: not yet."""

    after: str
    budget: str
    expected: Expected
    happened: float | None = None

    @property
    def held(self) -> bool | None:
        """Whether the interval held it."""
        if self.happened is None:
            return None
        return self.expected.low <= self.happened <= self.expected.high


@dataclass(frozen=True, kw_only=True)
class SourceOutlook:
    """One source: what was measured, the law of all of it, and the forecasts."""

    source: str
    trunk: tuple[tuple[int, float], ...]
    """Tokens and loss of each measurement at constant rate."""
    models: tuple[tuple[str, int, float], ...]
    """Name, tokens and loss of each budget's model."""
    law: Law | None
    why: str
    """Why there is no law, or nothing to be expected."""
    foretold: tuple[Foretold, ...] = ()
    """Of budgets that were trained or are to be, from every earlier one."""
    more: tuple[Expected, ...] = ()
    """Beyond the last budget."""


@dataclass(frozen=True)
class _Line:
    """A trunk with its branches, read for one source. Each branch: (budget's name, tokens and loss at its end)."""

    measured: Measured
    ends: list[tuple[str, int, float]] = field(default_factory=list)


def outlooks(segments: Sequence[Segment], later: Mapping[str, int]) -> tuple[SourceOutlook, ...]:
    """The outlook of each source, from the segments of a run in their order. `later`: budgets that are still to come, by
    name, in tokens. Empty without a trunk at constant rate that branches end: there is no law of a rate that falls.
    """
    if not any(one.branch for one in segments):
        return ()
    sources = sources_of([line for one in segments for line in one.lines])
    return tuple(found for source in sources if (found := _of_source(source, segments, later)) is not None)


def _of_source(source: str, segments: Sequence[Segment], later: Mapping[str, int]) -> SourceOutlook | None:
    trunk: dict[int, Line] = {}
    warmup = max(one.warmup for one in segments)
    ends: list[tuple[str, int, float]] = []
    told: list[tuple[str, str, Expected]] = []
    law: Law | None = None
    why = "no branch has ended"
    more: tuple[Expected, ...] = ()
    budgets = [(one.name, int(one.lines[-1]["tokens"])) for one in segments if one.branch and one.lines]
    budgets += [(name, tokens) for name, tokens in later.items() if name not in dict(budgets)]
    for one in segments:
        own = {int(line["tokens"]): line for line in one.lines if line.get(f"{PREFIX}{source}") is not None}
        if not one.branch:
            trunk |= own
            continue
        if not own:
            continue
        last = max(own)
        ends.append((one.name, last, float(own[last][f"{PREFIX}{source}"])))
        ahead = [(name, tokens) for name, tokens in budgets if tokens > last]
        asked = [tokens for _, tokens in ahead] or [times * last for times in _MORE]
        points = _measured(source, trunk)
        if points is None:
            why = "the losses of single documents were not measured"
            continue
        found = outlook(points, (last, ends[-1][2]), asked, f"{source}/{one.name}", warmup)
        law, why, more = found.law, found.why, found.expected
        names = {tokens: name for name, tokens in ahead}
        told += [(one.name, names[each.tokens], each) for each in found.expected if each.tokens in names]
    if not trunk:
        return None
    happened = {name: loss for name, _, loss in ends}
    return SourceOutlook(
        source=source,
        trunk=tuple((tokens, float(line[f"{PREFIX}{source}"])) for tokens, line in sorted(trunk.items())),
        models=tuple(ends),
        law=law,
        why=why,
        foretold=tuple(
            Foretold(after=after, budget=budget, expected=each, happened=happened.get(budget))
            for after, budget, each in told
        ),
        more=() if later else more,
    )


def _measured(source: str, trunk: Mapping[int, Line]) -> Measured | None:
    """The trunk's measurements that hold the loss of every document; None if there are none."""
    rows = [
        (tokens, documents)
        for tokens, line in sorted(trunk.items())
        if (documents := (line.get(DOCUMENTS) or {}).get(source))
        and None not in (nats for _, nats in documents)
    ]
    if not rows or len({len(documents) for _, documents in rows}) > 1:
        return None
    table = np.array([documents for _, documents in rows], dtype=float)  # (points, documents, [tokens, nats])
    kept = table[0, :, 0] > 0
    return Measured(np.array([tokens for tokens, _ in rows]), table[:, kept, 1], table[0, kept, 0])


def sentences(facts: Iterable[SourceOutlook], after: str) -> list[str]:
    """What is to be expected of the budgets after one that has just ended, before they are trained."""
    told = []
    for one in facts:
        here = [each for each in one.foretold if each.after == after and each.happened is None]
        now = next((loss for name, _, loss in one.models if name == after), None)
        if here and now is not None:
            expected = ", ".join(f"{_within(each.expected)} at {each.budget}" for each in here)
            told.append(f"held-out loss of {one.source}: {now:.3f} at {after}, to be expected: {expected}")
        elif now is not None:
            told.append(
                f"held-out loss of {one.source}: {now:.3f} at {after}; of later budgets it cannot be told: {one.why}"
            )
    return told


def to_json(facts: Sequence[SourceOutlook]) -> list[Any]:
    """The content of outlook.json."""
    return list(plain(facts))


def outlook_blocks(facts: Sequence[SourceOutlook], pictures: Sequence[Picture]) -> list[Block]:
    """The section: the figure, every forecast beside what happened, and what lies beyond the last budget."""
    if not facts:
        return []
    rows: list[tuple[Cell, ...]] = []
    for one in facts:
        rows += [_foretold_row(one.source, each) for each in one.foretold]
        last = one.models[-1][0] if one.models else ""
        rows += [
            (Cell(one.source), Cell(last), Cell(rounded_count(each.tokens)), Cell(_within(each)), Cell(""))
            for each in one.more
        ]
        if one.why:
            rows.append(
                (Cell(one.source), Cell(last), Cell("later"), Cell("cannot tell"), Cell(f"{one.why}."))
            )
    head = ("held-out text of", "told after", "for", "loss to be expected", "what it came to")
    note = (
        "Nats per token of the fixed part of each source's held-out text that is measured while training. The law "
        "E + A·D^(−α) is fitted to the trunk at constant rate; a budget's model lies below it by what the newest branch "
        "gained, which is taken to stay so. In brackets 95 % intervals, over documents and measurements, not over "
        "training seeds. Each forecast uses only what was measured until the budget in the second column had ended."
    )
    return [
        Heading(2, "What more tokens would bring"),
        *pictures,
        Table(head, tuple(rows), 3, 1),
        Text(note, "note"),
    ]


def _foretold_row(source: str, one: Foretold) -> tuple[Cell, ...]:
    happened = Cell("not trained yet")
    if one.happened is not None:
        happened = Cell(f"{one.happened:.3f}", "" if one.held else "warn", "" if one.held else "outside")
    return Cell(source), Cell(one.after), Cell(one.budget), Cell(_within(one.expected)), happened


def _within(expected: Expected) -> str:
    return f"{expected.value:.3f} [{expected.low:.3f}, {expected.high:.3f}]"


CAPTION = (
    "Held-out loss of each source. Grey: measured on the trunk; line: the law that was fitted, dashed beyond what it was "
    "fitted to; coloured dots: the models of the budgets; bars: what was to be expected, 95 %."
)


def outlook_figure(facts: Sequence[SourceOutlook], tips: Tips) -> Figure:
    """One panel a source: the trunk's measurements and their law, the models, and what was to be expected."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    columns = min(2, len(facts))
    rows = -(-len(facts) // columns)
    figure = Figure(figsize=(9.6 if columns == 2 else 6.4, 3.5 * rows), layout="constrained")
    for number, one in enumerate(facts, 1):
        axes = figure.add_subplot(rows, columns, number)
        axes.set_title(one.source)
        shown = [(tokens, loss) for tokens, loss in one.trunk if tokens]
        expected = [(f"expected after {each.after}", each.expected) for each in one.foretold]
        expected += [("expected", each) for each in one.more]
        if shown:
            x, y = zip(*shown, strict=True)
            axes.plot(x, y, color=GREY, marker=".", markersize=4, linewidth=0.8, alpha=0.6, label="trunk")
            if one.law is not None:
                inside = np.geomspace(max(min(x), one.law.unit / 10), one.law.unit, 60)
                axes.plot(inside, one.law.at(inside), color=COLOURS[1], linewidth=1.4, label="law")
                beyond = np.geomspace(
                    one.law.unit, max([one.law.unit, *(each.tokens for _, each in expected)]), 40
                )
                axes.plot(beyond, one.law.at(beyond), color=COLOURS[1], linewidth=1.2, linestyle=(0, (4, 2)))
        for words, each in expected:
            axes.vlines(each.tokens, each.low, each.high, color=COLOURS[2], linewidth=2.4, alpha=0.55)
            text = f"{words}: {_within(each)} at {rounded_count(each.tokens)}"
            tips.point(axes, each.tokens, each.value, text, COLOURS[2], hollow=True)
        for name, tokens, loss in one.models:
            tips.point(axes, tokens, loss, f"{name}: {loss:.3f}", COLOURS[0])
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded_count(value)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.set_xlabel("tokens seen")
        if number % columns == 1 or columns == 1:
            axes.set_ylabel("held-out loss (nats per token)")
        axes.legend()
    return figure
